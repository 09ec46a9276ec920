"""Files that people have, each with its right answer (tests/media)."""

import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.video.read import open_clip
from ivid2vid_jax.video.write import check_encodable, plan_sound, write_clip
from tests.support.media import (
    MEDIA,
    PLAYLIST_SUFFIXES,
    PLAYLISTS,
    beeps,
    duration,
    flashes,
)

COLOURS = np.array(  # of the patches in c_*.mp4, from left to right
    [
        *((200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200)),
        *((200, 30, 200), (128, 128, 128), (16, 16, 16), (240, 240, 240), (229, 24, 24)),
        *((90, 140, 60), (220, 170, 140)),
    ]
)


def read(name, **options):
    clip = open_clip(MEDIA / name, **options)
    frames = list(clip.frames())
    return clip, [frame.pixels for frame in frames], [float(frame.time) for frame in frames]


def rewrite(source, target, **options):
    """Reads and writes a clip as `edit` does, without the model."""
    clip = open_clip(source, **options)
    frames = list(clip.frames())
    times = [frame.time for frame in frames]
    pixels = iter([frame.pixels for frame in frames])
    write_clip(target, pixels, times, clip.rate, plan_sound(target, clip))
    return target


@pytest.mark.parametrize("container", [".mp4", ".webm"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("flash_opus_mono.webm", (1, 3, 5)),
        ("flash_mp3.mkv", (1, 3, 5)),
        ("opus.mp4", (1,)),
        ("flash_pcm.avi", (1, 3)),
        ("pcm192k.mkv", (1,)),
        ("flash_ac3_51.mkv", (1, 3, 5)),
        ("flash_ac3.mkv", (1, 3, 5)),
        ("flash_flac.mkv", (1, 3, 5)),
        ("flash_mp2.mpg", (1,)),
        ("flash_aac.mkv", (1, 3, 5)),
        ("late_flac.mkv", (1, 3, 5)),
        ("two_sounds.mp4", (1, 3, 5)),
        ("flash_clock3600.ts", (1, 3, 5)),
        ("flash.mp4", (1, 3, 5)),
    ],
)
def test_sound_stays_in_sync(tmp_path, name, expected, container):
    path = rewrite(MEDIA / name, tmp_path / f"out{container}")
    assert flashes(path) == pytest.approx(expected, abs=0.045)
    assert beeps(path) == pytest.approx(expected, abs=0.03)
    assert duration(path, "audio") <= duration(path, "video") + 0.1


def test_damaged_sound_leaves_a_gap(tmp_path, caplog):
    path = rewrite(MEDIA / "sound_damaged.ts", tmp_path / "out.mp4")
    assert flashes(path) == pytest.approx((1, 3, 5), abs=0.045)
    first, *_, last = beeps(path)
    assert (first, last) == pytest.approx((1, 5), abs=0.03)
    assert "sound is damaged" in caplog.text


def test_a_range_is_cut_from_picture_and_sound(tmp_path):
    path = rewrite(MEDIA / "flash_flac.mkv", tmp_path / "out.mp4", start=2, end=4)
    assert flashes(path) == pytest.approx([1], abs=0.045)
    assert beeps(path) == pytest.approx([1], abs=0.03)


@pytest.mark.parametrize(
    ("options", "count"), [(dict(end=1), 25), (dict(start=0.5, end=2), 38), (dict(start=5), 25)]
)
def test_ranges_count_from_the_files_own_start(options, count):
    """The clock of this file starts at 3600 s."""
    assert abs(len(read("flash_clock3600.ts", **options)[1]) - count) <= 1


@pytest.mark.parametrize("name", ["flash.mp4", "flash_flac.mkv", "flash_opus_mono.webm"])
def test_a_late_start_is_reached_by_seeking(name):
    """The frames are those of a pass from the beginning."""
    _, all_frames, all_times = read(name)
    _, frames, times = read(name, start=4.0)
    assert times == [time for time in all_times if time >= 4.0]
    np.testing.assert_array_equal(frames, all_frames[-len(frames) :])


