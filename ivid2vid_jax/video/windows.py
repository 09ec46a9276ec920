"""Overlapping windows over a long clip."""


def plan_windows(length: int, window: int, overlap: int | None = None) -> list[slice]:
    """Slices of exactly `window` frames that cover `length` frames.

    A clip of at most `window` frames is one slice. overlap: frames shared by neighbours, a quarter
    of the window by default; the last window is moved back so that it ends with the clip. Raises
    ValueError for a window below 1 or an overlap outside 0..window-1.
    """
    overlap = window // 4 if overlap is None else overlap
    if window < 1 or not 0 <= overlap < max(window, 1):
        raise ValueError(
            f"window={window} must be at least 1 and overlap={overlap} between 0 and window - 1"
        )
    if length <= window:
        return [slice(0, length)]
    starts = [*range(0, length - window, window - overlap), length - window]
    return [slice(start, start + window) for start in starts]
