"""Limits of what is read from media files, so that a small file cannot demand unbounded memory."""

from ivid2vid_jax.errors import UserError

MAX_SIDE = 16_384  # pixels
MAX_PIXELS = 8192 * 8192  # of one frame: 200 MB as RGB


def check_frame_size(name: str, height: int, width: int) -> None:
    """Raises UserError for a frame that is larger than the limits, before it is decoded."""
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise UserError(
            f"{name}: frames of {width}x{height} pixels are above the limit of {MAX_PIXELS:,} "
            f"pixels ({MAX_SIDE} a side); scale it down first"
        )