@pytest.mark.parametrize(
    ("name", "count", "seconds"),
    [("trimmed_copy.mp4", 50, 2.0), ("null_frames.avi", 20, 2.9), ("joined.ts", 20, 2.0)],
)
def test_every_frame_at_an_increasing_time(name, count, seconds):
    """An edit list, frames of no bytes, two streams of which the second starts at 0 again."""
    clip, frames, times = read(name)
    assert len(frames) == count
    assert times[0] == 0 and times[-1] + 1 / float(clip.rate) == pytest.approx(seconds, abs=0.1)
    assert all(np.diff(times) > 0)


def test_null_frames_keep_the_times_of_the_others():
    with av.open(str(MEDIA / "null_frames.avi")) as container:
        stream = container.streams.video[0]
        expected = [
            float(packet.pts * packet.time_base)
            for packet in container.demux(stream)
            if packet.size
        ]
    assert read("null_frames.avi")[2] == pytest.approx(expected)


@pytest.mark.parametrize(
    "name",
    [
        "c_601_tagged_sd.mp4",
        "c_601_untagged_sd.mp4",
        "c_709_full_444.mp4",
        "c_709_tagged_hd.mp4",
        "c_709_tagged_sd.mp4",
    ],
)
def test_colours(name, tmp_path):
    """As read; and as ffmpeg's own decoder shows the file that is written."""
    assert patch_errors(read(name)[1][0]).max() <= 4
    path = rewrite(MEDIA / name, tmp_path / "out.mp4")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        tags = (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range)
        matrix = 1 if frame.height >= 720 else 6
        assert tags == (matrix, matrix, matrix, 1)
        shown = frame.to_ndarray(format="rgb24", src_colorspace=5 if matrix == 6 else matrix)
    assert patch_errors(shown).max() <= 4


def test_webm_is_tagged_too(tmp_path):
    path = rewrite(MEDIA / "c_709_tagged_hd.mp4", tmp_path / "out.webm")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1, 1)


def test_hlg_becomes_sdr():
    """Washed out, the mean error is 42 of 255."""
    assert patch_errors(read("c_hlg10.mp4")[1][0]).mean() <= 12


def patch_errors(pixels):
    """The largest difference of each patch's mean colour from the truth."""
    width = pixels.shape[1]
    spans = [(i * width // 12 + 4, (i + 1) * width // 12 - 4) for i in range(12)]
    means = np.stack([pixels[4:-4, a:b].reshape(-1, 3).mean(0) for a, b in spans])
    return np.abs(means - COLOURS).max(1)


def test_anamorphic_video_gets_square_pixels():
    clip, _, _ = read("anamorphic_pal.mp4")
    assert (clip.width, clip.height) == (1024, 576)


def test_interlaced_video_is_deinterlaced():
    """Combing: neighbouring rows come from two moments."""
    frames = read("interlaced.mpg")[1]
    green = frames[len(frames) // 2][..., 1].astype(int)
    assert np.abs(green[0:-2:2] - green[1:-1:2]).mean() < 1


def test_a_mirror_in_the_display_matrix():
    mirrored, plain = read("selfie.mp4")[1][0], read("_v.mp4")[1][0]
    assert np.abs(mirrored.astype(int) - plain[:, ::-1]).mean() < 1


@pytest.mark.parametrize(
    "name", ["cover_udta_first.mp4", "cover_first.mp4", "cover_last.mp4", "cover_attach.mkv"]
)
def test_cover_art_is_not_the_clip(name):
    clip, frames, _ = read(name)
    assert len(frames) == 20 and (clip.width, clip.height) == (160, 120)


def test_exif_orientation():
    with Image.open(MEDIA / "exif6.jpg") as image:
        stored = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read("exif6.jpg")[1][0], np.rot90(stored, -1))


def test_sixteen_bit_grey():
    ramp = read("grey16.png")[1][0][10, :, 0].astype(int)
    assert ramp[0] == 0 and ramp[-1] >= 250 and all(np.diff(ramp) >= 0)


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("CMYK", None), ("I;16", 32768)])
def test_other_pixel_types(tmp_path, mode, value):
    path = tmp_path / "image.tif"
    if mode == "CMYK":
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path)
        expected = (255, 0, 0)
    else:
        dtype = np.float32 if mode == "F" else np.uint16
        Image.fromarray(np.full((8, 8), value, dtype)).save(path)
        expected = (128, 128, 128)
    pixels = next(open_clip(path).frames()).pixels
    assert np.abs(pixels[0, 0].astype(int) - expected).max() <= 1


