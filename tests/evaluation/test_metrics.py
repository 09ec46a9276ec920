"""The table of metrics: values beside the source's, CLIP's by hand, reasons where there is no value."""

import dataclasses

import numpy as np
import pytest

from ivid2vid_jax.evaluation import clip_scores
from ivid2vid_jax.evaluation.metrics import (
    METRICS,
    Pair,
    all_pairs,
    measure,
    neighbours,
)
from tests.models.test_clip import VISION_TINY, save_clip
from tests.support import factory
from tests.support.clips import moving, static

PIXELS = [name for name, metric in METRICS.items() if not metric.needs]


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder, factory.TEXT_TINY, VISION_TINY, 40)
    return clip_scores.load_clip(folder)


def test_a_copy_has_no_gap():
    source = moving(2, 1)
    values, reasons = measure(Pair(source, source, np.zeros(source.shape[:3], bool)), PIXELS)
    assert not reasons and set(values) == set(PIXELS)
    for name in ("frame_difference", "flow", "block_matching", "block_motion", "warping_error"):
        assert values[name]["gap"] == 0 and values[name]["edited"] == values[name]["source"] > 0
    assert (
        values["flow_error"] == {"edited": 0}
        and values["psnr"] == values["psnr_outside"] == {"edited": 0}
        and values["ssim"] == {"edited": 1}
    )
    assert METRICS["psnr"].summary(np.array([0.0])) == np.inf and METRICS["psnr"].summary(
        np.array([255.0**2, 0])
    ) == pytest.approx(10 * np.log10(2))


def test_a_frozen_edit_is_below_its_source():
    """Lower alone would call it better: the gap says that it stands still."""
    values, _ = measure(Pair(moving(3, 0), static()), PIXELS)
    assert (
        values["frame_difference"]["edited"] == 0
        and values["frame_difference"]["gap"] == -values["frame_difference"]["source"] < -1
    )
    assert (
        values["flow"]["gap"] < -2
        and values["block_motion"]["gap"] < -2
        and values["flow_error"]["edited"] > 2
        and values["warping_error"]["gap"] > 0
    )


def test_clip_scores_by_hand(tiny_clip):
    source, edited, captions = (
        moving(1, 0, 3),
        moving(1, 0, 3, seed=5),
        ("a red circle", "a blue square"),
    )
    values, reasons = measure(
        Pair(source, edited, captions=captions, clip=tiny_clip),
        [name for name in METRICS if METRICS[name].needs == "clip"],
    )
    images, sources, texts = (
        tiny_clip.images(edited),
        tiny_clip.images(source),
        tiny_clip.texts(captions),
    )
    change, wanted = images - sources, texts[1] - texts[0]
    cosines = images @ images.T
    states = tiny_clip.pooled(edited)
    states = states / np.linalg.norm(states, axis=-1, keepdims=True)
    assert not reasons and values["clip_text"]["edited"] == pytest.approx(
        100 * (images @ texts[1]).mean(), abs=1e-4
    )
    assert values["clip_direction"]["edited"] == pytest.approx(
        (change @ wanted / np.linalg.norm(change, axis=-1) / np.linalg.norm(wanted)).mean(),
        abs=1e-4,
    )
    assert values["clip_frames"]["edited"] == pytest.approx((cosines.sum() - 3) / 6, abs=1e-5)
    assert values["clip_neighbours"]["edited"] == pytest.approx(
        (states[1:] * states[:-1]).sum(-1).mean(), abs=1e-5
    )
    assert values["clip_frames"]["gap"] == pytest.approx(
        values["clip_frames"]["edited"] - values["clip_frames"]["source"]
    )


def test_both_frame_consistencies():
    """Opposite neighbours: -1 over consecutive pairs, which counts as 0; -1/3 over all pairs of four."""
    rows = np.array([[1.0, 0], [-2, 0], [3, 0], [-1, 0]])
    assert (
        neighbours(rows) == 0
        and all_pairs(rows) == pytest.approx(-1 / 3)
        and all_pairs(np.abs(rows)) == pytest.approx(1) == neighbours(np.abs(rows))
    )


def test_states_before_the_projection_are_transformers_pooler_output(tmp_path):
    import torch

    module = save_clip(tmp_path, factory.TEXT_TINY, VISION_TINY, 40)
    found, frames = clip_scores.load_clip(tmp_path), static(2, 24)
    mean, std = (
        np.array(found.folder.preprocessor[name], np.float32)
        for name in ("image_mean", "image_std")
    )
    pixels = torch.from_numpy(np.moveaxis((frames / np.float32(255) - mean) / std, -1, 1).copy())
    with torch.no_grad():
        wanted = module.vision_model(pixel_values=pixels).pooler_output.numpy()
    np.testing.assert_allclose(found.pooled(frames), wanted, atol=2e-5)
    np.testing.assert_allclose(
        found.projected(found.pooled(frames)), found.images(frames), atol=1e-6
    )


def test_float32_is_multiplied_as_float32(tiny_clip):
    """Accelerators would round it to fewer bits: every product of the programs asks for all of them."""
    ids = np.zeros((32, tiny_clip.folder.text_length), np.int32)
    text = tiny_clip._embed_texts.lower(tiny_clip.params, ids).as_text()
    assert text.count("dot_general") > 5 and text.count(
        "precision = [HIGHEST, HIGHEST]"
    ) == text.count("stablehlo.dot_general")


def test_what_has_no_value_says_why(tiny_clip):
    still = static(1)
    values, reasons = measure(
        Pair(still, still, clip=tiny_clip), list(PIXELS) + ["clip_text", "clip_direction"]
    )
    assert (
        set(values) == {"psnr", "ssim"}
        and "1 frame has no motion" in reasons["flow"]
        and reasons["psnr_outside"] == "the set gives no mask of the edit"
    )
    assert reasons["clip_text"] == "the set gives no caption of the edited clip"
    same = Pair(still, still, captions=("a", "a"), clip=tiny_clip)
    assert (
        "the captions of both clips are the same"
        in measure(same, ["clip_direction"])[1]["clip_direction"]
    )


def test_features_that_are_not_finite_are_no_value(tiny_clip):
    broken = dataclasses.replace(tiny_clip)
    broken.__dict__["_pool_images"] = lambda params, batch: np.full((len(batch), 4), np.nan)
    pair = Pair(static(2), static(2), clip=broken)
    values, reasons = measure(pair, ["frame_difference", "clip_neighbours"])
    assert (
        values["frame_difference"]["edited"] == 0
        and "CLIP's features of 4 of 4 frames are not finite" in reasons["clip_neighbours"]
    )


def test_every_metric_is_defined():
    for metric in METRICS.values():
        assert (
            metric.title
            and metric.definition
            and metric.reference
            and metric.better in ("higher", "lower", "near the source's")
        )
