"""The CLIP filter: scores of known embeddings, thresholds, the best per prompt, calibration."""

import dataclasses

import numpy as np
import pytest

from ivid2vid_jax.evaluation.clip_scores import CLIPScores, clip_scorer, clip_similarities
from ivid2vid_jax.synthesis.filter import (
    FilterConfig,
    calibrate_thresholds,
    keep_best,
    rejection_reason,
)
from ivid2vid_jax.synthesis.manifest import REJECTED, Manifest, criteria

E = np.eye(4)
GOOD = CLIPScores(0.6, 0.3, 0.3, 0.3, 0.9)


def test_similarities_of_known_angles():
    """Frames turn from axis 0 to axis 1 and so do the captions; lengths do not matter."""
    half = (E[0] + E[1]) / np.sqrt(2)
    scores = clip_similarities(
        3 * np.stack([E[0], E[0]]), np.stack([2 * E[1], half]), 5 * np.stack([E[0], E[1]])
    )
    root = np.sqrt(0.5)
    turn = (half - E[0]) / np.linalg.norm(half - E[0]) @ ((E[1] - E[0]) / np.sqrt(2))
    expected = (root / 2, 1.0, (1 + root) / 2, (1 + turn) / 2, root)
    assert dataclasses.astuple(scores) == pytest.approx(expected)


def test_an_unedited_clip_has_direction_zero():
    assert clip_similarities(E[:2], E[:2], E[:2]).direction == 0
    assert clip_similarities(E[:1], E[1:2], E[:2]).consistency == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        (dict(image=0.5), ""),
        (dict(image=0.49), "image 0.490 below 0.5"),
        (dict(text_source=0.1), "text_source 0.100 below 0.2"),
        (
            dict(text_edited=0.1, direction=0.0),
            "text_edited 0.100 below 0.2; direction 0.000 below 0.2",
        ),
        (dict(consistency=-0.1), "consistency -0.100 below 0.0"),
        (dict(direction=float("nan")), "direction nan below 0.2"),
    ],
)
def test_thresholds(change, reason):
    assert rejection_reason(dataclasses.replace(GOOD, **change), FilterConfig()) == reason


def test_the_best_per_prompt_do_not_depend_on_the_order():
    lines = [
        {"id": f"{prompt}{i}", "prompt": prompt, "scores": {"direction": direction}}
        for prompt in "ab"
        for i, direction in enumerate((0.3, 0.5, 0.5, 0.2))
    ]
    for ordered in (lines, lines[::-1]):
        kept, dropped = keep_best(ordered, 2)
        assert kept == {"a1", "a2", "b1", "b2"}
        assert set(dropped) == {"a0", "a3", "b0", "b3"}
        assert "2 edits" in dropped["a0"]


def test_calibration_passes_true_edits_and_rejects_false_ones():
    rng = np.random.default_rng(0)

    def sample_scores(direction):
        means = (0.8, 0.4, 0.4, direction, 0.9)
        return [CLIPScores(*(rng.normal(mean, 0.05) for mean in means)) for _ in range(200)]

    true, false = sample_scores(0.5), sample_scores(0.1)
    config = calibrate_thresholds(true, false, FilterConfig(), recall=0.98)
    passed_true, passed_false = (
        np.mean([not rejection_reason(scores, config) for scores in group])
        for group in (true, false)
    )
    assert passed_true > 0.9
    assert passed_false < 0.01
    with pytest.raises(ValueError, match="rejects no false edit"):
        calibrate_thresholds(true, [CLIPScores(1, 1, 1, 1, 1)] * 20, FilterConfig())
    with pytest.raises(ValueError, match="too few"):
        calibrate_thresholds(true[:5], false, FilterConfig())


def test_the_clip_model_is_called_once_per_clip():
    batches = []

    class FakeEmbedder:
        def images(self, frames):
            batches.append(len(frames))
            return np.stack([E[0 if frame.mean() < 128 else 1] for frame in frames])

        def texts(self, texts):
            return np.stack([E[0 if "dark" in text else 1] for text in texts])

    dark, light = np.zeros((3, 8, 8, 3), np.uint8), np.full((3, 8, 8, 3), 255, np.uint8)
    scores = clip_scorer(FakeEmbedder())(dark, light, "a dark clip", "a light clip")
    assert scores == CLIPScores(0.0, 1.0, 1.0, pytest.approx(1.0), 1.0)
    assert batches == [6]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (
            "image 0.312 below 0.5; direction -0.100 below 0.2",
            ["image below 0.5", "direction below 0.2"],
        ),
        ("64x48 pixels: the shorter side is below 65", ["the shorter side is below 65"]),
        (
            "the shot ends after 3 of 8 frames; the shot ends after 5 of 8 frames; nothing moves",
            ["the shot ends before 8 frames", "nothing moves"],
        ),
        ("nearly the same as 'make it; blue'", ["nearly the same as another"]),
        ("/videos/a.mp4: has no frame", ["has no frame"]),
    ],
)
def test_reasons_are_grouped_by_criterion(reason, expected):
    assert criteria(reason) == expected


def test_an_item_with_two_missed_criteria_is_one_rejected_item(tmp_path):
    manifest = Manifest(tmp_path, "scores")
    for i in range(3):
        reason = f"image 0.{i}00 below 0.5" + "; direction 0.100 below 0.2" * (i == 0)
        manifest.add(f"edit{i}", "1", REJECTED, reason=reason)
    fingerprints = {f"edit{i}": "1" for i in range(4)}
    assert manifest.reasons(fingerprints) == {
        "rejected: image below 0.5": 3,
        "rejected: direction below 0.2": 1,
    }
    assert manifest.count(fingerprints, REJECTED) == 3
