"""PSNR and SSIM against scikit-image, and outside a mask."""

import numpy as np
import pytest
from skimage import metrics

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation.fidelity import psnr, squared_error, ssim
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
    options = dict(channel_axis=-1, gaussian_weights=True, use_sample_covariance=False)
    expected = np.mean(
        [metrics.structural_similarity(a, b, **options) for a, b in zip(*clips, strict=True)]
    )
    assert ssim(source, edited) == pytest.approx(expected, abs=1e-7) and 0.1 < expected < 0.95
    assert psnr(np.array([squared_error(source, edited)])) == pytest.approx(
        metrics.peak_signal_noise_ratio(source, edited), abs=1e-4
    )


def test_the_same_clip_is_exact(clips):
    source, _ = clips
    assert ssim(source, source) == 1
    assert psnr(np.array([squared_error(source, source)])) == np.inf


def test_pixels_inside_the_mask_do_not_count(clips, mask):
    source, edited = clips
    inside = np.where(mask[..., None], edited, source)
    assert squared_error(source, inside, mask) == 0
    assert ssim(source, inside, mask) == 1 and ssim(source, inside) < 1
    other = np.where(mask[..., None], 255 - edited, edited)
    assert ssim(source, other, mask) == ssim(source, edited, mask) < 1
    error = squared_error(source, edited, mask)
    assert squared_error(source, other, mask) == error
    assert error == pytest.approx(np.square(source.astype(float) - edited)[~mask].mean())


def test_an_empty_mask_is_none(clips, mask):
    assert ssim(*clips, np.zeros_like(mask)) == pytest.approx(ssim(*clips))


def test_errors_of_bad_input(clips, mask):
    with pytest.raises(UserError, match="8x8 are too small for SSIM: at least 11"):
        ssim(*(clip[:, :8, :8] for clip in clips))
    for measure in (squared_error, ssim):
        with pytest.raises(UserError, match="the mask covers the whole clip"):
            measure(*clips, np.ones_like(mask))
