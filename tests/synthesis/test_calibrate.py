"""Calibration of the filter on the shapes world: true edits, unedited clips and wrong edits are what they are called, and the table adds up."""

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


def test_wrong_edits_are_edits_and_not_the_one_asked_for():
    rng, same = np.random.default_rng(0), []
    for index in range(150):
        spec = shapes.sample_spec(3, index, kinds=EDIT_KINDS, size=16, frames=2)
        scene = calibrate.wrong(spec, rng)
        assert scene not in (spec.edited, spec.scene) and shapes.render(scene, 16, 2).shape == (
            2,
            16,
            16,
            3,
        )
        if spec.edit.kind in VALUES:
            same.append(
                shapes.edit_towards(spec.scene, shapes.caption(scene)).kind == spec.edit.kind
            )
    assert 0.3 < np.mean(same) < 0.7


def test_each_group_is_judged_by_the_captions_of_the_edit_asked_for():
    seen = []

    def judge(source, edited, before, after):
        seen.append((np.array_equal(source, edited), before, after))
        return CLIPScores(0, 0, 0, 0, 0)

    told = []
    found = calibrate.scores(
        SMALL, judge, lambda clip: clip, lambda done, total: told.append((done, total))
    )
    assert len(found) == 40 and set(found[0]) == set(calibrate.GROUPS) and told[-1] == (40, 40)
    for index in range(40):
        spec = shapes.sample_spec(SMALL.seed, index, kinds=EDIT_KINDS, size=16, frames=2)
        captions = shapes.caption(spec.scene), shapes.caption(apply_edit(spec.scene, spec.edit))
        assert [each[1:] for each in seen[3 * index : 3 * index + 3]] == [captions] * 3 and [
            each[0] for each in seen[3 * index : 3 * index + 2]
        ] == [False, True]


def test_the_table_counts_what_passes():
    good, bad = CLIPScores(0.9, 0.9, 0.9, 0.9, 0.9), CLIPScores(0.9, 0.9, 0.9, 0.1, 0.9)
    text = calibrate.table(
        {
            "true edits": [good] * 9 + [bad],
            "unedited": [bad] * 10,
            "wrong edits": [good] + [bad] * 9,
        },
        FilterConfig(),
    )
    assert (
        "| 10 true edits | 90.0% [60, 98] | 0.900 | 0.900 | 0.900 | 0.820 | 0.900 |" in text
        and "| 10 unedited | 0.0%" in text
    )
    assert text.endswith("precision 90.0% of 10 that pass, recall 90.0%")


@pytest.mark.parametrize("words", [["--count", 39], ["--recall", 1.0], ["--model", "/nowhere"]])
def test_bad_input_is_refused_by_name(words, capsys):
    code, err, _ = run_command(capsys, CalibrateArgs, calibrate.run, *words, "--base", "None")
    assert code == 2 and str(words[1]) in err and "Traceback" not in err
