"""Calibration of the filter on the shapes world: the groups of edits, and the table."""

import numpy as np
import pytest

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.shapes.scene import VALUES, apply_edit
from ivid2vid_jax.evaluation.clip_scores import CLIPScores
from ivid2vid_jax.synthesis import calibrate
from ivid2vid_jax.synthesis.calibrate import CalibrateArgs
from ivid2vid_jax.synthesis.filter import FilterConfig
from ivid2vid_jax.synthesis.sources import EDIT_KINDS
from tests.support.command import run_command

SMALL = CalibrateArgs(count=40, size=16, frames=2, base=None)


def test_wrong_scenes_are_neither_the_source_nor_the_true_edit():
    rng, is_same_kind = np.random.default_rng(0), []
    for index in range(150):
        spec = shapes.sample_spec(3, index, kinds=EDIT_KINDS, size=16, frames=2)
        scene = calibrate.wrong_scene(spec, rng)
        assert scene not in (spec.edited, spec.scene)
        assert shapes.render(scene, 16, 2).shape == (2, 16, 16, 3)
        if spec.edit.kind in VALUES:
            edit = shapes.edit_towards(spec.scene, shapes.caption(scene))
            is_same_kind.append(edit.kind == spec.edit.kind)
    assert 0.3 < np.mean(is_same_kind) < 0.7


def test_all_groups_are_judged_by_the_captions_of_the_true_edit():
    calls, steps = [], []

    def scorer(source, edited, before, after):
        calls.append((np.array_equal(source, edited), before, after))
        return CLIPScores(0, 0, 0, 0, 0)

    clips = calibrate.score_clips(
        SMALL, scorer, lambda clip: clip, lambda done, total: steps.append((done, total))
    )
    assert len(clips) == 40
    assert set(clips[0]) == set(calibrate.GROUPS)
    assert steps[-1] == (40, 40)
    for index in range(40):
        spec = shapes.sample_spec(SMALL.seed, index, kinds=EDIT_KINDS, size=16, frames=2)
        captions = shapes.caption(spec.scene), shapes.caption(apply_edit(spec.scene, spec.edit))
        true, unedited, wrong = calls[3 * index : 3 * index + 3]
        assert true[1:] == unedited[1:] == wrong[1:] == captions
        assert not true[0]
        assert unedited[0]


def test_the_table_counts_what_passes():
    good, bad = CLIPScores(0.9, 0.9, 0.9, 0.9, 0.9), CLIPScores(0.9, 0.9, 0.9, 0.1, 0.9)
    groups = {
        "true edits": [good] * 9 + [bad],
        "unedited": [bad] * 10,
        "wrong edits": [good] + [bad] * 9,
    }
    text = calibrate.table(groups, FilterConfig())
    assert "| 10 true edits | 90.0% [60, 98] | 0.900 | 0.900 | 0.900 | 0.820 | 0.900 |" in text
    assert "| 10 unedited | 0.0%" in text
    assert text.endswith("precision 90.0% of 10 that pass, recall 90.0%")


@pytest.mark.parametrize("arguments", [["--count", 39], ["--recall", 1.0], ["--model", "/nowhere"]])
def test_bad_input_is_refused_by_name(arguments, capsys):
    code, err, _ = run_command(capsys, CalibrateArgs, calibrate.run, *arguments, "--base", "None")
    assert code == 2
    assert str(arguments[1]) in err
    assert "Traceback" not in err
