"""Clips in and out of files: sizes, rates, times, rotation, sound, damage."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax.data.dataset import to_mp4
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.video import compare, windows
from ivid2vid_jax.video.fit import ResizePlan
from ivid2vid_jax.video.read import open_clip
from ivid2vid_jax.video.write import check_output, plan_sound, write_clip

RNG = np.random.default_rng(0)


def moving_square(n=12, height=48, width=64):
    """A white square that moves 3 pixels a frame on dark grey."""
    clip = np.full((n, height, width, 3), 40, np.uint8)
    for i in range(n):
        clip[i, 10:30, 3 * i : 3 * i + 16] = 230
    return clip


def write(path, clip=None, rate=Fraction(10), times=None, sound=None):
    clip = moving_square() if clip is None else clip
    write_clip(
        path,
        iter(clip),
        times or [i / rate for i in range(len(clip))],
        rate,
        sound and plan_sound(path, sound),
    )
    return path


def read(path, **options):
    clip = open_clip(path, **options)
    frames = list(clip.frames())
    return clip, np.stack([frame.pixels for frame in frames]), [frame.time for frame in frames]


def psnr(a, b):
    return 10 * np.log10(255**2 / max(np.mean((a.astype(float) - b.astype(float)) ** 2), 1e-9))


@pytest.mark.parametrize(
    ("ending", "quality"), [(".mp4", 35), (".webm", 33), (".webp", 30), (".gif", 35), ("", 100)]
)
def test_round_trip(tmp_path, ending, quality):
    path = write(tmp_path / f"clip{ending}")
    _, frames, times = read(path, **({} if ending else {"fps": 10}))
    assert frames.shape == (12, 48, 64, 3)
    assert [float(t) for t in times] == pytest.approx([i / 10 for i in range(12)])
    assert psnr(frames, moving_square()) > quality if ending else (frames == moving_square()).all()
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_the_same_frames_give_the_same_bytes(tmp_path):
    """With x264's macroblock tree, 4 of 10,000 clips of this size written in 4 threads differed
    from the others; without it none did. x264 notes its settings in the file.
    """
    clip = RNG.integers(0, 256, (6, 48, 48, 3), np.uint8)
    assert b"mbtree=0" in write(tmp_path / "clip.mp4", clip).read_bytes() and b"mbtree=0" in to_mp4(
        clip
    )
    assert len({write(tmp_path / "clip.mp4", clip).read_bytes() for _ in range(20)}) == 1


@pytest.mark.parametrize(
    "rate", [Fraction(30000, 1001), Fraction(24), Fraction(25, 2), Fraction(7)]
)
def test_fractional_rates_are_exact(tmp_path, rate):
    clip, _, times = read(write(tmp_path / "clip.mp4", rate=rate))
    assert clip.rate == rate
    assert times == [i / rate for i in range(12)]


def test_a_constant_rate_in_rounded_times_is_constant(tmp_path):
    """Matroska and WebM round times to 1 ms."""
    rounded = [Fraction(round(i * 1000 / 30), 1000) for i in range(12)]
    _, _, times = read(write(tmp_path / "clip.mp4", rate=Fraction(30), times=rounded))
    assert times == [Fraction(i, 30) for i in range(12)]


@pytest.mark.parametrize("ending", [".mp4", ".webm"])
def test_variable_rate_keeps_every_time(tmp_path, ending):
    shown = [
        Fraction(t, 1000)
        for t in (0, 40, 300, 333, 500, 501 + 99, 700, 1000, 1400, 1500, 1600, 2500)
    ]
    _, frames, times = read(write(tmp_path / f"clip{ending}", times=shown))
    assert len(frames) == 12
    np.testing.assert_allclose([float(t) for t in times], [float(t) for t in shown], atol=0.0011)


@pytest.mark.parametrize("ending", [".mp4", ".webm"])
@pytest.mark.parametrize("size", [(47, 63), (48, 63), (47, 64)])
def test_odd_sizes(tmp_path, ending, size):
    """webm keeps them; mp4, whose 4:2:0 needs even sides, repeats the last row or column."""
    clip, frames, _ = read(write(tmp_path / f"clip{ending}", moving_square(4, *size)))
    even = tuple(side + side % 2 for side in size) if ending == ".mp4" else size
    assert (clip.height, clip.width) == even == frames.shape[1:3]
    assert psnr(frames[:, : size[0], : size[1]], moving_square(4, *size)) > 30


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_tags_are_applied(tmp_path, degrees):
    """The reference is the clip turned by hand."""
    upright = moving_square(4)
    stored = np.rot90(upright, -degrees // 90, axes=(1, 2))
    path = tmp_path / "turned.mp4"
    write(path, np.ascontiguousarray(stored))
    set_rotation(path, degrees)
    clip, frames, _ = read(path)
    assert (clip.height, clip.width) == upright.shape[1:3]
    assert psnr(frames, upright) > 30


def set_rotation(path, degrees):
    """Writes the matrix of the file's video track header (ISO 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    at = (
        data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    )  # version and flags; times, track, reserved, duration; reserved; layer .. reserved
    cos, sin = round(np.cos(np.radians(degrees))), round(np.sin(np.radians(degrees)))
    # FFmpeg reports the rotation counter-clockwise, as PyAV does; the matrix turns clockwise
    matrix = [cos, -sin, 0, sin, cos, 0, 0, 0, 1]
    for i, value in enumerate(matrix):
        unit = 1 << (30 if i % 3 == 2 else 16)
        data[at + 4 * i : at + 4 * i + 4] = int(value * unit).to_bytes(4, "big", signed=True)
    path.write_bytes(data)


