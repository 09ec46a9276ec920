"""The metrics of a clip: what each is, what it needs, which reference it follows.

    METRICS["flow"].measure(Pair(source, edited))      # {"edited": 1.2, "source": 1.4, "gap": -0.2}

Clips come with a shorter side of 256 pixels at most (`--clip-size`): larger ones are reduced first, which changes every number, FID, flow and CLIP's too.
What says how much a clip changes is given with the source clip's own value and the gap to it (edited less source): lower alone rewards frozen clips.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from ivid2vid_jax.evaluation import fidelity, flow, temporal
from ivid2vid_jax.evaluation.clip_scores import clip_similarities, l2_normalize
from ivid2vid_jax.utils.errors import UserError


@dataclasses.dataclass(eq=False)
class Pair:
    """A clip and its edit, [T, H, W, 3] uint8 of one size, and what metrics share. mask: bool [T, H, W], where the edit may change something."""

    source: np.ndarray
    edited: np.ndarray
    mask: np.ndarray | None = None
    captions: tuple[str, str] = ("", "")  # of the source and of the edited clip
    clip: Any = None  # ivid2vid_jax.evaluation.clip_scores.Clip

    @cached_property
    def source_flow(self) -> np.ndarray:
        return flow.forward(self.source)

    @cached_property
    def edited_flow(self) -> np.ndarray:
        return flow.forward(self.edited)

    @cached_property
    def seen(self) -> np.ndarray:
        return flow.visible(self.source_flow, flow.backward(self.source))

    @cached_property
    def blocks(self) -> tuple[tuple[float, float], tuple[float, float]]:
        return temporal.block_matching(self.edited), temporal.block_matching(self.source)

    @cached_property
    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """CLIP's states of the edited and of the source frames, before the projection."""
        found = self.clip.pooled(np.concatenate([self.edited, self.source]))
        if not np.isfinite(found).all():
            raise UserError(
                f"CLIP's features of {(~np.isfinite(found).all(-1)).sum()} of {len(found)} frames are not finite"
            )
        return found[: len(self.edited)], found[len(self.edited) :]

    @cached_property
    def embedded(self) -> tuple[np.ndarray, np.ndarray]:
        return tuple(self.clip.projected(each) for each in self.pooled)

    @cached_property
    def scores(self):
        return clip_similarities(self.embedded[1], self.embedded[0], self.clip.texts(self.captions))

    def caption(self, which: int) -> str:
        if not self.captions[which].strip():
            raise UserError(f"the set gives no caption of the {('source', 'edited')[which]} clip")
        return self.captions[which]

    def outside(self) -> np.ndarray:
        if self.mask is None:
            raise UserError("the set gives no mask of the edit")
        return self.mask


@dataclasses.dataclass(frozen=True)
class Metric:
    """title, unit; definition: what the number is; reference: whose it follows. better: "higher", "lower" or "near the source's".

    measure(pair): named values; UserError where the clip has none. needs: "clip" or "inception", weights that the user must have.
    summary: of values along the last axis.
    """

    title: str
    unit: str
    better: str
    definition: str
    reference: str
    measure: Callable[[Pair], dict[str, float]] | None
    needs: str = ""
    summary: Callable[[np.ndarray], np.ndarray] = lambda values: np.mean(values, axis=-1)


def beside_source(edited: float, source: float) -> dict[str, float]:
    return {"edited": edited, "source": source, "gap": edited - source}


def both(measure: Callable[[np.ndarray], float]) -> Callable[[Pair], dict[str, float]]:
    return lambda pair: beside_source(measure(pair.edited), measure(pair.source))


def warping(pair: Pair) -> dict[str, float]:
    return beside_source(
        *(
            flow.warping_error(clip, pair.source_flow, pair.seen)
            for clip in (pair.edited, pair.source)
        )
    )


def clip_text(pair: Pair) -> dict[str, float]:
    pair.caption(1)
    return {"edited": 100 * pair.scores.text_edited}


def clip_direction(pair: Pair) -> dict[str, float]:
    if pair.caption(0) == pair.caption(1):
        raise UserError("the captions of both clips are the same: they give no direction")
    return {"edited": pair.scores.direction}


def all_pairs(embedded: np.ndarray) -> float:
    """Mean cosine of all pairs of different frames, [T, D]."""
    rows, count = l2_normalize(temporal.moving(embedded).astype(np.float64)), len(embedded)
    return float((np.square(rows.sum(0)).sum() - np.square(rows).sum()) / (count * (count - 1)))


def neighbours(pooled: np.ndarray) -> float:
    """Mean cosine of consecutive frames, none counted below 0, [T, D]."""
    rows = l2_normalize(temporal.moving(pooled).astype(np.float64))
    return float(np.maximum((rows[1:] * rows[:-1]).sum(-1), 0).mean())


