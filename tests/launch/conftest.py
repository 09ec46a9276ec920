import pytest

from tests.support.fake_tools import FakeTools


@pytest.fixture
def tools(tmp_path):
    return FakeTools(tmp_path)
