"""The editor: modules and parameters of a pipeline folder, and what is done with them.

pipe = ivid2vid_jax.load("RUN/pipeline")
edited = pipe.edit("clip.mp4", "make it snow", seed=0)     # uint8 [T, H, W, 3]
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ivid2vid_jax.diffusion.denoiser import make_denoiser
from ivid2vid_jax.diffusion.guidance import GuidanceBranch, guidance_branches
from ivid2vid_jax.diffusion.samplers import SAMPLERS, SCHEDULER_CLASSES, make_sampler
from ivid2vid_jax.diffusion.schedule import NoiseSchedule
from ivid2vid_jax.inference.sampling_loop import Guidance, SamplingLoop
from ivid2vid_jax.inference.vae_codec import VAECodec
from ivid2vid_jax.models import CLIPTextModel
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.parallel.device_group import DeviceGroup
from ivid2vid_jax.utils.errors import UserError, check_instruction
from ivid2vid_jax.video import windows
from ivid2vid_jax.video.fit import ResizePlan
from ivid2vid_jax.weights import hub
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder, load_params, open_pipeline_folder

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EditSettings:
    """How to sample. None means: the folder's own value (sampling.json), or else the one named here."""

    steps: int | None = None  # sampler steps; 50
    text_scale: float | None = None  # guidance towards the instruction; 7.5
    video_scale: float | None = None  # guidance towards the source clip; 1.5
    sampler: str | None = None  # ddim, euler_ancestral or dpm++; the folder's scheduler
    size: int | None = (
        None  # pixels of the longer side inside the model; the size it was trained at
    )
    frames: int | None = None  # frames of one window; the number it was trained at
    seed: int = 0
    shared_noise: float | None = (
        None  # share of the noise that all frames have in common, 0 to 1; 0
    )
    negative: str = ""  # in the place of the empty instruction
    eta: float = 0.0  # ddim: share of fresh noise, 0 to 1
    rescale: float = 0.0  # guidance rescale, 0 to 1
    guide_from: float | None = None  # guidance acts on the steps from this share of them on, 0,
    guide_to: float | None = (
        None  # and before this one, 1; the others evaluate the conditioned branch alone, a third of the work
    )

    @classmethod
    def from_args(cls, args: Any) -> "EditSettings":
        """A command's arguments of the same names."""
        return cls(
            **{
                field.name: getattr(args, field.name)
                for field in dataclasses.fields(cls)
                if hasattr(args, field.name)
            }
        )

    def resolve(self, folder: PipelineFolder) -> "EditSettings":
        """Every None filled in. Raises UserError that names a value out of its range."""
        defaults = dict(
            steps=50,
            text_scale=7.5,
            video_scale=1.5,
            frames=folder.unet.num_frames,
            shared_noise=0.0,
            guide_from=0.0,
            guide_to=1.0,
        )
        defaults["sampler"] = SCHEDULER_CLASSES.get(folder.scheduler.get("_class_name", ""), "ddim")
        defaults["size"] = (folder.unet.sample_size or 64) * folder.vae.downscale
        defaults |= {k: v for k, v in folder.sampling.items() if k in defaults}
        settings = dataclasses.replace(
            self, **{k: v for k, v in defaults.items() if getattr(self, k) is None}
        )
        settings.check()
        if settings.frames > folder.unet.max_frames:
            raise UserError(
                f"frames {settings.frames} must be at most {folder.unet.max_frames}, the places of this net's motion modules"
            )
        return settings

    def check(self) -> None:
        for name, low, high in (
            ("steps", 1, 1000),
            ("size", 1, 8192),
            ("frames", 1, 1024),
            ("seed", 0, 2**32 - 1),
            ("eta", 0, 1),
            ("rescale", 0, 1),
            ("text_scale", 0, 1000),
            ("video_scale", 0, 1000),
            ("shared_noise", 0, 1),
            ("guide_from", 0, 1),
            ("guide_to", 0, 1),
        ):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and low <= value <= high):
                raise UserError(f"{name} {value} must be between {low} and {high}")
        if self.sampler not in SAMPLERS:
            raise UserError(
                f"sampler {self.sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}"
            )
        if self.eta and self.sampler != "ddim":
            raise UserError(f"eta {self.eta} is for the ddim sampler only, this is {self.sampler}")


