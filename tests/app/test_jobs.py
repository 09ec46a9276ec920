"""The edits of the app, without its page."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ivid2vid_jax.app import jobs
from ivid2vid_jax.app.jobs import (
    EditRequest,
    open_checked_clip,
    remove_results,
    run_edit,
    to_playable,
)
from ivid2vid_jax.app.limits import AppLimits
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.video import write
from ivid2vid_jax.video.read import open_clip
from tests.support.fake_pipeline import write_noise
from tests.support.media import MEDIA, PLAYLIST_SUFFIXES, PLAYLISTS, faststart


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
        "negative": "",
        "sampler": None,
        "size": None,
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
        (
            dict(frames=7),
            {},
            "in.mp4: has more than 6 frames, the limit; cut it or lower its frame",
        ),
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


@pytest.mark.parametrize("suffix", PLAYLIST_SUFFIXES)
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_an_uploaded_playlist_is_refused(pipe, tmp_path, kind, suffix):
    """The file that it names, by its whole path, is a video that would play."""
    shutil.copy(MEDIA / "flash_clock3600.ts", tmp_path / "secret.ts")
    upload, home = tmp_path / f"list{suffix}", tmp_path / "home"
    upload.write_text(PLAYLISTS[kind].format(tmp_path / "secret.ts"))
    home.mkdir()
    with pytest.raises(UserError, match=r"^list.*can(not)? be read") as caught:
        run_edit(pipe, request(upload), AppLimits(), home, ignore_progress)
    assert str(tmp_path) not in str(caught.value) and not list(home.iterdir())


@pytest.mark.parametrize("name", ["twitter_gif.gif", "alpha.gif", "alpha.apng", "flash_aac.mkv"])
def test_an_upload_of_any_kind_becomes_a_video(tmp_path, name):
    """The frames, at their times, with sound."""
    source = open_clip(MEDIA / name)
    path = to_playable(str(MEDIA / name), AppLimits(), tmp_path)
    clip = open_clip(path)
    times, expected = (np.array([f.time for f in c.frames()], float) for c in (clip, source))
    np.testing.assert_allclose(times, expected - expected[0], atol=0.002)
    assert clip.path.suffix == ".mp4" and clip.has_audio == source.has_audio
    (tmp_path / "list.gif").write_text(PLAYLISTS["concat"].format(MEDIA / "flash.mp4"))
    with pytest.raises(UserError, match=r"^list.gif.* can be read"):
        to_playable(str(tmp_path / "list.gif"), AppLimits(), tmp_path)
    assert path.parent.parent == tmp_path and len(list(tmp_path.glob("upload-*"))) == 1


def test_an_edit_outside_the_embedded_models_world_is_noted(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "domain_warnings", lambda pipe, frames, words: [f"unknown: {words}"])
    clip = write_noise(tmp_path / "in.mp4")
    result = run_edit(pipe, request(clip), AppLimits(), tmp_path, ignore_progress)
    assert result.note == "unknown: make it blue"


def test_sound_that_cannot_be_written_is_noted(pipe, tmp_path, monkeypatch):
    """The trial before the edit passes; then the sound fails, and the edit is kept without it."""

    def fail(self, length):
        if length > 1:
            raise ValueError("no such layout")

    monkeypatch.setattr(write.SoundTrack, "write", fail)
    clip = shutil.copy(MEDIA / "flash.mp4", tmp_path)
    result = run_edit(pipe, request(clip), AppLimits(), tmp_path, ignore_progress)
    assert "edited.mp4: is written without its sound" in result.note
    assert "no such layout" in result.note and str(tmp_path) not in result.note
    edited = open_clip(result.edited)
    assert len(list(edited.frames())) == len(list(open_clip(clip).frames()))
    assert not edited.has_audio and result.pair.is_file() and result.record.is_file()


def test_an_edit_that_cannot_be_written_is_kept_as_frames(pipe, tmp_path, monkeypatch):
    clip, convert, calls = write_noise(tmp_path / "in.mp4"), write.to_yuv420, []

    def fail(pixels):
        calls.append(1)
        if len(calls) > 4:  # two are the trial's
            raise OSError(errno.EIO, "Input/output error")
        return convert(pixels)

    monkeypatch.setattr(write, "to_yuv420", fail)
    with pytest.raises(
        UserError, match=r"edited.mp4: cannot be written .* frames are in"
    ) as caught:
        run_edit(pipe, request(clip), AppLimits(), tmp_path, ignore_progress)
    folder = Path(str(caught.value).rpartition(" ")[2])
    assert folder.parent.parent == tmp_path and len(list(folder.iterdir())) == 6


def test_a_comparison_that_cannot_be_written_is_noted(pipe, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ivid2vid_jax.app.jobs.write_clip", fail)
    clip = write_noise(tmp_path / "in.mp4")
    result = run_edit(pipe, request(clip), AppLimits(), tmp_path, ignore_progress)
    assert result.note == "the comparison with the source could not be written"
    assert result.edited.is_file() and not result.pair.exists()


def test_damage_in_the_middle_is_an_error_that_hides_the_path(pipe, tmp_path):
    clip, home = tmp_path / "in.mp4", tmp_path / "home"
    faststart(MEDIA / "flash.mp4", clip)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    home.mkdir()
    with pytest.raises(UserError, match=r"^in\.mp4: (breaks off|announces)"):
        run_edit(pipe, request(clip), AppLimits(), home, ignore_progress)
    assert not list(home.iterdir())


def test_a_long_clip_is_rejected_before_it_is_decoded(tmp_path, monkeypatch):
    """The header states five minutes."""
    long = write_noise(tmp_path / "long.mp4", frames=300, size=(16, 16), rate=1)
    monkeypatch.setattr("ivid2vid_jax.app.jobs.open_clip", lambda *_, **__: pytest.fail("decoded"))
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
