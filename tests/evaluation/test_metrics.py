"""The table of metrics: values and gaps, CLIP scores by hand, reasons for missing values."""

import dataclasses

import numpy as np
import pytest

from ivid2vid_jax.evaluation import clip_scores
from ivid2vid_jax.evaluation.metrics import METRICS, Pair, all_pairs, measure, neighbours
from ivid2vid_jax.models import layers
from tests.models.test_clip import VISION_TINY, save_clip
from tests.support import factory
from tests.support.clips import moving, static
from tests.support.references import torch

PIXEL_METRICS = [name for name, metric in METRICS.items() if not metric.needs]
CLIP_METRICS = [name for name, metric in METRICS.items() if metric.needs == "clip"]


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder, factory.TEXT_TINY, VISION_TINY, 40)
    return clip_scores.load_clip(folder)


def test_a_copy_has_no_gap():
    source = moving(2, 1)
    mask = np.zeros(source.shape[:3], bool)
    values, reasons = measure(Pair(source, source, mask, source), PIXEL_METRICS)
    assert not reasons and set(values) == set(PIXEL_METRICS)
    for name in ("frame_difference", "flow", "block_matching", "block_motion", "warping_error"):
        assert values[name]["gap"] == 0 and values[name]["edited"] == values[name]["source"] > 0
    assert values["flow_error"] == values["psnr"] == values["psnr_outside"] == {"edited": 0}
    assert values["ssim"] == {"edited": 1}
    psnr = METRICS["psnr"].summary
    assert psnr(np.array([0.0])) == np.inf
    assert psnr(np.array([255.0**2, 0])) == pytest.approx(10 * np.log10(2))


def test_a_frozen_edit_is_below_its_source():
    """ "Lower is better" would reward it; the gap shows that it does not move."""
    values, _ = measure(Pair(moving(3, 0), static()), PIXEL_METRICS)
    difference = values["frame_difference"]
    assert difference["edited"] == 0 and difference["gap"] == -difference["source"] < -1
    assert values["flow"]["gap"] < -2 and values["block_motion"]["gap"] < -2
    assert values["flow_error"]["edited"] > 2 and values["warping_error"]["gap"] > 0


def test_clip_scores_by_hand(tiny_clip):
    source, edited = moving(1, 0, 3), moving(1, 0, 3, seed=5)
    captions = ("a red circle", "a blue square")
    values, reasons = measure(Pair(source, edited, captions=captions, clip=tiny_clip), CLIP_METRICS)
    assert not reasons
    images, sources = tiny_clip.images(edited), tiny_clip.images(source)
    texts = tiny_clip.texts(captions)
    change, text_change = images - sources, texts[1] - texts[0]
    norms = np.linalg.norm(change, axis=-1) * np.linalg.norm(text_change)
    cosines = images @ images.T
    states = tiny_clip.pooled(edited)
    states = states / np.linalg.norm(states, axis=-1, keepdims=True)

    def edited_value(name, expected, tolerance):
        assert values[name]["edited"] == pytest.approx(expected, abs=tolerance)

    edited_value("clip_text", 100 * (images @ texts[1]).mean(), 1e-4)
    edited_value("clip_direction", (change @ text_change / norms).mean(), 1e-4)
    edited_value("clip_frames", (cosines.sum() - 3) / 6, 1e-5)
    edited_value("clip_neighbours", (states[1:] * states[:-1]).sum(-1).mean(), 1e-5)
    frames = values["clip_frames"]
    assert frames["gap"] == pytest.approx(frames["edited"] - frames["source"])


def test_both_frame_consistencies():
    """Opposite consecutive frames: -1, which counts as 0; -1/3 over all pairs of four."""
    rows = np.array([[1.0, 0], [-2, 0], [3, 0], [-1, 0]])
    assert neighbours(rows) == 0 and all_pairs(rows) == pytest.approx(-1 / 3)
    assert all_pairs(np.abs(rows)) == pytest.approx(1) == neighbours(np.abs(rows))


def test_features_before_the_projection_are_transformers_pooler_output(tmp_path):
    module = save_clip(tmp_path, factory.TEXT_TINY, VISION_TINY, 40)
    clip, frames = clip_scores.load_clip(tmp_path), static(2, 24)
    mean, std = (
        np.array(clip.folder.preprocessor[name], np.float32) for name in ("image_mean", "image_std")
    )
    pixels = torch.from_numpy(np.moveaxis((frames / np.float32(255) - mean) / std, -1, 1).copy())
    with torch.no_grad():
        expected = module.vision_model(pixel_values=pixels).pooler_output.numpy()
    pooled = clip.pooled(frames)
    np.testing.assert_allclose(pooled, expected, atol=2e-5)
    np.testing.assert_allclose(clip.projected(pooled), clip.images(frames), atol=1e-6)


def test_matrix_products_have_full_float32_precision(tiny_clip, monkeypatch):
    """Accelerators reduce it by default: every product of the program asks for it."""
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    tiny_clip = dataclasses.replace(tiny_clip)  # nothing traced yet
    ids = np.zeros((32, tiny_clip.folder.text_length), np.int32)
    text = tiny_clip._embed_texts.lower(tiny_clip.params, ids).as_text()
    assert text.count("dot_general") > 5
    assert text.count("precision = [HIGHEST, HIGHEST]") == text.count("stablehlo.dot_general")


def test_missing_values_have_a_reason(tiny_clip):
    still = static(1)
    names = [*PIXEL_METRICS, "clip_text", "clip_direction"]
    values, reasons = measure(Pair(still, still, clip=tiny_clip), names)
    assert set(values) == {"psnr", "ssim"} and "1 frame has no motion" in reasons["flow"]
    assert reasons["psnr_outside"] == "the set gives no mask of the edit"
    assert reasons["clip_text"] == "the set gives no caption of the edited clip"
    same = Pair(still, still, captions=("a", "a"), clip=tiny_clip)
    _, reasons = measure(same, ["clip_direction"])
    assert "the captions of both clips are the same" in reasons["clip_direction"]


def test_features_that_are_not_finite_give_no_value(tiny_clip):
    broken = dataclasses.replace(tiny_clip)
    broken.__dict__["_pool_images"] = lambda params, batch: np.full((len(batch), 4), np.nan)
    pair = Pair(static(2), static(2), clip=broken)
    values, reasons = measure(pair, ["frame_difference", "clip_neighbours"])
    assert values["frame_difference"]["edited"] == 0
    assert "CLIP's features of 4 of 4 frames are not finite" in reasons["clip_neighbours"]


def test_every_metric_is_defined():
    for metric in METRICS.values():
        assert metric.title and metric.definition and metric.reference
        assert metric.better in ("higher", "lower", "near the source's")
