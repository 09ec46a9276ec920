"""The training config: one tree of typed dataclasses.

A recipe file defines `config = TrainConfig(...)`; without a recipe, `DEFAULT` is trained.
"""

import dataclasses
from typing import Literal

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.shapes import KINDS, UNSEEN_STYLE
from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.errors import UserError, check_types
from ivid2vid_jax.models import (
    AutoencoderConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    UNetConfig,
)
from ivid2vid_jax.parallel.mesh import MeshConfig
from ivid2vid_jax.parallel.processes import DistributedConfig


@dataclasses.dataclass(frozen=True)
class NetConfig:
    """The networks. Sizes apply to training from scratch; with --model they are the model's."""

    # kinds of temporal layers (models/temporal.py); None = those of the model
    temporal: tuple[str, ...] | None = ("conv", "attention")
    # discard the model's temporal layers and add new ones, whose output is zero at first
    reinit_temporal: bool = False

    unet: UNetConfig = UNetConfig(
        block_out_channels=(48, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(8, 2, 3),
        cross_attention_dim=96,
        norm_num_groups=16,
        sample_size=16,
        num_frames=8,
    )
    vae: AutoencoderConfig = AutoencoderConfig(
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=1.0,
        sample_size=64,
        force_upcast=False,
    )
    text_encoder: CLIPTextConfig = CLIPTextConfig(
        vocab_size=1024,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=32,
        projection_dim=96,
    )
    # for --task clip; its image size is that of the loader
    clip: CLIPConfig = CLIPConfig(
        text=CLIPTextConfig(
            vocab_size=1024,
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=32,
            projection_dim=96,
        ),
        vision=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
        ),
        projection_dim=96,
    )
    # from scratch only; with --model, the model's scheduler determines it
    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"
    zero_terminal_snr: bool = True  # from scratch only: the last timestep is pure noise


