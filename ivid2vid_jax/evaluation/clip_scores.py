"""CLIP scores: images and texts embedded in one space.

clip = load_clip("openai/clip-vit-large-patch14")
clip.images(frames) @ clip.texts(["a red car"]).T     # cosines, [N, 1]
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.models import CLIPModel
from ivid2vid_jax.models.clip import normalize_pixels
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.weights import hub
from ivid2vid_jax.weights.pipeline_folder import ClipFolder, load_params, open_clip_folder
from ivid2vid_jax.weights.tokenizer import load_tokenizer

BATCH = 32  # images or texts of one program
FULL = "openai/clip-vit-large-patch14"  # the model of published scores
FETCH = (
    f"hf download {FULL} config.json preprocessor_config.json tokenizer.json "
    "tokenizer_config.json vocab.json merges.txt model.safetensors"
)


@dataclasses.dataclass
class CLIPEmbedder:
    """A loaded CLIP model. Embeddings have length 1, so products are cosines."""

    folder: ClipFolder
    params: Any
    tokenizer: Any
    dtype: Any = jnp.float32

    @cached_property
    def model(self) -> CLIPModel:
        """The Flax module."""
        return CLIPModel(self.folder.clip, self.dtype)

    @cached_property
    def _embed_images(self):
        return self._program("embed_images", pixels=True)

    @cached_property
    def _pool_images(self):
        return self._program("pool_images", pixels=True)

    @cached_property
    def _project_images(self):
        return self._program("project_images")

    @cached_property
    def _embed_texts(self):
        return self._program("embed_texts")

    def _program(self, method: str, pixels: bool = False) -> Callable:
        """Compiled (params, x) -> a method of the model; pixels: x is uint8 frames."""
        mean, std = (self.folder.preprocessor[name] for name in ("image_mean", "image_std"))

        def run(params, x):
            return self.model.apply(
                {"params": params},
                normalize_pixels(x, mean, std, self.dtype) if pixels else x,
                method=method,
            )

        return runtime.jit(run)

    def images(self, frames: np.ndarray) -> np.ndarray:
        """Embeds frames: uint8 [N, H, W, 3] of any size -> float32 [N, D].

        Frames are resized by the shorter side and center-cropped, as in CLIP's preprocessing.
        """
        return in_batches(
            lambda batch: self._embed_images(self.params, batch), self.preprocess(frames)
        )

    def pooled(self, frames: np.ndarray) -> np.ndarray:
        """As `images`, before the projection: float32 [N, hidden_size], not normalized."""
        return in_batches(
            lambda batch: self._pool_images(self.params, batch), self.preprocess(frames)
        )

    def projected(self, pooled: np.ndarray) -> np.ndarray:
        """Projects the output of `pooled` to that of `images`."""
        return in_batches(lambda batch: self._project_images(self.params, batch), pooled)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts, truncated to the model's length: float32 [N, D]."""
        ids = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.folder.text_length,
            truncation=True,
            return_tensors="np",
        )["input_ids"]
        return in_batches(lambda batch: self._embed_texts(self.params, batch), ids.astype(np.int32))

    def preprocess(self, frames: np.ndarray) -> np.ndarray:
        """Resizes and crops frames to the model's input size, uint8. Raises UserError."""
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise UserError(
                f"images must be uint8 [N, H, W, 3], got {frames.dtype} {list(frames.shape)}"
            )
        side = self.folder.clip.vision.image_size
        return np.stack([resize_and_crop(frame, side) for frame in frames])


def resize_and_crop(frame: np.ndarray, side: int) -> np.ndarray:
    """Resizes [H, W, 3] uint8 by its shorter side (bicubic) and center-crops it to a square."""
    height, width = frame.shape[:2]
    shorter = min(height, width)
    new_height, new_width = (
        side if length == shorter else int(side * length / shorter) for length in (height, width)
    )
    if (new_height, new_width) != (height, width):
        image = Image.fromarray(frame).resize((new_width, new_height), Image.Resampling.BICUBIC)
        frame = np.asarray(image)
    top, left = (new_height - side) // 2, (new_width - side) // 2
    return frame[top : top + side, left : left + side]


def in_batches(embed: Callable, rows: np.ndarray) -> np.ndarray:
    """Applies `embed` in batches of BATCH rows; the last one is padded, for one compiled shape."""
    outputs = []
    for i in range(0, len(rows), BATCH):
        batch = rows[i : i + BATCH]
        padded = np.concatenate([batch, np.repeat(batch[-1:], BATCH - len(batch), axis=0)])
        outputs.append(np.asarray(embed(padded), np.float32)[: len(batch)])
    return np.concatenate(outputs)


def load_clip(model: str | Path = "shapes-clip", dtype: str = "float32") -> CLIPEmbedder:
    """Loads a CLIP model.

    Args:
        model: a folder in transformers' layout, a training run (--task clip), an embedded model or
            one of the Hugging Face hub.
        dtype: compute precision. Not "auto" by default, because scores and their thresholds should
            be the same on every machine.

    Raises:
        UserError: something is missing or does not fit; the message names it.
    """
    runtime.enable_compilation_cache()
    compute = runtime.compute_dtype(dtype)
    try:
        folder = open_clip_folder(hub.resolve_model(model))
    except UserError as error:
        raise UserError(f"{error}; fetch the usual CLIP model with: {FETCH}") from error
    return CLIPEmbedder(
        folder, load_params(folder, compute)["clip"], load_tokenizer(folder.tokenizer), compute
    )


@dataclasses.dataclass(frozen=True)
class CLIPScores:
    """Cosines of a source clip, its edit and their captions, means over frames, -1 to 1.

    Attributes:
        image: source frames and edited frames.
        text_source: source frames and the source caption.
        text_edited: edited frames and the edited caption.
        direction: the change of the frames and the change of the captions.
        consistency: consecutive edited frames.
    """

    image: float
    text_source: float
    text_edited: float
    direction: float
    consistency: float


def clip_similarities(source, edited, captions) -> CLIPScores:
    """Scores of embeddings.

    Args:
        source: of the source frames, [T, D].
        edited: of the edited frames, [T, D].
        captions: of the source and the edited caption, [2, D].
    """
    source, edited, captions = (
        l2_normalize(np.asarray(x, np.float64)) for x in (source, edited, captions)
    )
    image_change = l2_normalize(edited - source)
    text_change = l2_normalize(captions[1] - captions[0])
    consecutive = (edited[1:] * edited[:-1]).sum(-1) if len(edited) > 1 else np.ones(1)
    return CLIPScores(
        float((source * edited).sum(-1).mean()),
        float((source @ captions[0]).mean()),
        float((edited @ captions[1]).mean()),
        float((image_change @ text_change).mean()),
        float(consecutive.mean()),
    )


def l2_normalize(x: np.ndarray) -> np.ndarray:
    """Scales the last axis to length 1; a zero vector stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def clip_scorer(clip) -> Callable[[np.ndarray, np.ndarray, str, str], CLIPScores]:
    """Returns scores(source, edited, source_caption, edited_caption) of clips [T, H, W, 3] uint8.

    Args:
        clip: a CLIPEmbedder.
    """

    def run(source, edited, source_caption, edited_caption):
        frames = np.asarray(clip.images(np.concatenate([source, edited])))
        return clip_similarities(
            frames[: len(source)],
            frames[len(source) :],
            np.asarray(clip.texts([source_caption, edited_caption])),
        )

    return run
