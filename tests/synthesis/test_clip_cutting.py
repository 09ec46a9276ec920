"""Cutting clips: shot boundaries, refused pieces and their reasons, near-duplicates."""

import sys
import time

import numpy as np
import pytest

from ivid2vid_jax.data import shapes
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.synthesis import clip_cutting
from ivid2vid_jax.synthesis.clip_cutting import ClipsConfig, cut_video
from tests.video.test_video import write

CONFIG = ClipsConfig(frames=8, fps=8, size=64, least=64)


def scene(index, frames=8):
    """A moving clip of the shapes world; each index has another background."""
    return shapes.triplet(
        shapes.sample_spec(3, index, kinds=("identity",), frames=frames, world="shapes-crowded")
    ).source


def boundaries(film):
    """Numbers of the frames with which shots begin; also checks that the frames are unchanged."""
    pairs = list(clip_cutting.shots(film, CONFIG))
    np.testing.assert_array_equal([frame for frame, _ in pairs], film)
    return [number for number, (_, is_first) in enumerate(pairs) if is_first]


def test_shots_are_found_where_they_begin():
    # backgrounds: white, green, brown, black
    film = np.concatenate([scene(0, 8), scene(1, 12), scene(3, 20), scene(5, 9)])
    assert boundaries(film) == [0, 8, 20, 40]


def test_boundaries_near_the_ends_are_found():
    assert boundaries(np.concatenate([scene(0, 1), scene(1, 6), scene(5, 1)])) == [0, 1, 7]


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8])
def test_motion_near_the_ends_is_no_boundary(frames):
    for index in range(20):
        assert boundaries(scene(index, frames)) == [0], index


def test_mirrored_ends():
    assert list(clip_cutting.mirror_ends("abcde", 2)) == list("cbabcdedc")
    assert list(clip_cutting.mirror_ends("ab", 2)) == list("bbabaa")
    assert list(clip_cutting.mirror_ends("a", 2)) == list("aaaaa")
    assert list(clip_cutting.mirror_ends("", 2)) == []


def test_fast_motion_and_fades_are_no_boundaries():
    # every frame differs from the one before: no change is sudden
    noise = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
    assert boundaries(noise) == [0]
    fade = (np.linspace(0, 1, 40)[:, None, None, None] * scene(0, 8)[0]).astype(np.uint8)
    assert boundaries(fade) == [0]


def test_pieces_do_not_cross_shots():
    film = np.concatenate([scene(0, 20), scene(1, 9)])
    pieces = [(shot, start, len(piece)) for shot, start, piece in clip_cutting.pieces(film, CONFIG)]
    assert pieces == [(0, 0, 8), (0, 8, 8), (0, 16, 4), (1, 20, 8), (1, 28, 1)]
    assert list(clip_cutting.pieces([], CONFIG)) == []


def write_film(tmp_path, frames, name="film.mp4"):
    return write(tmp_path / name, frames, rate=8)


def test_a_video_yields_clips_and_reasons(tmp_path):
    still = np.repeat(scene(2)[:1], 8, axis=0)
    path = write_film(tmp_path, np.concatenate([scene(0, 8), still, scene(1, 12)]))
    status, facts = cut_video(path, "folder/film.mp4", CONFIG, tmp_path / "clips")
    ids = ["folder%2Ffilm.mp4-0", "folder%2Ffilm.mp4-1"]
    assert status == "accepted"
    assert [clip["id"] for clip in facts["clips"]] == ids
    assert [piece["reason"] for piece in facts["refused"]] == [
        "nothing moves",
        "the shot ends after 4 of 8 frames",
    ]
    clip = np.load(tmp_path / "clips" / f"{ids[1]}.npy")
    assert clip.shape == (8, 64, 64, 3)
    assert clip.dtype == np.uint8
    assert np.abs(clip.astype(int) - scene(1, 12)[:8]).mean() < 6
    assert sorted(path.stem for path in (tmp_path / "clips").iterdir()) == ids
    again = cut_video(path, "folder/film.mp4", CONFIG, tmp_path / "clips")
    assert again == (status, facts)
    one = ClipsConfig(frames=8, size=64, least=64, per_video=1)
    assert len(cut_video(path, "x.mp4", one, tmp_path / "one")[1]["clips"]) == 1


