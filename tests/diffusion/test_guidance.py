"""The branches that a pair of guidance scales needs, and their sum."""

import numpy as np
import pytest

from ivid2vid_jax.diffusion.guidance import combine_branches, guidance_branches

RNG = np.random.default_rng(0)
E_00, E_V0, E_VT = RNG.standard_normal((3, 2, 4, 4, 4)).astype(np.float32)


def guided_by_formula(text_scale, video_scale):
    return E_00 + video_scale * (E_V0 - E_00) + text_scale * (E_VT - E_V0)


def guided_by_branches(text_scale, video_scale, rescale=0.0):
    predictions = {(False, False): E_00, (False, True): E_V0, (True, True): E_VT}
    branches = guidance_branches(text_scale, video_scale)
    stacked = np.stack([predictions[branch.text, branch.video] for branch in branches])
    weights = np.array([branch.weight for branch in branches], np.float32)
    return np.asarray(combine_branches(stacked, weights, np.float32(rescale)))


@pytest.mark.parametrize(
    ("scales", "count"),
    [((7.5, 1.5), 3), ((7.5, 1.0), 2), ((2.0, 2.0), 2), ((1.0, 1.0), 1), ((0.0, 1.5), 3)],
)
def test_dropping_branches_of_weight_zero_does_not_change_the_sum(scales, count):
    assert len(guidance_branches(*scales)) == count
    np.testing.assert_allclose(guided_by_branches(*scales), guided_by_formula(*scales), atol=2e-5)


def test_the_fully_conditioned_branch_is_last():
    for scales in [(7.5, 1.5), (7.5, 1.0), (2.0, 2.0), (1.0, 1.0)]:
        assert guidance_branches(*scales)[-1][:2] == (True, True)


def test_full_rescale_restores_the_deviation_of_the_conditioned_branch():
    """InsV2V's released code rescales to the unconditional branch instead."""
    assert guided_by_branches(7.5, 1.5, rescale=1.0).std() == pytest.approx(E_VT.std(), rel=1e-5)
    assert guided_by_branches(7.5, 1.5).std() > 2 * E_VT.std()


@pytest.mark.parametrize("scales", [(float("nan"), 1.0), (7.5, float("inf"))])
def test_scales_must_be_finite(scales):
    with pytest.raises(ValueError, match="finite"):
        guidance_branches(*scales)
