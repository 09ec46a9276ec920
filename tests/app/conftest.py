import pytest

from ivid2vid_jax.weights.pipeline_folder import open_pipeline_folder
from tests.support.fake_pipeline import NegativePipeline


@pytest.fixture(scope="module")
def pipe(tiny):
    return NegativePipeline(open_pipeline_folder(tiny))
