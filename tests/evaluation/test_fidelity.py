"""PSNR and SSIM against scikit-image, and outside a mask."""

import numpy as np
import pytest
from skimage import metrics

from ivid2vid_jax.evaluation import fidelity
from ivid2vid_jax.utils.errors import UserError
from tests.support.clips import moving


@pytest.fixture
def clips():
    source = moving(1, 2, frames=3, size=40)
    noise = np.random.default_rng(0).normal(0, 12, source.shape)
    return source, np.clip(source + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def mask(clips):
    mask = np.zeros(clips[0].shape[:3], bool)
    mask[:, 10:25, 12:30] = True
    return mask


def test_psnr_and_ssim_equal_scikit_image(clips):
    source, edited = clips
    wanted = np.mean(
        [
            metrics.structural_similarity(
                a, b, channel_axis=-1, gaussian_weights=True, use_sample_covariance=False
            )
            for a, b in zip(*clips, strict=True)
        ]
    )
    assert fidelity.ssim(source, edited) == pytest.approx(wanted, abs=1e-7) and 0.1 < wanted < 0.95
    assert fidelity.psnr(np.array([fidelity.squared_error(source, edited)])) == pytest.approx(
        metrics.peak_signal_noise_ratio(source, edited), abs=1e-4
    )


def test_the_same_clip_is_exact(clips):
    source, _ = clips
    assert (
        fidelity.ssim(source, source) == 1
        and fidelity.psnr(np.array([fidelity.squared_error(source, source)])) == np.inf
    )


def test_what_the_mask_covers_does_not_count(clips, mask):
    source, edited = clips
    within = np.where(mask[..., None], edited, source)
    assert (
        fidelity.squared_error(source, within, mask) == 0
        and fidelity.ssim(source, within, mask) == 1
        and fidelity.ssim(source, within) < 1
    )
    other = np.where(mask[..., None], 255 - edited, edited)
    assert fidelity.ssim(source, other, mask) == fidelity.ssim(source, edited, mask) < 1
    assert fidelity.squared_error(source, other, mask) == fidelity.squared_error(
        source, edited, mask
    )
    assert fidelity.squared_error(source, edited, mask) == pytest.approx(
        np.square(source.astype(float) - edited)[~mask].mean()
    )


def test_an_empty_mask_is_none(clips, mask):
    assert fidelity.ssim(*clips, np.zeros_like(mask)) == pytest.approx(fidelity.ssim(*clips))


def test_bad_input_is_named(clips, mask):
    with pytest.raises(UserError, match="8x8 are too small for SSIM: at least 11"):
        fidelity.ssim(*(clip[:, :8, :8] for clip in clips))
    for measure in (fidelity.squared_error, fidelity.ssim):
        with pytest.raises(UserError, match="the mask covers the whole clip"):
            measure(*clips, np.ones_like(mask))
