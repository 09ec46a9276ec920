"""Times two programs in turns, so that load of the machine affects both equally."""

import time
from collections.abc import Callable

import numpy as np
import torch


def turns(ours: Callable, theirs: Callable, repeats: int) -> dict:
    """Median seconds of both after one warm-up each, and the quartiles of their ratio.

    The first call of `ours` includes compilation, which is reported separately.
    """
    start = time.perf_counter()
    ours()
    first_call = time.perf_counter() - start
    theirs()
    seconds = {"ours": [], "torch": []}
    for _ in range(repeats):
        for name, run in (("ours", ours), ("torch", theirs)):
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    ours_s, torch_s = (float(np.median(seconds[name])) for name in ("ours", "torch"))
    ratios = np.array(seconds["torch"]) / np.array(seconds["ours"])
    quartiles = np.percentile(ratios, [25, 50, 75])
    return dict(
        ours_s=ours_s,
        torch_s=torch_s,
        compile_s=first_call - ours_s,
        ratio=float(quartiles[1]),
        ratio_quartiles=[float(quartiles[0]), float(quartiles[2])],
        repeats=repeats,
    )


def sync():
    """Waits for PyTorch's work on the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