@dataclasses.dataclass
class Pipeline:
    """A loaded pipeline folder. Compiled programs are kept with it, so clips of equal shape never compile twice."""

    folder: PipelineFolder
    params: dict[str, Any]
    tokenizer: Any
    dtype: Any = jnp.float32
    attention_impl: str = "auto"
    devices: DeviceGroup = dataclasses.field(default_factory=lambda: DeviceGroup(1))

    @cached_property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule.from_json(self.folder.scheduler)

    @cached_property
    def vae_codec(self) -> VAECodec:
        return VAECodec(self.folder.vae, self.dtype, self.devices)

    @cached_property
    def sampling_loop(self) -> SamplingLoop:
        return SamplingLoop(
            make_denoiser(self.folder.unet, self.attention_impl, dtype=self.dtype),
            self.schedule.prediction_type,
            self.devices,
        )

    @cached_property
    def _encode_text(self) -> Callable:
        model = CLIPTextModel(self.folder.text_encoder, self.dtype)
        return self.devices.jit(lambda params, ids: model.apply({"params": params}, ids))

    @property
    def factor(self) -> int:
        """Pixels that both sides must be a multiple of, inside the model."""
        return self.folder.vae.downscale * self.folder.unet.downscale

    def encode_text(self, texts: list[str]) -> jax.Array:
        """[N, tokens, width] of the texts; says in the log which words were beyond the model's limit."""
        limit = self.folder.text_encoder.max_position_embeddings
        for text in texts:
            ids = self.tokenizer(text, truncation=False, verbose=False)["input_ids"]
            if len(ids) > limit:
                lost = self.tokenizer.decode(ids[limit - 1 : -1]).strip()
                lost = lost if len(lost) < 60 else f"{lost[:40]} ... {lost[-15:]}"
                log.warning(
                    "the text is %d tokens long and is cut at %d; what is not read: %r",
                    len(ids),
                    limit,
                    lost,
                )
        ids = self.tokenizer(
            texts, padding="max_length", max_length=limit, truncation=True, return_tensors="np"
        )["input_ids"]
        return self._encode_text(
            self.params["text_encoder"], self.devices.put(np.asarray(ids, np.int32))
        )

    def guidance(self, instruction: str, settings: EditSettings) -> list[Guidance]:
        """The branches of each step of an edit, on the device; see `diffusion/guidance.py`.

        Guidance in an interval of the steps alone: Kynkäänniemi et al. 2024, arXiv 2404.07724.
        """
        plan = guidance_branches(settings.text_scale, settings.video_scale)
        null, text = self.encode_text([settings.negative, instruction])

        def made(plan: list[GuidanceBranch]) -> Guidance:
            return Guidance(
                text=jnp.stack([text if branch.text else null for branch in plan]),
                video=jnp.asarray([float(branch.video) for branch in plan]),
                weights=jnp.asarray([branch.weight for branch in plan]),
                rescale=jnp.asarray(settings.rescale, jnp.float32),
            )

        guided, plain = made(plan), made(guidance_branches(1.0, 1.0))
        return [
            guided if settings.guide_from <= i / settings.steps < settings.guide_to else plain
            for i in range(settings.steps)
        ]

    def sample(
        self,
        source: np.ndarray,
        instruction: str,
        settings: EditSettings,
        progress: Callable[[int, int], None] | None = None,
        noise=None,
    ) -> np.ndarray:
        """Edited latents [T, h, w, C], unscaled, from the source clip's [T, h, w, C] (posterior mode, unscaled).

        settings: resolved. progress(done, total) is called after each evaluation of the net; noise: unit noise to start from.
        """
        table = make_sampler(settings.sampler, self.schedule, settings.steps, settings.eta)
        cut = windows.plan_windows(len(source), settings.frames)
        total = settings.steps * len(cut)
        ran = self.sampling_loop(
            self.params["unet"],
            source,
            self.guidance(instruction, settings),
            table,
            settings.seed,
            cut,
            noise,
            settings.shared_noise,
        )
        for done, latents in enumerate(ran):
            if latents is not None:
                return latents / self.folder.vae.scaling_factor
            if progress:
                progress(done + 1, total)
        raise AssertionError("the sampling loop ended without latents")

    def generate(self, caption: str, count: int, settings: EditSettings) -> np.ndarray:
        """Images of a caption by a text-to-image net (4 channels, no temporal layers), uint8 [count, size, size, 3]. settings: resolved."""
        latent, unet = self.folder.vae, self.folder.unet
        if unet.in_channels != latent.latent_channels or unet.temporal:
            raise UserError(
                f"{self.folder.path}: this U-Net edits clips and draws no images from text alone"
            )
        side = settings.size // latent.downscale
        noise = np.random.default_rng(settings.seed).standard_normal(
            (count, side, side, latent.latent_channels), np.float32
        )
        settings = dataclasses.replace(settings, video_scale=1.0, frames=count)
        drawn = self.sample(noise[..., :0], caption, settings, noise=noise)
        return np.stack(list(self.vae_codec.decode(self.params["vae"], drawn)))

    def reconstruct(self, clip: np.ndarray) -> np.ndarray:
        """A clip of the model's size through the autoencoder, uint8 [T, H, W, 3] both."""
        params = self.params["vae"]
        return np.stack(
            list(self.vae_codec.decode(params, self.vae_codec.encode(params, iter(clip))))
        )

    def edit_frames(
        self,
        frames: Iterable[np.ndarray],
        instruction: str,
        settings: EditSettings,
        fit: ResizePlan,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """Edited frames, one by one, from a stream of frames; pixels are held a chunk at a time, latents for the whole clip.

        frames: [H, W, 3] uint8 of the size `fit` was planned for; so are the results. Each frame is encoded once.
        """
        self.check_editable(instruction)
        source = self.vae_codec.encode(self.params["vae"], (fit.apply(frame) for frame in frames))
        edited = self.sample(source, instruction, settings, progress)
        return (fit.restore(frame) for frame in self.vae_codec.decode(self.params["vae"], edited))

    def check_editable(self, instruction: str) -> None:
        """UserError for an instruction that says nothing, or a net that takes no source clip."""
        check_instruction(instruction)
        self.check_editor()

    def check_editor(self) -> None:
        """UserError for a net that takes no source clip."""
        channels, needed = self.folder.unet.in_channels, 2 * self.folder.vae.latent_channels
        if channels != needed:
            raise UserError(
                f"{self.folder.path}: this U-Net takes {channels} latent channels and no source clip; an editor takes {needed}. Train one from it"
            )

    def edit(
        self,
        video: str | Path | np.ndarray,
        instruction: str,
        progress: Callable[[int, int], None] | None = None,
        **settings,
    ) -> np.ndarray:
        """Edits a clip by an instruction.

        video: a path, or uint8 [T, H, W, 3]. settings: fields of `EditSettings`. Returns uint8 [T, H, W, 3] of the same
        size. Raises UserError for what cannot be read or sampled.
        """
        unknown = settings.keys() - {field.name for field in dataclasses.fields(EditSettings)}
        if unknown:
            raise TypeError(
                f"unknown settings {', '.join(sorted(unknown))}; EditSettings has {', '.join(f.name for f in dataclasses.fields(EditSettings))}"
            )
        resolved = EditSettings(**settings).resolve(self.folder)
        if isinstance(video, str | Path):
            from ivid2vid_jax.video.read import (
                open_clip,  # here, so that arrays can be edited where PyAV is not installed
            )

            clip = open_clip(video)
            size, frames = (clip.height, clip.width), (frame.pixels for frame in clip.frames())
        else:
            video = np.asarray(video)
            if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not len(video):
                raise UserError(
                    f"a clip must be uint8 [T, H, W, 3] with T >= 1, got {video.dtype} {list(video.shape)}"
                )
            size, frames = video.shape[1:3], video
        fit = ResizePlan.plan(size, resolved.size, self.factor)
        return np.stack(list(self.edit_frames(frames, instruction, resolved, fit, progress)))


def load(
    model: str | Path | None = None,
    dtype: str = "auto",
    variant: str | None = None,
    attention_impl: str = "auto",
    devices: int | None = None,
) -> Pipeline:
    """Loads a pipeline folder, a training run's, an embedded one (None: shapes-edit), or a model of the Hugging Face hub ("owner/name").

    dtype: the arithmetic's type ("auto", "float32", "bfloat16"); parameters are held in it. variant: "fp16" picks those
    files. devices: how many share an edit (None: all of this process). Raises UserError that names what is missing or does not fit.
    """
    runtime.enable_compilation_cache()
    compute, spread = runtime.compute_dtype(dtype), DeviceGroup(devices)
    folder = open_pipeline_folder(hub.resolve_model(model, variant))
    try:
        NoiseSchedule.from_json(folder.scheduler)
    except ValueError as error:
        raise UserError(f"{folder.path}: {error}") from error
    if folder.scheduler.get("_class_name") not in SCHEDULER_CLASSES:
        log.info(
            "%s: its %s gives the noise schedule; ddim samples",
            folder.path.name,
            folder.scheduler.get("_class_name"),
        )
    params = load_params(folder, compute, variant=variant)
    return Pipeline(
        folder,
        spread.put(params),
        load_tokenizer(folder.tokenizer),
        compute,
        attention_impl,
        spread,
    )


def load_tokenizer(path: Path):
    """Transformers' CLIPTokenizer from its folder; padding is the one that the folder's own files name."""
    from transformers import CLIPTokenizer

    if not (path / "vocab.json").is_file() and not (path / "tokenizer.json").is_file():
        raise UserError(f"{path}: holds neither vocab.json nor tokenizer.json")
    try:
        return CLIPTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is not a CLIP tokenizer ({error})") from error
