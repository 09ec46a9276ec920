"""The Dockerfiles."""

import re

import pytest

from tests.support.fake_tools import LAUNCH, ROOT


@pytest.mark.parametrize("kind", ["tpu", "cuda"])
def test_a_dockerfile_copies_existing_files_and_installs_existing_extras(kind):
    text = (LAUNCH / f"Dockerfile.{kind}").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("FROM python:3.1") and lines[-1] == 'ENTRYPOINT ["launch/host.sh"]'
    for line in lines:
        word, *rest = line.split()
        assert word in ("FROM", "WORKDIR", "COPY", "RUN", "ENV", "EXPOSE", "ENTRYPOINT")
        assert word != "COPY" or all((ROOT / source).exists() for source in rest[:-1]), line
    (extras,) = re.findall(r"pip install .*\.\[(.*)\]", text)
    setup = (ROOT / "setup.py").read_text()
    assert kind in extras and all(f'"{extra}":' in setup for extra in extras.split(","))
