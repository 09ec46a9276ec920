"""Comparison of guidance scales: an editor per (text scale, video scale), and a plot."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ivid2vid_jax.evaluation import shapes_benchmark
from ivid2vid_jax.inference.pipeline import EditSettings, Pipeline

Point = tuple[float, float]  # text scale, video scale
Report = dict[str, dict[str, Any]]  # of shapes_benchmark.report


def name(point: Point) -> str:
    """The name of a point's editor."""
    return f"text {point[0]:g}, video {point[1]:g}"


def editors(
    pipe: Pipeline, settings: EditSettings, points: Sequence[Point]
) -> dict[str, shapes_benchmark.Editor]:
    """An editor per point: resolved settings with the point's scales."""
    return {
        name(point): shapes_benchmark.editor(
            pipe, dataclasses.replace(settings, text_scale=point[0], video_scale=point[1])
        )
        for point in points
    }


def best(report: Report, points: Sequence[Point]) -> Point:
    """The point with the most passed clips; of equal ones the nearest to the true edits."""

    def quality(point: Point) -> tuple[float, float]:
        summary = report[name(point)]["all"]
        return summary["passed"]["share"], summary["psnr"]["db"]

    return max(points, key=quality)


def plot(report: Report, points: Sequence[Point], file: Path, title: str) -> None:
    """Writes a PNG: heat maps of three shares over the grid, and a trade-off curve.

    The shares are edits shown, rest preserved, and both. The curve shows edits shown against PSNR
    outside the edit, or against PSNR to the true edit if no edit has an outside (a style may change
    every pixel).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(19, 4.6), constrained_layout=True)
    for axis, key, label in zip(
        axes[:3],
        ("success", "preserved", "passed"),
        ("edit shown", "rest preserved", "both (passed)"),
        strict=True,
    ):
        plot_shares(axis, report, points, key)
        axis.set(title=label)
    plot_trade_off(axes[3], report, points)
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def plot_shares(axis: Any, report: Report, points: Sequence[Point], key: str) -> None:
    """A heat map of a share, in %."""
    texts, videos = (sorted({point[i] for point in points}) for i in (0, 1))
    shares = np.full((len(videos), len(texts)), np.nan)
    for text, video in points:
        share = report[name((text, video))]["all"][key]["share"]
        shares[videos.index(video), texts.index(text)] = 100 * share
    axis.imshow(shares, origin="lower", cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        color = "white" if share < 60 else "black"
        axis.text(column, row, f"{share:.0f}%", ha="center", va="center", color=color)
    axis.set(xticks=range(len(texts)), xticklabels=texts, xlabel="text scale")
    axis.set(yticks=range(len(videos)), yticklabels=videos, ylabel="video scale")


def plot_trade_off(axis: Any, report: Report, points: Sequence[Point]) -> None:
    """Edits shown against PSNR: a line per video scale, a point per text scale."""
    has_outside = all("psnr_outside" in report[name(point)]["all"] for point in points)
    key = "psnr_outside" if has_outside else "psnr"
    for video in sorted({point[1] for point in points}):
        line = [point for point in sorted(points) if point[1] == video]
        summaries = [report[name(point)]["all"] for point in line]
        shares = np.array([summary["success"]["share"] for summary in summaries])
        intervals = np.array([summary["success"]["interval"] for summary in summaries])
        errors = np.abs(intervals.T - shares)
        decibels = [summary[key]["db"] for summary in summaries]
        axis.errorbar(
            decibels,
            100 * shares,
            yerr=100 * errors,
            marker="o",
            capsize=3,
            label=f"video {video:g}",
        )
        for point, x, y in zip(line, decibels, shares, strict=True):
            axis.annotate(
                f"{point[0]:g}", (x, 100 * y), xytext=(4, 4), textcoords="offset points", fontsize=8
            )
    axis.set(
        xlabel="PSNR outside the edit (dB)" if has_outside else "PSNR to the true edit (dB)",
        ylabel="edit shown (%), 95% interval",
        title="trade-off; the numbers are text scales",
    )
    axis.legend()
