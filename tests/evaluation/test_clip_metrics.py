"""Measuring clips one by one: resuming, shards, intervals, FID and KID in parts."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import linalg

from ivid2vid_jax.data.clip_pairs import ClipSettings
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation import clip_metrics, evaluate_clips, inception
from ivid2vid_jax.evaluation.clip_metrics import ClipEvaluator, ClipItem
from ivid2vid_jax.evaluation.clip_sets import EvaluationTask
from ivid2vid_jax.evaluation.metrics import measure
from tests.evaluation.edited_set import (
    EDITS,
    SOURCE,
    Features,
    command,
    read_report,
    replace_in,
    save,
)
from tests.support.clips import static


def test_a_stopped_run_measures_only_what_is_missing(world, words, capsys, monkeypatch):
    _, edited, output = world
    assert command(capsys, *words, "--metrics", "ssim")[0] == 0
    items = output / "items-0.jsonl"
    before = items.read_text()
    items.write_text(before[:-30])  # killed while writing the last line
    calls = []

    def logged_measure(pair, names):
        calls.append(tuple(names))
        return measure(pair, names)

    monkeypatch.setattr(clip_metrics, "measure", logged_measure)
    assert command(capsys, *words, "--metrics", "ssim")[0] == 0
    assert calls == [("ssim",)] and items.read_text() == before
    assert command(capsys, *words, "--metrics", "ssim", "psnr")[0] == 0
    assert calls[1:] == [("psnr",)] * 3
    save(edited / "new", static(3, 32))
    (edited / "clip1").rename(edited / "old")
    (edited / "new").rename(edited / "clip1")  # another edit
    assert command(capsys, *words, "--metrics", "ssim", "psnr")[0] == 0
    assert calls[4:] == [("ssim", "psnr")]
    code, err, _ = command(capsys, *words, "--metrics", "ssim", "--clip-size", 16)
    assert code == 2 and "another evaluation (clips differ)" in err


def test_items_of_earlier_versions_are_read(world, words, capsys, monkeypatch):
    """They call the fingerprint "mark"."""
    output = world[2]
    assert command(capsys, *words, "--metrics", "ssim")[0] == 0
    items = output / "items-0.jsonl"
    replace_in(items, '"fingerprint"', '"mark"')
    before = items.read_text()
    monkeypatch.setattr(clip_metrics, "measure", pytest.fail)
    assert command(capsys, *words, "--metrics", "ssim")[0] == 0 and items.read_text() == before
    assert read_report(output)["metrics"]["ssim"]["numbers"]["clips"] == 3


def test_shards_add_up_to_the_whole(world, words, capsys):
    output = world[2]
    metrics = ("--metrics", "ssim", "flow")
    for shard in ("0/2", "1/2"):
        code, _, out = command(capsys, *words, *metrics, "--shard", shard)
        assert code == 0
    assert "evaluated 3 of 3" in out and len(list(output.glob("items-*.jsonl"))) == 2
    whole = output.with_name("whole")
    assert command(capsys, *words, *metrics, "--output", whole)[0] == 0
    assert read_report(output)["metrics"] == read_report(whole)["metrics"]


def test_concurrent_shards_write_the_whole_report(world, words, capsys, monkeypatch):
    """Another process finishes a clip while this one measures, and one while this one writes."""
    output = world[2]
    write = evaluate_clips.report.write
    values = {"ssim": {"edited": 0.5}}

    def finish_elsewhere(number):
        item = ClipItem(f"clip{number}", "", (3, 32, 32), values)
        with (output / f"items-{number}.jsonl").open("a") as out:
            out.write(json.dumps(dataclasses.asdict(item)) + "\n")

    def measure_meanwhile(pair, names):
        finish_elsewhere(1)
        return values, {}

    def write_meanwhile(*args):
        write(*args)
        if not (output / "items-2.jsonl").exists():
            finish_elsewhere(2)

    monkeypatch.setattr(clip_metrics, "measure", measure_meanwhile)
    monkeypatch.setattr(evaluate_clips.report, "write", write_meanwhile)
    assert command(capsys, *words, "--metrics", "ssim", "--shard", "0/3")[0] == 0
    assert read_report(output)["metrics"]["ssim"]["numbers"]["clips"] == 3


def test_a_changed_caption_is_measured_again(world, words, capsys, monkeypatch):
    calls = []

    def logged_measure(pair, names):
        calls.append(pair.captions)
        return measure(pair, names)

    monkeypatch.setattr(clip_metrics, "measure", logged_measure)
    assert command(capsys, *words, "--metrics", "ssim")[0] == 0
    replace_in(world[0] / "instructions.csv", ",a,b", ",a,c")
    assert command(capsys, *words, "--metrics", "ssim")[0] == 0 and calls[3:] == [("a", "c")]


def test_fid_and_kid_in_parts(world, words, capsys, fake_inception):
    data, _, output = world
    metrics = ("--inception", data / "w.pth", "--metrics", "fid", "kid")
    assert command(capsys, *words, *metrics)[0] == 0 and Features.calls == 6
    fid, kid = (read_report(output)["metrics"][name] for name in ("fid", "kid"))
    edited = np.concatenate([Features().features(edit) for edit in EDITS])
    source = np.concatenate([Features().features(SOURCE) for _ in EDITS])
    A, B = (np.cov(rows.astype(float), rowvar=False) for rows in (edited, source))
    expected = (
        np.square(edited.mean(0, float) - source.mean(0, float)).sum()
        + np.trace(A + B)
        - 2 * np.sqrt(np.maximum(linalg.eigvals(A @ B).real, 0)).sum()
    )
    assert fid["numbers"]["edited"] == pytest.approx(expected, rel=1e-3)
    assert fid["weights"] == {"w.pth": "0" * 64}
    assert "9 frames are too few for the rank of a 12 x 12 covariance" in fid["note"]
    assert kid["numbers"]["edited_frames"] == 9
    Features.calls = 0
    assert command(capsys, *words, *metrics)[0] == 0 and Features.calls == 0, "features are stored"


def test_a_source_of_several_edits_counts_once(world):
    data, edited, output = world
    save(edited / "again", static(3, 32))
    tasks = [EvaluationTask(id, data / "clip0", "x") for id in ("clip0", "again")]
    evaluator = ClipEvaluator(("fid",), edited, output, ClipSettings(), None, Features())
    items = list(evaluator.run(tasks).values())
    kid = clip_metrics.distances(items, output, ["kid"])[0]["kid"]
    assert (kid["edited_frames"], kid["source_frames"]) == (6, 3)
    assert kid["standard_error_of_subsets"] >= 0


def test_edits_of_one_source_are_no_independent_clips():
    """Four sources with ten equal edits each: as uncertain as four clips; one has no interval."""
    values = np.repeat([1.0, 2, 3, 4], 10)
    items = [
        ClipItem(str(i), "", (1, 8, 8), {"ssim": {"edited": value}})
        for i, value in enumerate(values)
    ]
    sources = {item.id: f"clip{i // 10}" for i, item in enumerate(items)}

    def summary(items):
        return clip_metrics.summary(items, ["ssim"], sources)["ssim"]

    forty, four = summary(items), summary(items[::10])
    assert (forty["clips"], forty["sources"], forty["frames"]) == (40, 4, 40)
    assert forty["edited"] == four["edited"] and forty["edited"]["mean"] == 2.5
    low, high = forty["edited"]["interval"]
    assert low < 1.6 and high > 3.4
    assert summary(items[:10])["edited"]["interval"] is None


def test_features_that_are_not_finite_leave_the_rest(world, words, capsys, monkeypatch):
    message = "Inception's features of 3 of 3 frames are not finite"

    class Broken(Features):
        def features(self, frames):
            raise UserError(message)

    data, _, output = world
    monkeypatch.setattr(inception, "Inception", lambda file: Broken())
    metrics = ("--inception", data / "w.pth", "--metrics", "fid", "kid", "ssim")
    code, _, out = command(capsys, *words, *metrics)
    fid, ssim = (read_report(output)["metrics"][name] for name in ("fid", "ssim"))
    assert code == 0 and "evaluated 3 of 3" in out
    assert fid["without"] == {message: 3} and fid["note"] == "no clip has features"
    assert ssim["numbers"]["clips"] == 3
