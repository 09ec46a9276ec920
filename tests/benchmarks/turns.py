"""Two programs timed in turns, so that a busy moment of the machine hits both."""

import time
from collections.abc import Callable

import numpy as np
import torch


def turns(ours: Callable, theirs: Callable, repeats: int) -> dict:
    """Seconds of both, taken in turns after one warm-up each; the first call of ours holds the compilation."""
    begin = time.perf_counter()
    ours()
    first = time.perf_counter() - begin
    theirs()
    seconds = {"ours": [], "torch": []}
    for _ in range(repeats):
        for name, run in (("ours", ours), ("torch", theirs)):
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    ratios = np.array(seconds["torch"]) / np.array(seconds["ours"])
    quartiles = np.percentile(ratios, [25, 50, 75])
    return dict(
        ours_s=float(np.median(seconds["ours"])),
        torch_s=float(np.median(seconds["torch"])),
        compile_s=first - float(np.median(seconds["ours"])),
        ratio=float(quartiles[1]),
        ratio_quartiles=[float(quartiles[0]), float(quartiles[2])],
        repeats=repeats,
    )


def sync():
    """Waits for PyTorch's GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