def test_an_mpo_photo_is_one_frame():
    clip, frames, _ = read("phone_mpo.jpg")
    assert len(frames) == 1 and (clip.width, clip.height) == (160, 120)


def test_frame_folders_are_in_natural_order():
    reds = [int(pixels[0, 0, 0]) for pixels in read("seq_unpadded")[1]]
    assert reds == list(range(20, 241, 20))


def test_files_of_operating_systems_are_no_frames():
    assert len(read("seq_mac")[1]) == 4


@pytest.mark.parametrize("name", ["alpha_vp9.webm", "alpha_qtrle.mov", "alpha.apng", "alpha.gif"])
def test_transparent_pixels_are_white(name):
    expected = read("alpha_frames")[1]
    frames = read(name)[1]
    assert len(frames) == len(expected)
    for pixels, reference in zip(frames, expected, strict=True):
        assert np.abs(pixels.astype(int) - reference).mean() < 3


@pytest.mark.parametrize(
    "name",
    [
        "2024-05-01T12:30:05.mp4",
        "-dash.mp4",
        "100%.mp4",
        "a b #1.mp4",
        "視頻 😀.mp4",
        "frame%03d.mp4",
    ],
)
def test_any_name_opens(tmp_path, monkeypatch, name):
    """By its bare name, from its own folder."""
    shutil.copy(MEDIA / "_v.mp4", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(list(open_clip(name).frames())) == 20


@pytest.mark.parametrize(
    ("name", "count"),
    [("twitter_gif.gif", 20), ("really_gif.mp4", 5), ("really_webp.jpg", 5), ("noending", 20)],
)
def test_files_are_known_by_content(name, count):
    assert len(read(name)[1]) == count


@pytest.mark.parametrize("name", ["size_change.mjpeg", "size_change.h264"])
def test_frames_that_change_size_get_the_first_ones(name):
    clip, frames, _ = read(name)
    assert {pixels.shape for pixels in frames} == {(clip.height, clip.width, 3)}


def test_an_odd_gif_becomes_an_mp4_that_browsers_play(tmp_path):
    path = rewrite(MEDIA / "odd.gif", tmp_path / "out.mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p" and stream.codec_context.profile == "High"


# ---- media are files, never references


@pytest.mark.parametrize("suffix", PLAYLIST_SUFFIXES)
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_are_refused(tmp_path, monkeypatch, kind, suffix):
    """The file that a playlist names lies beside it and is a video that would play."""
    shutil.copy(MEDIA / "flash_clock3600.ts", tmp_path / "secret.ts")
    (tmp_path / f"list{suffix}").write_text(PLAYLISTS[kind].format("secret.ts"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"cannot be read|can be read"):
        open_clip(f"list{suffix}")


def test_special_files_are_refused(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match=r"neither a regular file"):
        open_clip(tmp_path / "pipe.mp4")


def test_a_truncated_file_is_named(tmp_path):
    data = (MEDIA / "_v.mp4").read_bytes()
    for share in (0.3, 0.7):
        path = tmp_path / "cut.mp4"
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(UserError, match=r"cut off|damaged|breaks off"):
            list(open_clip(path).frames())


@pytest.mark.parametrize("name", ["flash_pcm.avi", "pcm192k.mkv", "flash_ac3_51.mkv"])
def test_the_encoder_is_tried_beforehand(tmp_path, name):
    clip = open_clip(MEDIA / name)
    output = tmp_path / "out.webm"
    check_encodable(output, (clip.height, clip.width), clip.rate, plan_sound(output, clip))
    assert not list(tmp_path.iterdir())


def test_what_the_encoder_refuses_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"8x20000 .*cannot be written"):
        check_encodable(tmp_path / "out.mp4", (20_000, 8), Fraction(25), None)
