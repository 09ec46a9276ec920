import dataclasses

import pytest

from ivid2vid_jax.weights.pipeline_folder import open_pipeline_folder
from tests.support.fake_pipeline import NegativePipeline


@pytest.fixture(scope="module")
def pipe(tiny):
    """Its size is that of the clips of noise, so that they are not resampled."""
    folder = open_pipeline_folder(tiny)
    return NegativePipeline(dataclasses.replace(folder, sampling={"size": 48}))
