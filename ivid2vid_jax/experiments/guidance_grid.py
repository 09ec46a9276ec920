"""The trade-off of the two guidance scales: one editor for each pair, and the picture of what they give."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ivid2vid_jax.evaluation import shapes_benchmark
from ivid2vid_jax.inference.pipeline import EditSettings, Pipeline

Point = tuple[float, float]  # text scale, video scale


def name(point: Point) -> str:
    return f"text {point[0]:g}, video {point[1]:g}"


def editors(
    pipe: Pipeline, settings: EditSettings, points: Sequence[Point]
) -> dict[str, shapes_benchmark.Editor]:
    """One editor a point. settings: resolved; their scales are replaced."""
    return {
        name(p): shapes_benchmark.editor(
            pipe, dataclasses.replace(settings, text_scale=p[0], video_scale=p[1])
        )
        for p in points
    }


def best(report: dict, points: Sequence[Point]) -> Point:
    """The point that passes most clips; among equals the one that is nearest to the true edits."""
    return max(
        points,
        key=lambda p: (
            report[name(p)]["all"]["passed"]["share"],
            report[name(p)]["all"]["psnr"]["db"],
        ),
    )


def plot(report: dict, points: Sequence[Point], file: Path, title: str) -> None:
    """Writes a .png: shares of edits shown, of the rest kept and of both on the grid, and edits shown against PSNR outside the edit (to the truth where no kind has an outside)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    texts, videos = (sorted({p[i] for p in points}) for i in (0, 1))
    figure, axes = plt.subplots(1, 4, figsize=(19, 4.6), constrained_layout=True)
    for ax, key, label in zip(
        axes[:3],
        ("success", "preserved", "passed"),
        ("edit shown", "rest kept", "both (passed)"),
        strict=True,
    ):
        shares = np.full((len(videos), len(texts)), np.nan)
        for t, v in points:
            shares[videos.index(v), texts.index(t)] = (
                100 * report[name((t, v))]["all"][key]["share"]
            )
        ax.imshow(shares, origin="lower", cmap="viridis", vmin=0, vmax=100, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            ax.text(
                column,
                row,
                f"{share:.0f}%",
                ha="center",
                va="center",
                color="white" if share < 60 else "black",
            )
        ax.set(xticks=range(len(texts)), xticklabels=texts, xlabel="text scale", title=label)
        ax.set(yticks=range(len(videos)), yticklabels=videos, ylabel="video scale")
    kept = (
        "psnr_outside" if all("psnr_outside" in report[name(p)]["all"] for p in points) else "psnr"
    )  # a style may change every pixel
    for v in videos:
        mine = [p for p in sorted(points) if p[1] == v]
        found = [report[name(p)]["all"] for p in mine]
        shares = np.array([s["success"]["share"] for s in found])
        spread = np.abs(np.array([s["success"]["interval"] for s in found]).T - shares)
        decibels = [s[kept]["db"] for s in found]
        axes[3].errorbar(
            decibels, 100 * shares, yerr=100 * spread, marker="o", capsize=3, label=f"video {v:g}"
        )
        for p, x, y in zip(mine, decibels, shares, strict=True):
            axes[3].annotate(
                f"{p[0]:g}", (x, 100 * y), xytext=(4, 4), textcoords="offset points", fontsize=8
            )
    axes[3].set(
        xlabel="PSNR outside the edit (dB)"
        if kept == "psnr_outside"
        else "PSNR to the true edit (dB)",
        ylabel="edit shown (%), 95% interval",
        title="each point: its text scale",
    )
    axes[3].legend()
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    plt.close(figure)