def test_range_and_resampling(tmp_path):
    path = write(tmp_path / "clip.mp4")
    _, frames, times = read(path, start=0.1, end=0.4)  # both a little above the decimal as floats
    assert times == [Fraction(i, 10) for i in (1, 2, 3)]
    assert psnr(frames, moving_square()[1:4]) > 35
    _, frames, times = read(path, fps=5)
    assert times == [Fraction(i, 5) for i in range(6)]
    assert psnr(frames, moving_square()[::2]) > 35
    _, frames, times = read(path, fps=20)
    assert (
        len(frames) == 23
        and psnr(frames[::2], moving_square()) > 35
        and psnr(frames[1::2], moving_square()[:-1]) > 35
    )


def sound_of(path):
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        samples = np.concatenate([frame.to_ndarray() for frame in container.decode(stream)], axis=1)
        return stream.codec_context.name, samples, stream.codec_context.sample_rate


def packets_of(path):
    with av.open(str(path)) as container:
        return [
            bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size
        ]


def test_sound_is_copied_bit_for_bit(skiing, tmp_path):
    clip, frames, times = read(skiing)
    out = write(tmp_path / "out.mp4", frames[:, ::8, ::8], clip.rate, times, clip)
    assert packets_of(out) == packets_of(skiing)[: len(packets_of(out))]
    assert len(packets_of(skiing)) - len(packets_of(out)) <= 2, (
        "at most the sound beyond the last frame is cut"
    )


@pytest.mark.parametrize(("ending", "codec"), [(".mp4", "aac"), (".webm", "opus")])
def test_sound_is_cut_with_the_clip(skiing, tmp_path, ending, codec):
    clip, frames, times = read(skiing, start=1.0, end=2.0)
    out = write(tmp_path / f"out{ending}", frames[:, ::16, ::16], clip.rate, times, clip)
    name, samples, rate = sound_of(out)
    assert name == codec
    assert samples.shape[1] / rate == pytest.approx(1.0, abs=0.06)


def test_fit_keeps_the_aspect_and_restores_the_size():
    fit = ResizePlan.plan((718, 404), 256, 64)
    assert fit.inner == (256, 144) and fit.padded == (256, 192)
    frame = RNG.integers(0, 256, (718, 404, 3), np.uint8)
    assert fit.apply(frame).shape == (256, 192, 3)
    assert fit.restore(fit.apply(frame)).shape == (718, 404, 3)
    exact = ResizePlan.plan((64, 64), 64, 64)
    small = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(exact.restore(exact.apply(small)), small)
    with pytest.raises(UserError, match="size 32 is too small: this model needs at least 64"):
        ResizePlan.plan((100, 100), 32, 64)


def test_fit_does_not_shift_colours():
    flat = np.full((90, 160, 3), (200, 30, 120), np.uint8)
    fit = ResizePlan.plan((90, 160), 64, 16)
    np.testing.assert_array_equal(fit.restore(fit.apply(flat)), flat)


@pytest.mark.parametrize(
    ("length", "window", "overlap"),
    [(1, 16, None), (16, 16, None), (17, 16, None), (80, 16, None), (100, 8, 2), (9, 8, 7)],
)
def test_windows_cover_the_clip(length, window, overlap):
    cut = windows.plan_windows(length, window, overlap)
    assert cut[0].start == 0 and cut[-1].stop == length
    assert {w.stop - w.start for w in cut} == {min(length, window)}
    shared = window // 4 if overlap is None else overlap
    assert all(a.stop - b.start >= shared for a, b in itertools.pairwise(cut))


