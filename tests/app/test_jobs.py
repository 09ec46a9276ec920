"""The edits of the app, without its page."""

import json
from pathlib import Path

import numpy as np
import pytest

from ivid2vid_jax.app.jobs import (
    EditRequest,
    open_checked_clip,
    remove_results,
    run_edit,
)
from ivid2vid_jax.app.limits import AppLimits
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.video.read import open_clip
from tests.support.fake_pipeline import write_noise


def ignore_progress(*_):
    pass


def request(clip, **changes) -> EditRequest:
    settings = dict(instruction="make it blue", text_scale=5.0, video_scale=1.5, steps=2, seed=0)
    return EditRequest(**dict(clip=str(clip)) | settings | changes)


def test_an_edit_writes_its_results_to_a_new_folder(pipe, tmp_path):
    reports, clip = [], write_noise(tmp_path / "in.mp4")
    result = run_edit(
        pipe, request(clip), AppLimits(), tmp_path, lambda *report: reports.append(report)
    )
    source, edited, pair = (
        np.stack([frame.pixels for frame in open_clip(path).frames()])
        for path in (clip, result.edited, result.pair)
    )
    assert edited.shape == (6, 32, 48, 3) and pair.shape == (6, 32, 96, 3)
    assert np.abs(255 - source.astype(int) - edited).mean() < 20
    assert {path.name for path in result.edited.parent.iterdir()} == {
        "source.mp4",
        "edited.mp4",
        "side-by-side.mp4",
        "record.json",
    }
    record = json.loads(result.record.read_text())
    assert record["request"] == {
        "clip": "in.mp4",
        "instruction": "make it blue",
        "text_scale": 5.0,
        "video_scale": 1.5,
        "steps": 2,
        "seed": 0,
    }
    assert record["settings"]["sampler"] == "ddim" and record["frames"] == 6
    assert record["weights"] and record["versions"]["jax"]
    assert {("sampling", 2, 2), ("encoding", 6, None), ("writing", 6, 6)} <= set(reports)


def test_an_edit_can_be_repeated_after_the_upload_is_deleted(pipe, tmp_path):
    clip = write_noise(tmp_path / "in.mp4")
    first = run_edit(pipe, request(clip), AppLimits(), tmp_path, ignore_progress)
    Path(clip).unlink()
    second = run_edit(pipe, first.request, AppLimits(), tmp_path, ignore_progress)
    assert second.edited != first.edited
    assert second.edited.read_bytes() == first.edited.read_bytes()
    remove_results([first, second])
    assert list(tmp_path.iterdir()) == []


SMALL = AppLimits(seconds=1, frames=6, side=48, megabytes=1, steps=4)


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        (dict(frames=10), {}, "the clip has 1.2 s, the limit is 1; cut it"),
        (dict(frames=7), {}, "the clip has more than 6 frames, the limit"),
        (
            dict(size=(32, 64)),
            {},
            "the frames are 64x32, the limit is 48 pixels a side; scale the clip down",
        ),
        (dict(frames=1), {}, "in.mp4: has one frame; a clip needs two"),
        ({}, dict(steps=5), "steps 5 must be between 1 and 4"),
        ({}, dict(steps=0), "steps 0 must be between 1 and 4"),
        ({}, dict(instruction="  "), "the instruction is empty"),
        ({}, dict(instruction="a" * 501), "the instruction has 501 characters, the limit is 500"),
        ({}, dict(text_scale=-1.0), "text_scale -1.0 must be between 0 and 1000"),
        ({}, dict(seed=-1), "seed -1 must be between"),
        ({}, dict(clip=""), "no clip: upload one or pick a sample"),
    ],
)
def test_a_request_beyond_a_limit_is_an_error_and_leaves_no_files(
    pipe, tmp_path, source, changes, message
):
    clip, home = write_noise(tmp_path / "in.mp4", **source), tmp_path / "home"
    home.mkdir()
    with pytest.raises(UserError, match=message):
        run_edit(pipe, request(**dict(clip=clip) | changes), SMALL, home, ignore_progress)
    assert list(home.iterdir()) == []


def test_an_unreadable_file_is_an_error_that_hides_its_path(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("these are my notes\n" * 100)
    with pytest.raises(UserError, match=r"^notes\.mp4: is not a video that can be read"):
        open_checked_clip(str(text), AppLimits())
    with (tmp_path / "big.mp4").open("wb") as file:
        file.truncate(3 * 2**20)
    with pytest.raises(UserError, match="the file has 3 MB, the limit is 2; cut or compress it"):
        open_checked_clip(str(tmp_path / "big.mp4"), AppLimits(megabytes=2))


def test_a_long_clip_is_rejected_before_it_is_decoded(tmp_path, monkeypatch):
    """The header states five minutes."""
    long = write_noise(tmp_path / "long.mp4", frames=300, size=(16, 16), rate=1)
    monkeypatch.setattr("ivid2vid_jax.app.jobs.open_clip", lambda path: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"the clip has 300\.0 s, the limit is 20; cut it"):
        open_checked_clip(long, AppLimits())


def test_a_clip_without_a_stated_length_is_checked_while_it_is_decoded(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("ivid2vid_jax.app.jobs.stated_duration", lambda file: None)
    with pytest.raises(UserError, match="s, the limit is 1; cut it"):
        run_edit(
            pipe,
            request(write_noise(tmp_path / "in.mp4", frames=12)),
            AppLimits(seconds=1),
            tmp_path,
            ignore_progress,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
