"""The metrics of an edited clip: definition, needs, and the reference each follows.

    METRICS["flow"].measure(Pair(source, edited))      # {"edited": 1.2, "source": 1.4, "gap": -0.2}

Clips are first reduced to a shorter side of at most 256 pixels (`--clip-size`), which affects every
metric. Metrics of how much a clip changes also report the source clip's value and the gap to it
(edited minus source), because a lower value alone rewards frozen clips.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation import fidelity, flow, temporal
from ivid2vid_jax.evaluation.clip_scores import CLIPScores, clip_similarities, l2_normalize


@dataclasses.dataclass(eq=False)
class Pair:
    """A clip and its edit, and intermediate results that metrics share.

    Attributes:
        source: [T, H, W, 3] uint8.
        edited: of the same shape.
        mask: where the edit may change something, bool [T, H, W].
        target: the true edit, [T, H, W, 3] uint8; it may be shorter.
        captions: of the source and of the edited clip.
        clip: a CLIPEmbedder, for the clip_* metrics.
    """

    source: np.ndarray
    edited: np.ndarray
    mask: np.ndarray | None = None
    target: np.ndarray | None = None
    captions: tuple[str, str] = ("", "")
    clip: Any = None

    @cached_property
    def source_flow(self) -> np.ndarray:
        """Forward flow of the source clip."""
        return flow.forward(self.source)

    @cached_property
    def edited_flow(self) -> np.ndarray:
        """Forward flow of the edited clip."""
        return flow.forward(self.edited)

    @cached_property
    def visible(self) -> np.ndarray:
        """The source's pixels that are visible in the next frame."""
        return flow.visible(self.source_flow, flow.backward(self.source))

    @cached_property
    def blocks(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(residual, motion) of the edited and of the source clip."""
        return temporal.block_matching(self.edited), temporal.block_matching(self.source)

    @cached_property
    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """CLIP features of the edited and of the source frames, before the projection."""
        features = self.clip.pooled(np.concatenate([self.edited, self.source]))
        if not np.isfinite(features).all():
            count = (~np.isfinite(features).all(-1)).sum()
            raise UserError(f"CLIP's features of {count} of {len(features)} frames are not finite")
        return features[: len(self.edited)], features[len(self.edited) :]

    @cached_property
    def embedded(self) -> tuple[np.ndarray, np.ndarray]:
        """CLIP embeddings of the edited and of the source frames."""
        edited, source = self.pooled
        return self.clip.projected(edited), self.clip.projected(source)

    @cached_property
    def scores(self) -> CLIPScores:
        """CLIP scores of clips and captions."""
        edited, source = self.embedded
        return clip_similarities(source, edited, self.clip.texts(self.captions))

    def caption(self, index: int) -> str:
        """The source's (0) or edited clip's (1) caption. Raises UserError if it is empty."""
        if not self.captions[index].strip():
            raise UserError(f"the set gives no caption of the {('source', 'edited')[index]} clip")
        return self.captions[index]

    def require_mask(self) -> np.ndarray:
        """The mask. Raises UserError if there is none."""
        if self.mask is None:
            raise UserError("the set gives no mask of the edit")
        return self.mask

    def with_target(self) -> tuple[np.ndarray, np.ndarray]:
        """The true edit and the edit in their common length. Raises UserError if there is none."""
        if self.target is None:
            raise UserError("the set gives no true edit")
        length = min(len(self.target), len(self.edited))
        return self.target[:length], self.edited[:length]


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a metric is and how it is computed.

    Attributes:
        title: in tables.
        unit: of the values.
        better: "higher", "lower" or "near the source's".
        definition: what the number is.
        reference: the implementation or paper it follows.
        measure: values of a pair by name; raises UserError if the pair has none. None: a metric of
            all clips together.
        needs: the weights it needs, "clip" or "inception".
        summary: reduces the values of clips along the last axis.
    """

    title: str
    unit: str
    better: str
    definition: str
    reference: str
    measure: Callable[[Pair], dict[str, float]] | None
    needs: str = ""
    summary: Callable[[np.ndarray], np.ndarray] = lambda values: np.mean(values, axis=-1)


def with_gap(edited: float, source: float) -> dict[str, float]:
    """Both values and their difference."""
    return {"edited": edited, "source": source, "gap": edited - source}


def of_each_clip(measure: Callable[[np.ndarray], float]) -> Callable[[Pair], dict[str, float]]:
    """A metric of a single clip, computed for the edited and the source clip."""
    return lambda pair: with_gap(measure(pair.edited), measure(pair.source))


def flow_magnitude(pair: Pair) -> dict[str, float]:
    """Mean flow length of both clips."""
    return with_gap(flow.magnitude(pair.edited_flow), flow.magnitude(pair.source_flow))


def warping_error(pair: Pair) -> dict[str, float]:
    """Warping error of both clips by the source's flow."""
    return of_each_clip(lambda clip: flow.warping_error(clip, pair.source_flow, pair.visible))(pair)


def clip_text(pair: Pair) -> dict[str, float]:
    """100 x cosine of the edited frames to the edited caption."""
    pair.caption(1)
    return {"edited": 100 * pair.scores.text_edited}


def clip_direction(pair: Pair) -> dict[str, float]:
    """Cosine of the frames' change to the captions' change."""
    if pair.caption(0) == pair.caption(1):
        raise UserError("the captions of both clips are the same: they give no direction")
    return {"edited": pair.scores.direction}


def all_pairs(embedded: np.ndarray) -> float:
    """Mean cosine of all pairs of different frames; embeddings [T, D]."""
    rows, count = l2_normalize(temporal.moving(embedded).astype(np.float64)), len(embedded)
    return float((np.square(rows.sum(0)).sum() - np.square(rows).sum()) / (count * (count - 1)))


def neighbours(pooled: np.ndarray) -> float:
    """Mean cosine of consecutive frames, negative ones counted as 0; features [T, D]."""
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
        of_each_clip(temporal.frame_difference),
    ),
    "flow": Metric(
        "Optical flow",
        "pixels per frame",
        "near the source's",
        "mean length of the flow vectors between consecutive frames",
        FARNEBACK,
        flow_magnitude,
    ),
    "flow_error": Metric(
        "Flow end-point error",
        "pixels per frame",
        "lower",
        "mean length of the difference of the edited clip's flow and the source clip's flow",
        f"V2VBench's motion alignment is the negative of this with GMFlow; here {FARNEBACK}",
        lambda pair: {"edited": flow.end_point_error(pair.edited_flow, pair.source_flow)},
    ),
    "block_matching": Metric(
        "Block matching",
        "grey levels",
        "near the source's",
        "mean absolute luma difference of each block to its best match in the next frame, 0 to 255",
        f"exhaustive search, {temporal.BLOCK}x{temporal.BLOCK} blocks, {temporal.REACH} pixels "
        "each way",
        lambda pair: with_gap(pair.blocks[0][0], pair.blocks[1][0]),
    ),
    "block_motion": Metric(
        "Block motion",
        "pixels per frame",
        "near the source's",
        "mean length of the vectors of block matching",
        "the same search",
        lambda pair: with_gap(pair.blocks[0][1], pair.blocks[1][1]),
    ),
    "warping_error": Metric(
        "Warping error",
        "squared, values 0 to 1",
        "lower",
        "squared difference of frame t and frame t+1 warped by the source clip's flow, over pixels "
        "that are not occluded",
        f"Lai et al. 2018 with their masks of occlusion and motion boundaries, and {FARNEBACK}; "
        "pixels whose flow leaves the frame are left out, while Lai et al. count them",
        warping_error,
    ),
    "psnr": Metric(
        "PSNR to the source",
        "dB",
        "higher",
        "of the mean squared error to the source over all clips; a clip's value is its mean "
        "squared error",
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
    "psnr_target": Metric(
        "PSNR to the true edit",
        "dB",
        "higher",
        "as PSNR, to the set's true edit",
        "scikit-image's peak_signal_noise_ratio",
        lambda pair: {"edited": fidelity.squared_error(*pair.with_target())},
        summary=fidelity.psnr,
    ),
    "ssim_target": Metric(
        "SSIM to the true edit",
        "",
        "higher",
        "as SSIM, to the set's true edit",
        "scikit-image's structural_similarity",
        lambda pair: {"edited": fidelity.ssim(*pair.with_target())},
    ),
    "psnr_outside": Metric(
        "PSNR outside the mask",
        "dB",
        "higher",
        "as PSNR, over the pixels that the edit must not change",
        "scikit-image's peak_signal_noise_ratio",
        lambda pair: {
            "edited": fidelity.squared_error(pair.source, pair.edited, pair.require_mask())
        },
        summary=fidelity.psnr,
    ),
    "ssim_outside": Metric(
        "SSIM outside the mask",
        "",
        "higher",
        "as SSIM, over the pixels that the edit must not change; inside the mask the edit is "
        "replaced by the source",
        "scikit-image's structural_similarity",
        lambda pair: {"edited": fidelity.ssim(pair.source, pair.edited, pair.require_mask())},
    ),
    "clip_text": Metric(
        "CLIP text alignment",
        "100 x cosine",
        "higher",
        "of the edited frames and the edited clip's caption, mean over frames",
        "LOVEU-TGVE-2023's clip_score_text without its resize to 480x480",
        clip_text,
        "clip",
    ),
    "clip_direction": Metric(
        "CLIP directional similarity",
        "cosine",
        "higher",
        "of the change of each frame's embedding and the change of the captions' embeddings, mean "
        "over frames",
        "InstructPix2Pix (arXiv 2211.09800), which resizes frames to the model's square; here they "
        "are center-cropped as in CLIP's preprocessing",
        clip_direction,
        "clip",
    ),
    "clip_frames": Metric(
        "CLIP frame consistency, all pairs",
        "cosine",
        "near the source's",
        "mean over all pairs of different frames, projected embeddings",
        "LOVEU-TGVE-2023's clip_score_frame",
        lambda pair: with_gap(*map(all_pairs, pair.embedded)),
        "clip",
    ),
    "clip_neighbours": Metric(
        "CLIP frame consistency, consecutive",
        "cosine",
        "near the source's",
        "mean over consecutive frames, features before the projection, negative ones count as 0",
        "V2VBench and EditVerseBench",
        lambda pair: with_gap(*map(neighbours, pair.pooled)),
        "clip",
    ),
    "fid": Metric(
        "FID",
        "",
        "lower",
        "squared Fréchet distance of Inception features, all edited frames against all source "
        "frames",
        "pytorch-fid",
        None,
        "inception",
    ),
    "kid": Metric(
        "KID",
        "",
        "lower",
        "unbiased squared MMD of the same features, kernel (x.y / 2048 + 1)^3, 100 random subsets "
        "of at most 1000 frames",
        "clean-fid's formula on pytorch-fid's features; its standard error is that of drawing "
        "subsets only, not that of the clips",
        None,
        "inception",
    ),
}


def measure(pair: Pair, names: list[str]) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Returns the values by metric, and the reasons by metric for which there are none."""
    values: dict[str, dict[str, float]] = {}
    reasons: dict[str, str] = {}
    for name in names:
        compute = METRICS[name].measure
        assert compute, f"{name} is a metric of all clips together"
        try:
            values[name] = compute(pair)
        except UserError as error:
            reasons[name] = str(error)
            continue
        if not np.isfinite(list(values[name].values())).all():
            reasons[name] = f"is not finite: {values.pop(name)}"
    return values, reasons
