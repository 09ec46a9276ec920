"""CLIP scores: images and texts in one space.

clip = load_clip("openai/clip-vit-large-patch14")
clip.images(frames) @ clip.texts(["a red car"]).T     # cosines, [N, 1]
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ivid2vid_jax.inference.pipeline import load_tokenizer
from ivid2vid_jax.models import CLIPModel
from ivid2vid_jax.models.clip import normalize_pixels
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.weights import hub
from ivid2vid_jax.weights.pipeline_folder import ClipFolder, load_params, open_clip_folder

BATCH = 32  # images or texts of one program
FULL = "openai/clip-vit-large-patch14"  # whose scores are published
FETCH = f"hf download {FULL} config.json preprocessor_config.json tokenizer.json tokenizer_config.json vocab.json merges.txt model.safetensors"


@dataclasses.dataclass
class CLIPEmbedder:
    """A loaded CLIP model. Embeddings have length 1, so products are cosines."""

    folder: ClipFolder
    params: Any
    tokenizer: Any
    dtype: Any = jnp.float32

    @cached_property
    def model(self) -> CLIPModel:
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
        """(params, x) -> one of the model's methods of x, of frames of uint8 where pixels. float32 is multiplied as such: accelerators would take fewer bits."""
        mean, std = (self.folder.preprocessor[name] for name in ("image_mean", "image_std"))

        def run(params, x):
            with jax.default_matmul_precision("highest"):
                return self.model.apply(
                    {"params": params},
                    normalize_pixels(x, mean, std, self.dtype) if pixels else x,
                    method=method,
                )

        return runtime.jit(run)

    def images(self, frames: np.ndarray) -> np.ndarray:
        """[N, H, W, 3] uint8, of any size (resized by the shorter side and cut in the middle, as CLIP's preprocessing does) -> float32 [N, D]."""
        return in_batches(
            lambda batch: self._embed_images(self.params, batch), self.fitted(np.asarray(frames))
        )

    def pooled(self, frames: np.ndarray) -> np.ndarray:
        """As `images`, before the projection: float32 [N, hidden_size], of any length."""
        return in_batches(
            lambda batch: self._pool_images(self.params, batch), self.fitted(np.asarray(frames))
        )

    def projected(self, pooled: np.ndarray) -> np.ndarray:
        """What `pooled` gives -> what `images` gives."""
        return in_batches(lambda batch: self._project_images(self.params, batch), pooled)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts, cut at the model's length -> float32 [N, D]."""
        ids = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.folder.text_length,
            truncation=True,
            return_tensors="np",
        )["input_ids"]
        return in_batches(lambda batch: self._embed_texts(self.params, batch), ids.astype(np.int32))

    def fitted(self, frames: np.ndarray) -> np.ndarray:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise UserError(
                f"images must be uint8 [N, H, W, 3], got {frames.dtype} {list(frames.shape)}"
            )
        return np.stack([square(frame, self.folder.clip.vision.image_size) for frame in frames])


def square(frame: np.ndarray, side: int) -> np.ndarray:
    """[H, W, 3] uint8 -> [side, side, 3]: the shorter side resized (bicubic), the middle cut out."""
    height, width = frame.shape[:2]
    scaled = tuple(
        side if length == min(height, width) else int(side * length / min(height, width))
        for length in (height, width)
    )
    if scaled != (height, width):
        frame = np.asarray(Image.fromarray(frame).resize(scaled[::-1], Image.Resampling.BICUBIC))
    top, left = ((length - side) // 2 for length in scaled)
    return frame[top : top + side, left : left + side]


def in_batches(embed: Callable, rows: np.ndarray) -> np.ndarray:
    """embed(rows), BATCH at a time, the last ones filled up, so that one program serves all numbers."""
    out = []
    for i in range(0, len(rows), BATCH):
        part = rows[i : i + BATCH]
        filled = np.concatenate([part, np.repeat(part[-1:], BATCH - len(part), axis=0)])
        out.append(np.asarray(embed(filled), np.float32)[: len(part)])
    return np.concatenate(out)


def load_clip(model: str | Path = "shapes-clip", dtype: str = "float32") -> CLIPEmbedder:
    """Loads a CLIP folder in transformers' layout, a training run's (--task clip), an embedded one or one of the Hugging Face hub.

    dtype: the arithmetic's; not "auto" by default, for scores and the thresholds on them are to be the same on every machine.
    Raises UserError that names what is missing or does not fit.
    """
    runtime.enable_compilation_cache()
    compute = runtime.compute_dtype(dtype)
    try:
        folder = open_clip_folder(hub.resolve_model(model))
    except UserError as error:
        raise UserError(f"{error}; the usual CLIP comes with: {FETCH}") from error
    return CLIPEmbedder(
        folder, load_params(folder, compute)["clip"], load_tokenizer(folder.tokenizer), compute
    )


@dataclasses.dataclass(frozen=True)
class CLIPScores:
    """Cosines, -1 to 1."""

    image: float
    text_source: float
    text_edited: float
    direction: float
    consistency: float


def clip_similarities(source, edited, captions) -> CLIPScores:
    """source, edited: embeddings of the frames [T, D]; captions: of the source's and the edited caption [2, D]."""
    source, edited, captions = (
        l2_normalize(np.asarray(x, np.float64)) for x in (source, edited, captions)
    )
    change, wanted = l2_normalize(edited - source), l2_normalize(captions[1] - captions[0])
    neighbours = (edited[1:] * edited[:-1]).sum(-1) if len(edited) > 1 else np.ones(1)
    return CLIPScores(
        float((source * edited).sum(-1).mean()),
        float((source @ captions[0]).mean()),
        float((edited @ captions[1]).mean()),
        float((change @ wanted).mean()),
        float(neighbours.mean()),
    )


def l2_normalize(x: np.ndarray) -> np.ndarray:
    """Of length 1 along the last axis; zero where there is no direction."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def clip_scorer(clip) -> Callable[[np.ndarray, np.ndarray, str, str], CLIPScores]:
    """scores(source, edited, source_caption, edited_caption) by a loaded CLIP (`Clip`); clips are uint8 [T, H, W, 3]."""

    def run(source, edited, source_caption, edited_caption):
        frames = np.asarray(clip.images(np.concatenate([source, edited])))
        return clip_similarities(
            frames[: len(source)],
            frames[len(source) :],
            np.asarray(clip.texts([source_caption, edited_caption])),
        )

    return run
