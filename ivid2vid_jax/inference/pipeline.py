"""The editing pipeline: the models and parameters of a pipeline folder.

pipe = ivid2vid_jax.load("RUN/pipeline")
result = pipe("clip.mp4", "make it snow", seed=0)
result.save("edited.mp4")
result.frames                                    # uint8 [T, H, W, 3]
"""

import contextlib
import dataclasses
import difflib
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
from ivid2vid_jax.diffusion.samplers import make_sampler
from ivid2vid_jax.diffusion.schedule import NoiseSchedule
from ivid2vid_jax.errors import UserError, check_instruction
from ivid2vid_jax.inference.clip_source import as_source
from ivid2vid_jax.inference.result import EditResult
from ivid2vid_jax.inference.sampling_loop import Guidance, SamplingLoop
from ivid2vid_jax.inference.settings import EditSettings, ResolvedSettings
from ivid2vid_jax.inference.vae_codec import VAECodec
from ivid2vid_jax.models import CLIPTextModel
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.parallel.device_group import DeviceGroup
from ivid2vid_jax.utils import names
from ivid2vid_jax.utils.progress import Progress
from ivid2vid_jax.video import windows
from ivid2vid_jax.video.fit import ResizePlan
from ivid2vid_jax.weights import hub
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder, load_params, open_pipeline_folder
from ivid2vid_jax.weights.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