FARNEBACK = "OpenCV's Farneback flow on luma (its settings: evaluation/flow.py)"
METRICS = {
    "frame_difference": Metric(
        "Frame differencing",
        "grey levels",
        "near the source's",
        "mean absolute difference of consecutive frames, 0 to 255",
        "VBench's temporal flickering is (255 - this) / 255",
        both(temporal.frame_difference),
    ),
    "flow": Metric(
        "Optical flow",
        "pixels a frame",
        "near the source's",
        "mean length of the flow between consecutive frames",
        FARNEBACK,
        lambda pair: beside_source(
            flow.magnitude(pair.edited_flow), flow.magnitude(pair.source_flow)
        ),
    ),
    "flow_error": Metric(
        "Flow end-point error",
        "pixels a frame",
        "lower",
        "mean length of the difference of the edited clip's flow and the source's",
        f"V2VBench's motion alignment is this, negative, with GMFlow; here {FARNEBACK}",
        lambda pair: {"edited": flow.end_point_error(pair.edited_flow, pair.source_flow)},
    ),
    "block_matching": Metric(
        "Block matching",
        "grey levels",
        "near the source's",
        "mean absolute luma that the best match of each block leaves in the next frame, 0 to 255",
        f"exhaustive search, {temporal.BLOCK}x{temporal.BLOCK} blocks, {temporal.REACH} pixels each way",
        lambda pair: beside_source(pair.blocks[0][0], pair.blocks[1][0]),
    ),
    "block_motion": Metric(
        "Block motion",
        "pixels a frame",
        "near the source's",
        "mean length of the block matches' vectors",
        "the same search",
        lambda pair: beside_source(pair.blocks[0][1], pair.blocks[1][1]),
    ),
    "warping_error": Metric(
        "Warping error",
        "squared, values 0 to 1",
        "lower",
        "frame t against frame t+1 warped by the source clip's flow, over pixels that are not occluded",
        f"Lai et al. 2018, their masks of occlusion and motion boundaries, with {FARNEBACK}; pixels whose flow leaves the frame are left out, which theirs counts",
        warping,
    ),
    "psnr": Metric(
        "PSNR to the source",
        "dB",
        "higher",
        "of the squared error to the source, pooled over clips; a clip's value is its mean squared error",
        "scikit-image's peak_signal_noise_ratio",
        lambda pair: {"edited": fidelity.squared_error(pair.source, pair.edited)},
        summary=fidelity.psnr,
    ),
    "ssim": Metric(
        "SSIM to the source",
        "",
        "higher",
        "structural similarity, Gaussian window of 1.5 pixels, mean over channels and frames",
        "scikit-image's structural_similarity(gaussian_weights=True, use_sample_covariance=False)",
        lambda pair: {"edited": fidelity.ssim(pair.source, pair.edited)},
    ),
    "psnr_outside": Metric(
        "PSNR outside the mask",
        "dB",
        "higher",
        "as PSNR, over the pixels that the edit must not change",
        "scikit-image's peak_signal_noise_ratio",
        lambda pair: {"edited": fidelity.squared_error(pair.source, pair.edited, pair.outside())},
        summary=fidelity.psnr,
    ),
    "ssim_outside": Metric(
        "SSIM outside the mask",
        "",
        "higher",
        "as SSIM, over the pixels that the edit must not change; the mask's inside is set to the source",
        "scikit-image's structural_similarity",
        lambda pair: {"edited": fidelity.ssim(pair.source, pair.edited, pair.outside())},
    ),
    "clip_text": Metric(
        "CLIP text alignment",
        "100 x cosine",
        "higher",
        "of the edited frames to the edited clip's caption, mean over frames",
        "LOVEU-TGVE-2023's clip_score_text without its resize to 480x480",
        clip_text,
        "clip",
    ),
    "clip_direction": Metric(
        "CLIP directional similarity",
        "cosine",
        "higher",
        "of the change of each frame's embedding to the change of the captions', mean over frames",
        "InstructPix2Pix (arXiv 2211.09800), which squeezes frames to the tower's square; here the middle square is cut out, as CLIP's preprocessing does",
        clip_direction,
        "clip",
    ),
    "clip_frames": Metric(
        "CLIP frame consistency, all pairs",
        "cosine",
        "near the source's",
        "mean over all pairs of different frames, projected embeddings",
        "LOVEU-TGVE-2023's clip_score_frame",
        lambda pair: beside_source(*map(all_pairs, pair.embedded)),
        "clip",
    ),
    "clip_neighbours": Metric(
        "CLIP frame consistency, consecutive",
        "cosine",
        "near the source's",
        "mean over consecutive frames, states before the projection, none below 0",
        "V2VBench and EditVerseBench",
        lambda pair: beside_source(*map(neighbours, pair.pooled)),
        "clip",
    ),
    "fid": Metric(
        "FID",
        "",
        "lower",
        "squared Fréchet distance of Inception features, all edited frames against all source frames",
        "pytorch-fid",
        None,
        "inception",
    ),
    "kid": Metric(
        "KID",
        "",
        "lower",
        "unbiased squared MMD of the same features, kernel (x.y / 2048 + 1)^3, 100 random subsets of at most 1000 frames",
        "clean-fid's formula on pytorch-fid's features; its standard error is that of drawing subsets alone, not that of the clips",
        None,
        "inception",
    ),
}


def measure(pair: Pair, names: list[str]) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """(values by metric, and by metric the reason why this clip has none)."""
    values, reasons = {}, {}
    for name in names:
        try:
            values[name] = METRICS[name].measure(pair)
        except UserError as error:
            reasons[name] = str(error)
            continue
        if not np.isfinite(list(values[name].values())).all():
            reasons[name] = f"is not finite: {values.pop(name)}"
    return values, reasons
