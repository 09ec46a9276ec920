"""The CLIP filter on embeddings whose similarities are known, its thresholds, the best of a prompt, calibration."""

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

E = np.eye(4)
GOOD = CLIPScores(0.6, 0.3, 0.3, 0.3, 0.9)


def test_known_angles():
    """Frames turn from axis 0 to axis 1 while the captions do; lengths do not matter."""
    half = (E[0] + E[1]) / np.sqrt(2)
    found = clip_similarities(
        3 * np.stack([E[0], E[0]]), np.stack([2 * E[1], half]), 5 * np.stack([E[0], E[1]])
    )
    root = np.sqrt(0.5)
    turn = (half - E[0]) / np.linalg.norm(half - E[0]) @ ((E[1] - E[0]) / np.sqrt(2))
    assert dataclasses.astuple(found) == pytest.approx(
        (root / 2, 1.0, (1 + root) / 2, (1 + turn) / 2, root)
    )


def test_nothing_changed_has_no_direction():
    assert (
        clip_similarities(E[:2], E[:2], E[:2]).direction == 0
        and clip_similarities(E[:1], E[1:2], E[:2]).consistency == 1
    )


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


def test_the_best_of_a_prompt_are_kept_in_any_order():
    lines = [
        {"id": f"{prompt}{i}", "prompt": prompt, "scores": {"direction": d}}
        for prompt in "ab"
        for i, d in enumerate((0.3, 0.5, 0.5, 0.2))
    ]
    for order in (lines, lines[::-1]):
        kept, dropped = keep_best(order, 2)
        assert (
            kept == {"a1", "a2", "b1", "b2"}
            and set(dropped) == {"a0", "a3", "b0", "b3"}
            and "2 edits" in dropped["a0"]
        )


def test_calibration_keeps_true_edits_and_turns_false_ones_away():
    rng = np.random.default_rng(0)

    def drawn(direction):
        return [
            CLIPScores(*(rng.normal(mean, 0.05) for mean in (0.8, 0.4, 0.4, direction, 0.9)))
            for _ in range(200)
        ]

    true, false = drawn(0.5), drawn(0.1)
    config = calibrate_thresholds(true, false, FilterConfig(), recall=0.98)
    passed = [
        np.mean([not rejection_reason(each, config) for each in group]) for group in (true, false)
    ]
    assert passed[0] > 0.9 and passed[1] < 0.01
    with pytest.raises(ValueError, match="tells no false edit"):
        calibrate_thresholds(
            true,
            [
                dataclasses.replace(
                    GOOD, image=1, text_source=1, text_edited=1, direction=1, consistency=1
                )
            ]
            * 20,
            FilterConfig(),
        )
    with pytest.raises(ValueError, match="too few"):
        calibrate_thresholds(true[:5], false, FilterConfig())


def test_a_clip_model_is_asked_once_a_clip():
    asked = []

    class Fake:
        def images(self, frames):
            asked.append(len(frames))
            return np.stack([E[0 if frame.mean() < 128 else 1] for frame in frames])

        def texts(self, texts):
            return np.stack([E[0 if "dark" in text else 1] for text in texts])

    dark, light = np.zeros((3, 8, 8, 3), np.uint8), np.full((3, 8, 8, 3), 255, np.uint8)
    assert clip_scorer(Fake())(dark, light, "a dark clip", "a light clip") == CLIPScores(
        0.0, 1.0, 1.0, pytest.approx(1.0), 1.0
    ) and asked == [6]
