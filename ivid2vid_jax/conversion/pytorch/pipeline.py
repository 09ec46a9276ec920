"""Edits a clip by an instruction, with weights exported by ivid2vid_jax.

It needs torch, diffusers, transformers and Pillow, and av to read video files.

from diffusers import DiffusionPipeline
from diffusers.utils import export_to_video

pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
frames = pipe("clip.mp4", "make it snow").frames[0]      # PIL images
export_to_video(frames, "edited.mp4", fps=8)
"""

import inspect
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput

from .clips import (
    OUTPUT_TYPES,
    ResizeAndPad,
    blend_weights,
    convert_frames,
    plan_windows,
    read_video,
    unit_noise,
)
from .old_names import accept_old_names

CODE = ("pipeline.py", "clips.py", "old_names.py")


@dataclass
class InstructVid2VidPipelineOutput(BaseOutput):
    """Edited clips.

    frames: by `output_type`, for each prompt a list of T PIL images; float32 [B, T, H, W, 3] or a
    tensor [B, T, 3, H, W] from 0 to 1; or scaled latents [B, C, T, h, w].
    """

    frames: list | np.ndarray | torch.Tensor


class InstructVid2VidPipeline(DiffusionPipeline):
    """The pipeline of an exported folder.

    unet predicts the noise of clips from [B, 2C, T, h, w]: noisy latents, then those of the source
    clip. The arguments after the modules are the defaults of a call.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = ("latents", "prompt_embeds", "image_latents")

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        unet,
        scheduler,
        steps: int = 50,
        text_scale: float = 7.5,
        video_scale: float = 1.5,
        size: int = 256,
        frames: int = 16,
        shared_noise: float = 0.0,
    ):
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
        self.register_to_config(
            steps=steps,
            text_scale=text_scale,
            video_scale=video_scale,
            size=size,
            frames=frames,
            shared_noise=shared_noise,
        )

    @torch.no_grad()
    @accept_old_names
    def __call__(
        self,
        video=None,
        prompt: str | list[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end=None,
        callback_on_step_end_tensor_inputs=("latents",),
        size: int | None = None,
        frames: int | None = None,
        shared_noise: float | None = None,
        image=None,
    ):
        """Edits a clip; None takes the folder's default.

        Args:
            video: a file; a list of PIL images; an array [T, H, W, 3] or a tensor [T, 3, H, W],
                uint8 or float from 0 to 1.
            prompt: what to change; a list edits the clip once for each of its B prompts.
            num_inference_steps: sampler steps.
            guidance_scale: guidance towards the prompt.
            image_guidance_scale: guidance towards the source clip.
            negative_prompt: replaces the empty prompt of guidance.
            num_videos_per_prompt: edits of each prompt.
            eta: share of fresh noise in the steps of `DDIMScheduler`, 0 to 1.
            generator: source of all noise; one, or one for each edit. None: torch's global one.
            latents: initial unit noise [B, C, T, h, w], instead of the generator's.
            prompt_embeds: embeddings [B, K, D] that replace `prompt`.
            negative_prompt_embeds: embeddings [B, K, D] that replace `negative_prompt`.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns the tuple `(frames,)`.
            callback_on_step_end: callback(pipe, step, timestep, tensors) after each step; returns
                a dict of the tensors that it replaces. `pipe._interrupt = True` ends sampling.
            callback_on_step_end_tensor_inputs: which tensors it gets: latents [B, C, T, h, w],
                prompt_embeds [3B, K, D] (negative, negative, prompt; only the last third ends
                guidance) and image_latents [1, C, T, h, w].
            size: pixels of the longer side inside the model.
            frames: frames of one window.
            shared_noise: share of the initial noise that all frames have in common, 0 to 1.
            image: the same as `video`, under InstructPix2Pix's name.

        Returns:
            `InstructVid2VidPipelineOutput`; its frames have the video's size.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        clip = self.check_inputs(
            video, image, output_type, shared_noise, callback_on_step_end_tensor_inputs
        )
        defaults, self._interrupt = self.config, False
        steps = either(num_inference_steps, defaults.steps)
        if steps < 1:
            raise ValueError(f"num_inference_steps {steps} must be 1 or more")
        self._guidance_scale = either(guidance_scale, defaults.text_scale)
        self._image_guidance_scale = either(image_guidance_scale, defaults.video_scale)
        prompt_embeds = self.encode_prompt(
            prompt, negative_prompt, num_videos_per_prompt, prompt_embeds, negative_prompt_embeds
        )
        fit = ResizeAndPad(clip.shape[1:3], either(size, defaults.size), self.factor)
        image_latents = self.encode(np.stack([fit.apply(frame) for frame in clip]))
        self.scheduler.set_timesteps(steps, device=self._execution_device)
        latents = self.sample(
            self.prepare_latents(
                (len(prompt_embeds) // 3, *image_latents.shape[1:]),
                latents,
                either(shared_noise, defaults.shared_noise),
                generator,
            ),
            image_latents,
            prompt_embeds,
            plan_windows(len(clip), either(frames, defaults.frames)),
            self.step_options(generator, eta),
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        edited = latents
        if output_type != "latent":
            clips = (self.decode(x) for x in latents / self.vae.config.scaling_factor)
            restored = [np.stack([fit.restore(frame) for frame in clip]) for clip in clips]
            edited = convert_frames(restored, output_type)
        self.maybe_free_model_hooks()
        return InstructVid2VidPipelineOutput(edited) if return_dict else (edited,)

    @property
    def guidance_scale(self) -> float:
        """Guidance towards the prompt, of the running call."""
        return self._guidance_scale

    @property
    def image_guidance_scale(self) -> float:
        """Guidance towards the source clip, of the running call."""
        return self._image_guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Evaluations of the net in the running call."""
        return len(self.scheduler.timesteps)

    @property
    def interrupt(self) -> bool:
        """Whether a callback ended the running call's sampling."""
        return self._interrupt

    @property
    def factor(self) -> int:
        """Height and width of the frames inside the model are multiples of this."""
        return 2 ** (
            len(self.vae.config.block_out_channels) + len(self.unet.config.block_out_channels) - 2
        )

    def check_inputs(self, video, image, output_type, shared_noise, tensor_inputs):
        """Returns the clip, uint8 [T, H, W, 3]. Raises ValueError for an argument that is wrong."""
        if (video is None) == (image is None):
            raise ValueError("give the clip as video or as image, one of them")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r} must be one of {OUTPUT_TYPES}")
        if shared_noise is not None and not 0 <= shared_noise <= 1:
            raise ValueError(f"shared_noise {shared_noise} must be between 0 and 1")
        if unknown := set(tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs {sorted(unknown)} must be among "
                f"{self._callback_tensor_inputs}"
            )
        if self.unet.config.in_channels != 2 * self.vae.config.latent_channels:
            raise ValueError(
                f"this U-Net takes {self.unet.config.in_channels} latent channels and no source "
                "clip, so it edits nothing"
            )
        return read_video(video if image is None else image)

    def encode_prompt(self, prompt, negative_prompt, count, prompt_embeds, negative_prompt_embeds):
        """Embeddings [3B, K, D] of guidance's branches: negative, negative, prompt.

        count: edits of each prompt, which are neighbours in the batch.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give prompt or prompt_embeds, one of them")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("give negative_prompt or negative_prompt_embeds, not both")
        device, dtype = self._execution_device, self.unet.dtype
        if prompt_embeds is None:
            prompt_embeds = self.encode_text(as_texts("prompt", prompt))
        if negative_prompt_embeds is None:
            negative_prompt_embeds = self.encode_text(
                as_texts("negative_prompt", negative_prompt or "")
            )
        if len(negative_prompt_embeds) not in (1, len(prompt_embeds)):
            raise ValueError(
                f"{len(negative_prompt_embeds)} negative prompts do not fit {len(prompt_embeds)} "
                "prompts; give one, or one for each"
            )
        text = prompt_embeds.to(device, dtype).repeat_interleave(count, dim=0)
        null = negative_prompt_embeds.to(device, dtype).expand_as(prompt_embeds)
        null = null.repeat_interleave(count, dim=0)
        return torch.cat([null, null, text])

    def encode_text(self, texts):
        """Texts -> embeddings [N, K, D]."""
        ids = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.text_encoder.config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder(ids.to(self._execution_device))[0]

    def prepare_latents(self, shape, latents, shared_noise, generator):
        """Initial latents [B, C, T, h, w], float32; latents: unit noise instead of a random one."""
        device = self._execution_device
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators do not fit {shape[0]} edits")
        if latents is None:
            latents = unit_noise(shape, shared_noise, generator, device)
        elif latents.shape != torch.Size(shape):
            raise ValueError(f"latents {list(latents.shape)} must be {list(shape)}")
        return latents.to(device, torch.float32) * self.scheduler.init_noise_sigma

    def step_options(self, generator, eta):
        """Those of the options that the scheduler's steps take."""
        parameters = inspect.signature(self.scheduler.step).parameters
        options = {"generator": generator, "eta": eta}
        return {name: value for name, value in options.items() if name in parameters}

    def sample(self, latents, image_latents, prompt_embeds, windows, options, callback, names):
        """Sampling loop over windows: initial latents [B, C, T, h, w] -> final ones.

        options: keyword arguments of the scheduler's steps; callback, names: see `__call__`.
        """
        weights = [
            torch.as_tensor(weight, device=latents.device)[:, None, None]
            for weight in blend_weights(windows, latents.shape[2])
        ]
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            if self.interrupt:
                continue
            model_input = self.scheduler.scale_model_input(latents, t)
            prediction = torch.zeros_like(latents)
            for window, weight in zip(windows, weights, strict=True):
                prediction[:, :, window] += weight * self.guided_prediction(
                    model_input[:, :, window], image_latents[:, :, window], prompt_embeds, t
                )
            latents = self.scheduler.step(prediction, t, latents, **options, return_dict=False)[0]
            if callback:
                tensors = {
                    "latents": latents,
                    "prompt_embeds": prompt_embeds,
                    "image_latents": image_latents,
                }
                tensors |= callback(self, i, t, {name: tensors[name] for name in names}) or {}
                latents, prompt_embeds, image_latents = tensors.values()
        return latents

    def guided_prediction(self, x, source, prompt_embeds, t):
        """Guided prediction of a window, [B, C, T, h, w], float32.

        Branches of weight zero are not evaluated. prompt_embeds [B, K, D] means no guidance.
        """
        clip, no_clip = source.expand_as(x), torch.zeros_like(x)
        text_scale, clip_scale = self.guidance_scale, self.image_guidance_scale
        weights = [1 - clip_scale, clip_scale - text_scale, text_scale]
        sources, texts = [no_clip, clip, clip], prompt_embeds.chunk(3)
        if len(prompt_embeds) == len(x):
            weights, sources, texts = [1.0], [clip], [prompt_embeds]
        used = [i for i, weight in enumerate(weights) if weight]
        text = torch.cat([texts[i] for i in used])
        if type(self.unet).__name__ == "UNetMotionModel":  # it takes the text once per frame
            text = text.repeat_interleave(x.shape[2], dim=0)
        model_input = torch.cat([torch.cat([x, sources[i]], dim=1) for i in used])
        predictions = self.unet(model_input.to(self.unet.dtype), t, text).sample.float()
        chunks = predictions.chunk(len(used))
        return sum(weights[i] * chunk for i, chunk in zip(used, chunks, strict=True))

    def encode(self, clip):
        """uint8 [T, H, W, 3] -> posterior modes [1, C, T, h, w], unscaled, float32."""
        pixels = torch.from_numpy(clip).movedim(-1, 1).to(self._execution_device, torch.float32)
        modes = [
            self.vae.encode(frame.to(self.vae.dtype)).latent_dist.mode()
            for frame in (pixels / 127.5 - 1).split(1)
        ]
        return torch.cat(modes).float().transpose(0, 1)[None]

    def decode(self, latents):
        """Unscaled latents [C, T, h, w] -> uint8 frames [H, W, 3], one by one."""
        for frame in latents.transpose(0, 1).split(1):
            pixels = (self.vae.decode(frame.to(self.vae.dtype)).sample[0].float() + 1) * 127.5
            yield pixels.clamp(0, 255).round().to(torch.uint8).movedim(0, -1).cpu().numpy()

    def save_config(self, save_directory, **kwargs):
        """Writes model_index.json, the code that it names, and sampling.json for ivid2vid_jax."""
        super().save_config(save_directory, **kwargs)
        folder = Path(save_directory)
        index = json.loads((folder / self.config_name).read_text())
        index["_class_name"] = ["pipeline", type(self).__name__]
        for name in CODE:
            copy_file(Path(__file__).with_name(name), folder / name)
        library, class_name = index["unet"]
        if library != "diffusers":
            library = library.rpartition(".")[2]
            copy_file(inspect.getfile(type(self.unet)), folder / "unet" / f"{library}.py")
            index["unet"] = [library, class_name]
        (folder / self.config_name).write_text(json.dumps(index, indent=2) + "\n")
        names = ("steps", "text_scale", "video_scale", "size", "frames", "shared_noise")
        sampling = {name: self.config[name] for name in names}
        (folder / "sampling.json").write_text(json.dumps(sampling, indent=2) + "\n")


def either(value, default):
    """The value, or the default if it is None."""
    return default if value is None else value


def as_texts(name, texts):
    """A text or a list of texts as a list. Raises TypeError for other types."""
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} must be a str or a list of str, got {type(texts).__name__}")
    return texts


def copy_file(source, target):
    """Copies a file, unless both are the same one."""
    if Path(source).resolve() != target.resolve():
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