@dataclasses.dataclass(frozen=True)
class CondDropoutConfig:
    """Conditioning dropout for classifier-free guidance: one uniform draw per clip decides."""

    text: float = 0.05  # probability of dropping only the instruction
    both: float = 0.05  # probability of dropping the instruction and the source clip
    video: float = 0.05  # probability of dropping only the source clip


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser, learning rate schedule, EMA, precision, and which weights are trained."""

    optimizer: Literal["adamw", "adafactor"] = "adamw"
    lr: float = 1e-3  # peak learning rate
    # after the warm-up, from lr to final_lr * lr
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: int = 100  # steps of linear warm-up
    final_lr: float = 0.0  # learning rate after the last step, as a fraction of lr
    b1: float = 0.9  # Adam: decay of the gradient's moving average
    b2: float = 0.99  # Adam: decay of the squared gradient's moving average
    eps: float = 1e-8  # Adam: added to the denominator
    weight_decay: float = 1e-2  # on kernels only, not on norms, biases and embeddings
    grad_clip: float = 1.0  # maximum global gradient norm; 0 = no clipping
    # micro-batches per optimiser step; loader.batch is the size of the whole batch
    accumulation: int = 1
    # decay of the averaged weights, warmed up as min(ema, (1 + n) / (10 + n)); 0 = no average
    ema: float = 0.999
    # presets (unet, temporal, spatial, attention, text_encoder, vae, clip) or regular expressions
    # on parameter names
    trainable: tuple[str, ...] = ("unet",)
    # compute precision; auto: bfloat16 on TPU and GPU, float32 on CPU. float32 also multiplies in
    # float32 everywhere, where TPUs and GPUs by default take bfloat16 and TF32
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    # storage precision of frozen weights; auto = dtype
    frozen_dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    # activations kept for the backward pass: all, outputs of matrix products, or block inputs only
    remat: Literal["none", "products", "block"] = "none"
    attention: str = "auto"  # attention implementation, see models/attention.py
    # parts of the state that stay in the host's memory and pass through the device's in each step:
    # ema, and moments, the optimiser's moving averages
    offload: tuple[Literal["ema", "moments"], ...] = ()


@dataclasses.dataclass(frozen=True)
class AutoencoderLossConfig:
    """The autoencoder's loss: mean absolute error + kl * KL divergence + gradient * edge error."""

    # weight of the KL divergence to the unit Gaussian, divided by the number of pixel values
    kl: float = 1e-4
    # weight of the mean absolute error of the differences between neighbouring pixels; sharpens
    # edges
    gradient: float = 0.0


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints: when they are written, and how many are kept."""

    every: int = 100  # steps between checkpoints; the last step and a stop always save one
    keep: int = 3  # number of checkpoints kept, the newest
    # wait until a checkpoint is on disk before training continues: a kill then loses at most
    # `every` steps; otherwise it also loses the steps that ran during the write
    wait: bool = False
    pipeline: bool = True  # write RUN/pipeline: the EMA weights as a pipeline folder
    # steps between writings of RUN/pipeline, which run in the background; after the last step it is
    # always written. 0 = only then
    pipeline_every: int = 0


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Validation, samples, profiling and the benchmark."""

    eval_every: int = 500  # steps between validation losses; 0 = never
    eval_batches: int = 4  # batches per validation and dataset
    # steps between samples (side-by-side clips and contact sheets in RUN/samples); 0 = never
    sample_every: int = 1000
    samples: int = 4  # clips per sampling
    sample_steps: int = 20  # sampler steps
    # steps to profile, from the sixth on, into RUN/profile, for TensorBoard or xprof; 0 = none
    profile: int = 0
    # held-out clips of the shapes world, of the trained kinds of edit, that are edited and checked
    # before the first and after the last step; 0 = none
    benchmark: int = 0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Trains on triplets of source clip, instruction, edited clip. Run again to resume."""

    output: str = "runs/shapes"  # the RUN folder
    # initial weights: a pipeline folder, a RUN or a model on the Hugging Face hub; None = scratch
    model: str | None = None
    # an autoencoder in the place of the model's: a pipeline or autoencoder folder, a RUN or a model
    # on the hub
    vae: str | None = None
    # procedural worlds ("shapes", "shapes-crowded") and folders written by
    # `python -m ivid2vid_jax.prepare`
    data: tuple[str, ...] = ("shapes",)
    # what is trained: an editor, a text-to-image model, an autoencoder, or CLIP
    task: Literal["edit", "text_to_image", "autoencoder", "clip"] = "edit"
    steps: int = 2000  # optimiser steps of the whole run
    seed: int = 0  # of initial weights, data order, noise and dropout
    resume: int | None = None  # step of the checkpoint to resume from; None = the newest

    net: NetConfig = NetConfig()
    loader: LoaderConfig = LoaderConfig()
    loss: LossConfig = LossConfig()
    autoencoder: AutoencoderLossConfig = AutoencoderLossConfig()
    drop: CondDropoutConfig = CondDropoutConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    def check(self) -> None:
        """Checks types and ranges. Raises UserError, which names the option and its limits."""
        check_types(self)
        self.loader.check()
        optim, drop, checkpoint, log = self.optim, self.drop, self.checkpoint, self.log
        ranges = (
            ("steps", self.steps, 1, 10**9),
            ("seed", self.seed, 0, 2**32 - 1),
            ("optim.lr", optim.lr, 0, 100),
            ("optim.ema", optim.ema, 0, 0.999999),
            ("optim.grad_clip", optim.grad_clip, 0, 1e9),
            ("optim.warmup", optim.warmup, 0, 10**9),
            ("optim.final_lr", optim.final_lr, 0, 1),
            ("optim.accumulation", optim.accumulation, 1, self.loader.batch),
            ("drop.text + drop.both + drop.video", drop.text + drop.both + drop.video, 0, 1),
            ("checkpoint.every", checkpoint.every, 1, 10**9),
            ("checkpoint.keep", checkpoint.keep, 1, 10**6),
            ("checkpoint.pipeline_every", checkpoint.pipeline_every, 0, 10**9),
            ("log.eval_batches", log.eval_batches, 1, 10**6),
            ("log.benchmark", log.benchmark, 0, 10**6),
            ("log.profile", log.profile, 0, 100),
            ("autoencoder.kl", self.autoencoder.kl, 0, 1000),
            ("autoencoder.gradient", self.autoencoder.gradient, 0, 1000),
            ("loss.frame_weight", self.loss.frame_weight, 0, 1000),
            ("loss.snr_gamma", self.loss.snr_gamma, 0, 1000),
        )
        for name, value, low, high in ranges:
            if not low <= value <= high:
                raise UserError(
                    f"--{name.replace('_', '-')} {value} must be between {low} and {high}"
                )
        if optim.warmup > self.steps:
            raise UserError(
                f"--optim.warmup {optim.warmup} is longer than the run, --steps {self.steps}: give "
                "fewer steps of warm-up or more --steps"
            )
        for name in ("text", "both", "video"):
            if getattr(drop, name) < 0:
                raise UserError(f"--drop.{name} {getattr(drop, name)} must not be negative")
        if self.loss.x0_weighting and self.loss.snr_gamma:
            raise UserError(
                f"--loss.x0-weighting and --loss.snr-gamma {self.loss.snr_gamma} both weight "
                "timesteps: use only one of them"
            )
        if self.loader.batch % optim.accumulation:
            raise UserError(
                f"--loader.batch {self.loader.batch} is not a multiple of --optim.accumulation "
                f"{optim.accumulation}"
            )


# Old field names (release 0.1) -> new ones, for command lines and the config.json of older runs.
RENAMED = {
    "loss.clean": "loss.x0_weighting",
    "net.fresh_temporal": "net.reinit_temporal",
    "log.judge": "log.benchmark",
    "optim.clip": "optim.grad_clip",
}

# Teaches the embedded editor a style that is held out of its training, in minutes on two CPU
# cores. It trains on still images, which give more examples per second than clips, and only on
# cross-attention and text encoder, so that the editor forgets little of the other edits.
DEFAULT = TrainConfig(
    output="runs/shapes",
    model="shapes-edit",
    steps=300,
    loader=LoaderConfig(
        batch=32, frames=8, size=64, images=1.0, kinds=(UNSEEN_STYLE,) * len(KINDS) + KINDS
    ),
    loss=LossConfig(x0_weighting=True),
    optim=OptimConfig(lr=1e-3, warmup=20, ema=0.99, trainable=("/attn2/", "text_encoder")),
    checkpoint=CheckpointConfig(every=100),
    log=LogConfig(eval_every=0, sample_every=0, sample_steps=10, benchmark=56),
)
