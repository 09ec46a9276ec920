"""The reader of exported pipelines follows the rules of `open_clip`, on the same files."""

import numpy as np
import pytest

from ivid2vid_jax.conversion.pytorch.pipeline import read_video
from ivid2vid_jax.video.read import open_clip
from tests.support.media import MEDIA


@pytest.mark.parametrize(
    "name",
    [
        "selfie.mp4",
        "c_709_tagged_hd.mp4",
        "c_601_tagged_sd.mp4",
        "anamorphic_pal.mp4",
        "cover_udta_first.mp4",
        "trimmed_copy.mp4",
        "exif6.jpg",
        "alpha.gif",
        "phone_mpo.jpg",
        "twitter_gif.gif",
        "really_gif.mp4",
    ],
)
def test_frames_are_those_of_open_clip(name):
    """Sizes and orientation exactly; colours up to the interpolation of chroma."""
    expected = np.stack([frame.pixels for frame in open_clip(MEDIA / name).frames()])
    frames = read_video(MEDIA / name)
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < 6


def test_playlists_are_refused(tmp_path):
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{MEDIA / 'flash.mp4'}'\n")
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{MEDIA / 'flash_clock3600.ts'}\n"
    )
    for name in ("list.mp4", "list.m3u8"):
        with pytest.raises((ValueError, OSError)):
            read_video(tmp_path / name)
