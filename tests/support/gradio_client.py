"""A client of the app's page, over HTTP."""

import contextlib
import tempfile
from pathlib import Path

import pytest


@contextlib.contextmanager
def visitor(address):
    """(client, function that uploads a file)."""
    gradio_client = pytest.importorskip("gradio_client")
    with tempfile.TemporaryDirectory() as downloads:
        client = gradio_client.Client(address, verbose=False, download_files=downloads)
        yield client, gradio_client.handle_file
        client.close()


def edit_inputs(clip, instruction="make it blue", seed=0):
    return [clip, instruction, 5.0, 1.5, 2, seed, "", None, None]


def path_of(value) -> Path:
    return Path(value["video"] if isinstance(value, dict) else value)
