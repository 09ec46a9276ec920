"""Cutting clips for the data engine: shot boundaries, what is refused and why, repetitions; on made and on real videos."""

import time

import numpy as np
import pytest

from ivid2vid_jax.data import shapes
from ivid2vid_jax.synthesis import clip_cutting
from ivid2vid_jax.synthesis.clip_cutting import ClipsConfig, cut_video
from ivid2vid_jax.utils.errors import UserError
from tests.video.test_video import write

CONFIG = ClipsConfig(frames=8, fps=8, size=64, least=64)


def scene(index, frames=8):
    """A clip of the shapes world in which something moves and the background is its own."""
    return shapes.triplet(
        shapes.sample_spec(3, index, kinds=("identity",), frames=frames, world="shapes-crowded")
    ).source


def test_shots_are_found_where_they_begin():
    film = np.concatenate(
        [scene(0, 8), scene(1, 12), scene(3, 20), scene(5, 9)]
    )  # white, green, brown, black
    begins = [number for number, (_, first) in enumerate(clip_cutting.shots(film, CONFIG)) if first]
    assert begins == [0, 8, 20, 40]


def test_fast_motion_and_flashes_of_light_do_not_cut():
    rng = np.random.default_rng(0)
    wild = rng.integers(
        0, 256, (30, 64, 64, 3), np.uint8
    )  # every frame is another: nothing is sudden
    assert [
        number
        for number, (_, first) in enumerate(clip_cutting.shots(wild.repeat(1, 0), CONFIG))
        if first
    ] == [0]
    fade = (np.linspace(0, 1, 40)[:, None, None, None] * scene(0, 8)[0]).astype(np.uint8)
    assert sum(first for _, first in clip_cutting.shots(fade, CONFIG)) == 1


def test_pieces_are_whole_clips_of_one_shot():
    film = np.concatenate([scene(0, 20), scene(1, 9)])
    found = [(shot, start, len(piece)) for shot, start, piece in clip_cutting.pieces(film, CONFIG)]
    assert found == [(0, 0, 8), (0, 8, 8), (0, 16, 4), (1, 20, 8), (1, 28, 1)]


def film(tmp_path, frames, name="film.mp4"):
    return write(tmp_path / name, frames, rate=8)


def test_a_video_becomes_clips_and_reasons(tmp_path):
    still = np.repeat(scene(2)[:1], 8, axis=0)
    path = film(tmp_path, np.concatenate([scene(0, 8), still, scene(1, 12)]))
    status, facts = cut_video(path, "folder/film.mp4", CONFIG, tmp_path / "clips")
    assert status == "accepted" and [each["id"] for each in facts["clips"]] == [
        "folder%2Ffilm.mp4-0",
        "folder%2Ffilm.mp4-1",
    ]
    assert [each["reason"] for each in facts["refused"]] == [
        "nothing moves",
        "the shot ends after 4 of 8 frames",
    ]
    made = np.load(tmp_path / "clips" / "folder%2Ffilm.mp4-1.npy")
    assert (
        made.shape == (8, 64, 64, 3)
        and made.dtype == np.uint8
        and np.abs(made.astype(int) - scene(1, 12)[:8]).mean() < 6
    )
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == [
        "folder%2Ffilm.mp4-0.npy",
        "folder%2Ffilm.mp4-1.npy",
    ]
    assert cut_video(path, "folder/film.mp4", CONFIG, tmp_path / "clips") == (status, facts)
    assert (
        len(
            cut_video(
                path,
                "x.mp4",
                ClipsConfig(frames=8, size=64, least=64, per_video=1),
                tmp_path / "one",
            )[1]["clips"]
        )
        == 1
    )


@pytest.mark.parametrize(
    ("frames", "change", "reason"),
    [
        (8, dict(least=65), "64x64 pixels: the shorter side is below 65"),
        (5, {}, "the shot ends after 5 of 8 frames"),
        (0, {}, "is empty"),
        (8, dict(motion=50.0), "nothing moves"),
    ],
)
def test_videos_that_give_no_clip_say_why(tmp_path, frames, change, reason):
    path = film(tmp_path, scene(0, frames)) if frames else tmp_path / "film.mp4"
    if not frames:
        path.touch()
    status, facts = cut_video(
        path,
        "film.mp4",
        ClipsConfig(**dict(frames=8, fps=8, size=64, least=64) | change),
        tmp_path / "clips",
    )
    assert status == "rejected" and reason in facts["reason"] and not list(tmp_path.glob("clips/*"))


def test_real_clips_are_one_shot(clip, tmp_path):
    status, facts = cut_video(clip, clip.name, ClipsConfig(frames=8, size=128), tmp_path)
    assert status == "accepted", facts
    assert {each["shot"] for each in facts["clips"] + facts["refused"]} == {0} and all(
        each["motion"] > 0.9 for each in facts["clips"]
    )


def test_repetitions_are_named(tmp_path):
    rng = np.random.default_rng(0)
    noisy = np.clip(scene(0).astype(int) + rng.integers(-6, 7, scene(0).shape), 0, 255).astype(
        np.uint8
    )
    lines = []
    for name, frames in (("a", scene(0)), ("b", scene(1)), ("c", noisy)):
        _, facts = cut_video(
            film(tmp_path, frames, f"{name}.mp4"), f"{name}.mp4", CONFIG, tmp_path / "clips"
        )
        lines.append({"id": name, **facts})
    assert clip_cutting.near_duplicates(lines, CONFIG) == (
        ["a.mp4-0", "b.mp4-0"],
        {"c.mp4-0": "a.mp4-0"},
    )


def test_thousands_of_clips_are_compared_as_one_by_one():
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 256, (400, 24), np.uint8)
    prints = scenes[rng.integers(0, 400, 3000)] ^ np.packbits(
        rng.random((3000, 192)) < 0.03, axis=1
    )  # about 6 bits off, on either side of 10
    lines = [
        {
            "clips": [
                {"id": f"{i}-{j}", "fingerprint": prints[3 * i + j].tobytes().hex()}
                for j in range(3)
            ]
        }
        for i in range(1000)
    ]
    kept, repeats = {}, {}
    for clip in (clip for line in lines for clip in line["clips"]):
        bits = int(clip["fingerprint"], 16)
        near = next(
            (
                id
                for id, other in kept.items()
                if (bits ^ other).bit_count() <= CONFIG.near_duplicate_bits
            ),
            None,
        )
        if near:
            repeats[clip["id"]] = near
        else:
            kept[clip["id"]] = bits
    began = time.monotonic()
    assert (
        clip_cutting.near_duplicates(lines, CONFIG) == (list(kept), repeats)
        and 400 < len(kept) < 2500
    )
    assert time.monotonic() - began < 1, "took 3 s in plain Python"
    assert clip_cutting.near_duplicates([], CONFIG) == ([], {})


def test_ids_are_files_names_and_no_two_alike():
    names = (
        "take.mp4",
        "take.mov",
        "a/b.mp4",
        "a__b.mp4",
        "a%2Fb.mp4",
        "a%252Fb.mp4",
        "a/b/c.gif",
        "a/b%c.gif",
    )
    ids = {clip_cutting.file_name(name) for name in names}
    assert len(ids) == len(names) and not any("/" in id for id in ids) and "take.mp4" in ids


def test_a_folder_without_videos_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="holds no video"):
        clip_cutting.videos(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        clip_cutting.videos(tmp_path / "none")
    film(tmp_path, scene(0))
    assert list(clip_cutting.videos(tmp_path)) == ["film.mp4"]