@pytest.mark.parametrize(
    ("frames", "change", "reason"),
    [
        (8, dict(least=65), "64x64 pixels: the shorter side is below 65"),
        (5, {}, "the shot ends after 5 of 8 frames"),
        (0, {}, "is empty"),
        (8, dict(motion=50.0), "nothing moves"),
    ],
)
def test_videos_without_clips_are_rejected_with_a_reason(tmp_path, frames, change, reason):
    path = write_film(tmp_path, scene(0, frames)) if frames else tmp_path / "film.mp4"
    if not frames:
        path.touch()
    config = ClipsConfig(**dict(frames=8, fps=8, size=64, least=64) | change)
    status, facts = cut_video(path, "film.mp4", config, tmp_path / "clips")
    assert status == "rejected"
    assert reason in facts["reason"]
    assert not list(tmp_path.glob("clips/*"))


def test_real_clips_are_one_shot(clip, tmp_path):
    status, facts = cut_video(clip, clip.name, ClipsConfig(frames=8, size=128), tmp_path)
    assert status == "accepted", facts
    assert {piece["shot"] for piece in facts["clips"] + facts["refused"]} == {0}
    assert all(piece["motion"] > 0.9 for piece in facts["clips"])


def test_without_pyscenedetect_no_video_is_rejected(tmp_path, monkeypatch):
    """The stage ends instead, so the videos are still to be cut."""
    path = write_film(tmp_path, scene(0, 8))
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(UserError, match=r"PySceneDetect .*pip install .*\[synthesis\]"):
        cut_video(path, "film.mp4", CONFIG, tmp_path / "clips")


def test_near_duplicates_are_named(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(-6, 7, scene(0).shape)
    noisy = np.clip(scene(0).astype(int) + noise, 0, 255).astype(np.uint8)
    lines = []
    for name, frames in (("a", scene(0)), ("b", scene(1)), ("c", noisy)):
        path = write_film(tmp_path, frames, f"{name}.mp4")
        _, facts = cut_video(path, path.name, CONFIG, tmp_path / "clips")
        lines.append({"id": name, **facts})
    unique, duplicates = clip_cutting.near_duplicates(lines, CONFIG)
    assert unique == ["a.mp4-0", "b.mp4-0"]
    assert duplicates == {"c.mp4-0": "a.mp4-0"}


def test_near_duplicates_of_thousands_of_clips_equal_a_pairwise_loop():
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 256, (400, 24), np.uint8)
    # about 6 bits differ, below and above the limit of 10
    flips = np.packbits(rng.random((3000, 192)) < 0.03, axis=1)
    hashes = scenes[rng.integers(0, 400, 3000)] ^ flips
    clips = [{"id": str(i), "fingerprint": bits.tobytes().hex()} for i, bits in enumerate(hashes)]
    lines = [{"clips": clips[3 * i : 3 * i + 3]} for i in range(1000)]
    unique, duplicates = {}, {}
    for clip in clips:
        bits = int(clip["fingerprint"], 16)
        originals = (
            id
            for id, other in unique.items()
            if (bits ^ other).bit_count() <= CONFIG.near_duplicate_bits
        )
        if original := next(originals, None):
            duplicates[clip["id"]] = original
        else:
            unique[clip["id"]] = bits
    begin = time.monotonic()
    result = clip_cutting.near_duplicates(lines, CONFIG)
    assert time.monotonic() - begin < 1, "the loop takes 3 s"
    assert result == (list(unique), duplicates)
    assert 400 < len(unique) < 2500
    assert clip_cutting.near_duplicates([], CONFIG) == ([], {})


def test_file_names_of_ids_are_unique():
    ids = (
        *("take.mp4", "take.mov", "a/b.mp4", "a__b.mp4"),
        *("a%2Fb.mp4", "a%252Fb.mp4", "a/b/c.gif", "a/b%c.gif"),
    )
    names = {clip_cutting.file_name(id) for id in ids}
    assert len(names) == len(ids)
    assert not any("/" in name for name in names)
    assert "take.mp4" in names


def test_a_folder_without_videos_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="holds no video"):
        clip_cutting.videos(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        clip_cutting.videos(tmp_path / "none")
    write_film(tmp_path, scene(0))
    assert list(clip_cutting.videos(tmp_path)) == ["film.mp4"]