def test_windows_out_of_range():
    for window, overlap in [(0, None), (8, 8), (8, -1)]:
        with pytest.raises(ValueError, match="window="):
            windows.plan_windows(20, window, overlap)


def bad_file(tmp_path, kind, skiing=None):
    path = tmp_path / "clip.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is not a video\n" * 100)
    elif kind == "audio":
        with av.open(str(path), "w") as out:
            stream = out.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 16000), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate = 16000
            for part in (stream.encode(frame), stream.encode()):
                out.mux(part)
    elif kind == "truncated":
        data = write(path, RNG.integers(0, 256, (12, 48, 64, 3), np.uint8)).read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif kind == "png":
        path = tmp_path / "clip.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    elif kind == "folder":
        path = tmp_path / "frames"
        path.mkdir()
    elif kind == "sizes":
        path = tmp_path / "frames"
        path.mkdir()
        for i in (4, 5):
            Image.new("RGB", (i, 4)).save(path / f"{i}.png")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("empty", "is empty"),
        ("text", "is not a video"),
        ("audio", "holds no video stream"),
        ("truncated", "cut off|breaks off"),
        ("png", "is not an image"),
        ("folder", "holds no frames"),
        ("sizes", "is 5x4, the first frame is 4x4"),
    ],
)
def test_files_that_are_no_clips(tmp_path, kind, message):
    with pytest.raises(UserError, match=message):
        read(bad_file(tmp_path, kind))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(start=5.0), "holds no frame between 5.0 s"),
        (dict(start=-1), "start -1"),
        (dict(start=1, end=0.5), "end 0.5"),
        (dict(fps=0), "fps 0"),
        (dict(fps=float("nan")), "fps nan"),
    ],
)
def test_ranges_that_hold_nothing(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        open_clip(write(tmp_path / "clip.mp4"), **options)


def test_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "plain").touch()
    for path, message in [
        ("a.avi", "cannot write .avi"),
        ("full", "not empty"),
        ("plain", "is a file"),
    ]:
        with pytest.raises(UserError, match=message):
            check_output(tmp_path / path)
    with pytest.raises(UserError, match="cannot be written"):
        check_output(__import__("pathlib").Path("/proc/a.mp4"))
    check_output(tmp_path / "new" / "folder" / "a.mp4")
    assert (tmp_path / "new" / "folder").is_dir()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write(tmp_path / "clip.mp4")
    before = path.read_bytes()

    def breaking():
        yield moving_square()[0]
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError):
        write_clip(path, breaking(), [Fraction(0), Fraction(1)], Fraction(1), None)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_still_images(tmp_path):
    picture = moving_square(1)
    write(tmp_path / "still.png", picture)
    _, frames, _ = read(tmp_path / "still.png")
    np.testing.assert_array_equal(frames, picture)


def test_compare_writes_both_pictures(tmp_path):
    path = write(tmp_path / "in.mp4")
    times = read(path)[2]
    edited = write(tmp_path / "out.mp4", 255 - moving_square())
    pair, sheet = compare.write_comparison(
        open_clip(path), edited, "make it " + "very " * 100 + "dark", times, Fraction(10)
    )
    _, frames, _ = read(pair)
    assert frames.shape == (12, 48, 128, 3)
    assert (
        psnr(frames[:, :, :64], moving_square()) > 30
        and psnr(frames[:, :, 64:], 255 - moving_square()) > 30
    )
    with Image.open(sheet) as page:
        assert page.size == (8 + 6 * 264, 40 + 2 * 200)


def test_a_folder_of_images_of_several_sizes_is_refused_when_it_is_opened(tmp_path):
    """An image that EXIF turns to the size of the others is one of them."""
    Image.new("RGB", (80, 120)).save(tmp_path / "1.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (120, 80)).save(tmp_path / "2.jpg", exif=turned)
    assert read(tmp_path)[1].shape == (2, 120, 80, 3)
    Image.new("RGB", (64, 48)).save(tmp_path / "3.jpg")
    with pytest.raises(
        UserError, match=r"3\.jpg: is 64x48.* a folder of images is one clip.*\*\.jpg"
    ):
        open_clip(tmp_path)