@dataclasses.dataclass(repr=False)
class Pipeline:
    """A loaded pipeline folder.

    It caches its compiled programs, so clips of the same shape compile once.
    """

    folder: PipelineFolder
    params: dict[str, Any]  # component -> parameter tree
    tokenizer: Any
    dtype: Any = jnp.float32
    attention_impl: str = "auto"
    devices: DeviceGroup = dataclasses.field(default_factory=lambda: DeviceGroup(1))

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the folder's scheduler."""
        return NoiseSchedule.from_json(self.folder.scheduler)

    @cached_property
    def vae_codec(self) -> VAECodec:
        """The codec between frames and latents."""
        return VAECodec(self.folder.vae, self.dtype, self.devices)

    @cached_property
    def sampling_loop(self) -> SamplingLoop:
        """The sampling loop around the U-Net."""
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
        """Height and width of the frames inside the model are multiples of this."""
        return self.folder.vae.downscale * self.folder.unet.downscale

    def encode_text(self, texts: list[str]) -> jax.Array:
        """Text embeddings [N, tokens, width]; a warning shows the words beyond the token limit."""
        limit = self.folder.text_length
        for text in texts:
            ids = self.tokenizer(text, truncation=False, verbose=False)["input_ids"]
            if len(ids) > limit:
                dropped = self.tokenizer.decode(ids[limit - 1 : -1]).strip()
                if len(dropped) >= 60:
                    dropped = f"{dropped[:40]} ... {dropped[-15:]}"
                log.warning(
                    "the text is %d tokens long and is cut at %d; what is not read: %r",
                    len(ids),
                    limit,
                    dropped,
                )
        ids = self.tokenizer(
            texts, padding="max_length", max_length=limit, truncation=True, return_tensors="np"
        )["input_ids"]
        return self._encode_text(
            self.params["text_encoder"], self.devices.put(np.asarray(ids, np.int32))
        )

    def guidance(self, instruction: str, settings: ResolvedSettings) -> list[Guidance]:
        """The guidance branches of each sampler step, on the device; see `diffusion/guidance.py`.

        Guidance in an interval of the steps only: Kynkäänniemi et al. 2024, arXiv 2404.07724.
        """
        null, text = self.encode_text([settings.negative, instruction])

        def on_device(branches: list[GuidanceBranch]) -> Guidance:
            return Guidance(
                text=jnp.stack([text if branch.text else null for branch in branches]),
                video=jnp.asarray([float(branch.video) for branch in branches]),
                weights=jnp.asarray([branch.weight for branch in branches]),
                rescale=jnp.asarray(settings.rescale, jnp.float32),
            )

        guided = on_device(guidance_branches(settings.text_scale, settings.video_scale))
        unguided = on_device(guidance_branches(1.0, 1.0))
        return [
            guided if settings.guide_from <= i / settings.steps < settings.guide_to else unguided
            for i in range(settings.steps)
        ]

    def sample(
        self,
        source: np.ndarray,
        instruction: str,
        settings: ResolvedSettings,
        progress: Callable[[int, int], None] | None = None,
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples the edited latents [T, h, w, C], unscaled.

        Args:
            source: latents of the source clip [T, h, w, C] (posterior mode, unscaled).
            instruction: what to change.
            settings: how to sample.
            progress: progress(done, total) is called after each evaluation of the net.
            noise: initial unit noise [T, h, w, C]; None draws it from the seed.
        """
        table = make_sampler(settings.sampler, self.schedule, settings.steps, settings.eta)
        clip_windows = windows.plan_windows(len(source), settings.frames)
        total = settings.steps * len(clip_windows)
        outputs = self.sampling_loop(
            self.params["unet"],
            source,
            self.guidance(instruction, settings),
            table,
            settings.seed,
            clip_windows,
            noise,
            settings.shared_noise,
        )
        for done, latents in enumerate(outputs):
            if latents is not None:
                return latents / self.folder.vae.scaling_factor
            if progress:
                progress(done + 1, total)
        raise AssertionError("the sampling loop ended without latents")

    def generate(self, caption: str, count: int, settings: ResolvedSettings) -> np.ndarray:
        """Generates images of a caption, uint8 [count, size, size, 3].

        The U-Net must be a text-to-image net: 4 input channels, no temporal layers.
        """
        vae, unet = self.folder.vae, self.folder.unet
        if unet.in_channels != vae.latent_channels or unet.temporal:
            raise UserError(
                f"{self.folder.path}: this U-Net edits clips and draws no images from text alone"
            )
        side = settings.size // vae.downscale
        noise = np.random.default_rng(settings.seed).standard_normal(
            (count, side, side, vae.latent_channels), np.float32
        )
        settings = dataclasses.replace(settings, video_scale=1.0, frames=count)
        latents = self.sample(noise[..., :0], caption, settings, noise=noise)
        return np.stack(list(self.vae_codec.decode(self.params["vae"], latents)))

    def reconstruct(self, clip: np.ndarray) -> np.ndarray:
        """Encodes and decodes a clip of the model's size: uint8 [T, H, W, 3] -> the same."""
        params = self.params["vae"]
        latents = self.vae_codec.encode(params, iter(clip))
        return np.stack(list(self.vae_codec.decode(params, latents)))

    def edit_frames(
        self,
        frames: Iterable[np.ndarray],
        instruction: str,
        settings: ResolvedSettings,
        fit: ResizePlan,
        progress: Callable[[int, int], None] | None = None,
    ) -> "EditedFrames":
        """Edits a stream of frames; returns the edited frames, decoded as they are iterated.

        Memory holds the pixels of a chunk and the latents of the whole clip. Each frame is encoded
        once. The result can be iterated again, so that no edit is lost if writing it fails.

        Args:
            frames: [H, W, 3] uint8 of the size that `fit` was planned for, as the results are, or
                of the model's size, `fit.inner`.
            instruction: what to change.
            settings: how to sample.
            fit: resizes frames to the model's size and back.
            progress: progress(done, total) is called after each evaluation of the net.
        """
        self.check_editable(instruction)
        source = self.vae_codec.encode(self.params["vae"], (fit.apply(frame) for frame in frames))
        edited = self.sample(source, instruction, settings, progress)
        return EditedFrames(self, edited, fit)

    def check_editable(self, instruction: str) -> None:
        """UserError for an empty instruction or a net that takes no source clip."""
        check_instruction(instruction)
        self.check_editor()

    def check_editor(self) -> None:
        """UserError for a net that takes no source clip."""
        channels, needed = self.folder.unet.in_channels, 2 * self.folder.vae.latent_channels
        if channels != needed:
            raise UserError(
                f"{self.folder.path}: this U-Net takes {channels} latent channels and no source "
                f"clip; an editor takes {needed}. Train one from it"
            )

    def edit(
        self,
        video: Any,
        instruction: str,
        progress: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Edits a clip by an instruction; returns its frames, uint8 [T, H, W, 3].

        Args:
            video: see `__call__`.
            instruction: what to change.
            progress: progress(done, total) is called after each evaluation of the net.
            **settings: fields of `EditSettings`.

        Raises:
            UserError: the clip cannot be read, or the settings are out of range.
            TypeError: an unknown setting.
        """
        resolved = settings_from_keywords(settings).resolve(self.folder)
        clip = as_source(video)
        fit = ResizePlan.plan(clip.size, resolved.size, self.factor)
        frames = clip.frames(fit.inner)
        return np.stack(list(self.edit_frames(frames, instruction, resolved, fit, progress)))

    def __call__(
        self,
        video: Any,
        prompt: str,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        negative_prompt: str = "",
        seed: int | None = None,
        generator: Any = None,
        fps: float | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> EditResult:
        """Edits a clip by an instruction, with the argument names of diffusers.

        Args:
            video: a path, a list of PIL images, or an array or torch tensor: uint8 [T, H, W, 3],
                or float in [0, 1], [T, H, W, 3] or [T, 3, H, W].
            prompt: what to change.
            num_inference_steps: sampler steps; None here and below: the model's default.
            guidance_scale: guidance towards the instruction.
            image_guidance_scale: guidance towards the source clip.
            negative_prompt: what to avoid.
            seed: of all noise; 0 if neither `seed` nor `generator` is given.
            generator: instead of a seed, a torch.Generator, whose initial seed is used.
            fps: frame rate of a clip without one (arrays and images); of a file: resamples it.
            progress: shows a progress bar.
            **settings: other fields of `EditSettings`.

        Raises:
            UserError: the clip cannot be read, or the settings are out of range.
            TypeError: an unknown setting, or a video of a wrong type.
        """
        if generator is not None and seed is not None:
            raise TypeError("give a seed or a generator, not both")
        if generator is not None:
            seed = int(generator.initial_seed()) % 2**32
        given = {
            "steps": num_inference_steps,
            "text_scale": guidance_scale,
            "video_scale": image_guidance_scale,
            "negative": negative_prompt or None,
            "seed": seed,
        }
        settings |= {name: value for name, value in given.items() if value is not None}
        resolved = settings_from_keywords(settings).resolve(self.folder)
        clip = as_source(video, fps)
        fit = ResizePlan.plan(clip.size, resolved.size, self.factor)
        with Progress("sampling") if progress else contextlib.nullcontext() as bar:
            edited = self.edit_frames(clip.counted(fit.inner, bar), prompt, resolved, fit, bar)
        return EditResult(edited, clip.times, clip.rate, clip.file)

    def __repr__(self) -> str:
        count = sum(x.size for tree in self.params.values() for x in jax.tree.leaves(tree))
        side = (self.folder.unet.sample_size or 64) * self.folder.vae.downscale
        return (
            f"Pipeline({str(self.folder.path)!r}: {count / 1e6:.1f} million parameters, "
            f"{jnp.dtype(self.dtype).name}, {side} pixels, windows of "
            f"{self.folder.unet.num_frames} frames)"
        )


def settings_from_keywords(settings: dict[str, Any]) -> EditSettings:
    """Settings from keyword arguments; TypeError for an unknown one, with the nearest name."""
    known = [field.name for field in dataclasses.fields(EditSettings)]
    ours = {names.SETTINGS.get(name, name): value for name, value in settings.items()}
    for name in ours:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *names.SETTINGS], 1)
            suggestion = f" did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"unknown setting {name!r};{suggestion} EditSettings has {', '.join(known)}"
            )
    return EditSettings(**ours)


@dataclasses.dataclass(frozen=True, eq=False)
class EditedFrames:
    """Edited frames, [H, W, 3] uint8, decoded anew at each iteration. latents: [T, h, w, C]."""

    pipeline: Pipeline
    latents: np.ndarray
    fit: ResizePlan

    def __iter__(self) -> Iterator[np.ndarray]:
        codec, params = self.pipeline.vae_codec, self.pipeline.params["vae"]
        return (self.fit.restore(frame) for frame in codec.decode(params, self.latents))


def load(
    model: str | Path | None = None,
    dtype: str = "auto",
    variant: str | None = None,
    attention_impl: str = "auto",
    devices: int | None = None,
) -> Pipeline:
    """Loads a pipeline.

    Args:
        model: a pipeline folder, a training run, an embedded model's name (None: shapes-edit), or
            a model of the Hugging Face hub ("owner/name").
        dtype: dtype of parameters and arithmetic: "auto", "float32" or "bfloat16".
        variant: "fp16" loads the fp16 files.
        attention_impl: attention implementation; see `models/attention.py`.
        devices: number of devices that share an edit; None for all of this process.

    Raises:
        UserError: names what is missing or does not fit.
    """
    runtime.enable_compilation_cache()
    compute_dtype, device_group = runtime.compute_dtype(dtype), DeviceGroup(devices)
    folder = open_pipeline_folder(hub.resolve_model(model, variant))
    try:
        NoiseSchedule.from_json(folder.scheduler)
    except ValueError as error:
        raise UserError(f"{folder.path}: {error}") from error
    scheduler_class = folder.scheduler.get("_class_name")
    if scheduler_class not in names.SCHEDULER_CLASSES:
        log.info(
            "%s: its %s gives the noise schedule; ddim samples", folder.path.name, scheduler_class
        )
    params = load_params(folder, compute_dtype, variant=variant)
    return Pipeline(
        folder,
        device_group.put(params),
        load_tokenizer(folder.tokenizer),
        compute_dtype,
        attention_impl,
        device_group,
    )
