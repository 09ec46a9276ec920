"""Several edits in one command."""

import json
from pathlib import Path

import pytest

from ivid2vid_jax import assets
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.inference.edit_jobs import expand_clips, plan_jobs


@pytest.fixture
def clips(tmp_path):
    for name in ("b10.mp4", "b2.MOV", "a.webm", "notes.txt", ".hidden.mp4"):
        (tmp_path / "clips" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "clips" / name).write_bytes(b"x")
    return tmp_path / "clips"


def names(paths):
    return [path.name for path in paths]


def test_folders_and_patterns_name_their_clips_in_natural_order(clips, monkeypatch):
    assert names(expand_clips((clips,))) == ["a.webm", "b2.MOV", "b10.mp4"]
    assert names(expand_clips((clips / "b*",))) == ["b2.MOV", "b10.mp4"]
    assert expand_clips(()) == [assets.clip(None)]
    assert expand_clips((Path("star"),)) == [assets.clips()["star"]]
    with pytest.raises(UserError, match="no file matches"):
        expand_clips((clips / "*.avi",))
    with pytest.raises(UserError, match=f"embedded clips {', '.join(assets.clips())}"):
        expand_clips((Path("circel"),))


def test_a_folder_of_frames_is_one_clip(tmp_path):
    for name in ("0001.png", "0002.webp"):
        (tmp_path / name).write_bytes(b"x")
    assert expand_clips((tmp_path,)) == [tmp_path]


def test_a_folder_with_videos_and_images_is_refused(clips):
    (clips / "photo.jpg").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"videos \(3\) and images \(1\).* e\.g\. .*/clips/\*\.webm$"
    ):
        expand_clips((clips,))


def test_a_file_whose_name_is_a_pattern_is_a_file(tmp_path):
    path = tmp_path / "clip [1].mp4"
    path.write_bytes(b"x")
    assert expand_clips((path,)) == [path]


def test_every_clip_gets_every_instruction_and_seed(clips):
    jobs = plan_jobs((clips,), ("make it snow!", "make it grey"), (0, 1), Path("out"))
    assert len(jobs) == 12 and len({job.output for job in jobs}) == 12
    assert jobs[0].output == Path("out/a_make-it-snow_0.mp4")
    assert [(job.instruction, job.seed) for job in jobs[:3]] == [
        *(("make it snow!", 0), ("make it snow!", 1), ("make it grey", 0)),
    ]


def test_outputs_of_equal_names_are_numbered(tmp_path):
    videos = (tmp_path / "a" / "clip.mp4", tmp_path / "b" / "clip.mov")
    jobs = plan_jobs(videos, ("grey",), (0,), None)
    assert names(job.output for job in jobs) == ["clip_grey_0.mp4", "clip_grey_0-2.mp4"]


def test_one_edit_goes_to_the_output(clips):
    (job,) = plan_jobs((clips / "a.webm",), ("grey",), (3,), None)
    assert (job.output, job.seed) == (Path("edited.mp4"), 3)


def test_several_edits_need_a_folder(clips):
    with pytest.raises(UserError, match="3 edits; name a folder"):
        plan_jobs((clips,), ("grey",), (0,), Path("out.mp4"))
    with pytest.raises(UserError, match="say what to change"):
        plan_jobs((clips,), (), (0,), None)


def test_lists_of_edits(tmp_path):
    table = tmp_path / "edits.csv"
    table.write_text("video;instruction;seed\nclips/a.mp4;make it grey, please;7\nstar;warm;\n")
    first, second = plan_jobs((), (), (1,), None, table)
    assert first.video == tmp_path / "clips/a.mp4" and first.seed == 7
    assert first.instruction == "make it grey, please"
    assert second.video == assets.clips()["star"] and second.seed == 1
    lines = tmp_path / "edits.jsonl"
    lines.write_text(json.dumps({"instruction": "warm", "output": "out.gif"}) + "\n")
    (job,) = plan_jobs((), (), (0,), None, lines)
    assert job.output == tmp_path / "out.gif" and job.video == assets.clip(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,prompt\na.mp4,x\n", "it needs instruction"),
        ("instruction\n", "holds no edits"),
        ("instruction,seed\nwarm,many\n", "seed 'many' is not a whole number"),
    ],
)
def test_lists_that_are_wrong(tmp_path, text, message):
    table = tmp_path / "edits.csv"
    table.write_text(text)
    with pytest.raises(UserError, match=message):
        plan_jobs((), (), (0,), None, table)
