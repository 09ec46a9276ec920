"""The packages that tests compare with, imported when they are first used.

So a module can be collected without them; a test that uses them is then skipped, see
tests/conftest.py.
"""

import importlib
from typing import Any


class Reference:
    """A package that is imported at the first use of its contents."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


torch = Reference("torch")
diffusers = Reference("diffusers")
