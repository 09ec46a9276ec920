"""The training config: one tree of typed dataclasses. A recipe file says `config = TrainConfig(...)`; `DEFAULT` is what is trained without one."""

import dataclasses
from typing import Literal

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.shapes import KINDS, UNSEEN_STYLE
from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.models import (
    AutoencoderConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    UNetConfig,
)
from ivid2vid_jax.parallel.mesh import MeshConfig
from ivid2vid_jax.parallel.processes import DistributedConfig
from ivid2vid_jax.utils.errors import UserError, check_types


@dataclasses.dataclass(frozen=True)
class NetConfig:
    """The net that is trained. Sizes count where it starts from scratch; with --model they are the model's own."""

    temporal: tuple[str, ...] | None = (
        "conv",
        "attention",
    )  # kinds of temporal layers (models/temporal.py); None = as the model has them
    reinit_temporal: bool = False  # the model's own temporal layers are left out, and new ones begin as nothing: its image editor is inflated anew
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
    clip: CLIPConfig = CLIPConfig(  # of --task clip; its images have the loader's size
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
    prediction_type: Literal["epsilon", "v_prediction"] = (
        "v_prediction"  # from scratch; with --model its scheduler says it
    )
    zero_terminal_snr: bool = True  # from scratch: the last timestep is pure noise


@dataclasses.dataclass(frozen=True)
class CondDropoutConfig:
    """Conditioning dropout, which guidance needs: chances that a clip loses its conditions; one draw decides."""

    text: float = 0.05  # the instruction only
    both: float = 0.05
    video: float = 0.05  # the source clip only


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule, EMA, and which weights are trained."""

    optimizer: Literal["adamw", "adafactor"] = "adamw"
    lr: float = 1e-3  # peak learning rate
    schedule: Literal["constant", "linear", "cosine"] = (
        "cosine"  # after the warm-up, down to final_lr
    )
    warmup: int = 100  # steps of linear warm-up
    final_lr: float = 0.0  # share of lr that is left when the last step is done
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 1e-2  # of kernels; never of norms, biases and embeddings
    clip: float = 1.0  # most global gradient norm; 0 = no clipping
    accumulation: int = 1  # micro-batches of one optimiser step; the batch is split, not multiplied
    ema: float = (
        0.999  # decay of the averaged weights, warmed up as min(ema, (1+n)/(10+n)); 0 = none
    )
    trainable: tuple[str, ...] = (
        "unet",
    )  # unet, temporal, spatial, attention, text_encoder, vae, clip, or regular expressions on parameter names
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = (
        "auto"  # of the arithmetic; auto: bfloat16 on TPU and GPU, float32 on CPU
    )
    frozen_dtype: Literal["auto", "float32", "bfloat16", "float64"] = (
        "auto"  # frozen weights are kept in; auto = dtype
    )
    remat: Literal["none", "products", "block"] = (
        "none"  # what layers keep for the backward pass: all, products of weights, their input alone
    )
    attention: str = "auto"  # implementation, see models/attention.py


@dataclasses.dataclass(frozen=True)
class AutoencoderLossConfig:
    """The autoencoder's loss: mean absolute error + kl * KL divergence to the unit Gaussian, both a pixel."""

    kl: float = 1e-4


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 100  # steps between checkpoints; the last step and a stop are always saved
    keep: int = 3  # newest checkpoints kept
    wait: bool = False  # training waits until a checkpoint is on disk; a kill then costs one interval at most, else also the steps of that while
    pipeline: bool = (
        True  # also write RUN/pipeline, the EMA weights as a pipeline folder, with every checkpoint
    )


@dataclasses.dataclass(frozen=True)
class LogConfig:
    eval_every: int = 500  # steps between validation losses; 0 = never
    eval_batches: int = 4  # batches of a validation
    sample_every: int = 1000  # steps between sample edits, side-by-side clips and contact sheets in RUN/samples; 0 = never
    samples: int = 4  # clips edited each time
    sample_steps: int = 20  # sampler steps
    profile: int = 0  # steps that are traced once training has settled, into RUN/profile, for TensorBoard or xprof
    benchmark: int = 0  # held-out clips of the shapes world that are edited and judged before the first step and after the last, of the kinds trained on


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Trains on triplets of source clip, instruction and edited clip. Run it again to go on where it stopped."""

    output: str = "runs/shapes"  # the RUN folder
    model: str | None = (
        None  # what to start from: a pipeline folder, a RUN, a model of the hub; None = from scratch
    )
    data: tuple[str, ...] = (
        "shapes",
    )  # "shapes" or "shapes-crowded" (procedural worlds) and folders made by `python -m ivid2vid_jax.prepare`
    task: Literal["edit", "text_to_image", "autoencoder", "clip"] = "edit"
    steps: int = 2000  # optimiser steps of the whole run
    seed: int = 0
    resume: int | None = None  # go on from this checkpoint instead of the newest one
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
        """Raises UserError that names a value of another type or out of its range."""
        check_types(self)
        ranges = (
            ("steps", self.steps, 1, 10**9),
            ("seed", self.seed, 0, 2**32 - 1),
            ("optim.lr", self.optim.lr, 0, 100),
            ("optim.ema", self.optim.ema, 0, 0.999999),
            ("optim.clip", self.optim.clip, 0, 1e9),
            ("optim.warmup", self.optim.warmup, 0, self.steps),
            ("optim.final_lr", self.optim.final_lr, 0, 1),
            ("optim.accumulation", self.optim.accumulation, 1, self.loader.batch),
            (
                "drop.text + drop.both + drop.video",
                self.drop.text + self.drop.both + self.drop.video,
                0,
                1,
            ),
            ("checkpoint.every", self.checkpoint.every, 1, 10**9),
            ("checkpoint.keep", self.checkpoint.keep, 1, 10**6),
            ("log.eval_batches", self.log.eval_batches, 1, 10**6),
            ("log.benchmark", self.log.benchmark, 0, 10**6),
            ("log.profile", self.log.profile, 0, 100),
            ("loss.frame_weight", self.loss.frame_weight, 0, 1000),
            ("loss.snr_gamma", self.loss.snr_gamma, 0, 1000),
        )
        for name, value, low, high in ranges:
            if not low <= value <= high:
                raise UserError(
                    f"--{name.replace('_', '-')} {value} must be between {low} and {high}"
                )
        for name in ("text", "both", "video"):
            if getattr(self.drop, name) < 0:
                raise UserError(f"--drop.{name} {getattr(self.drop, name)} must not be negative")
        if self.loss.x0_weighting and self.loss.snr_gamma:
            raise UserError(
                f"--loss.x0-weighting and --loss.snr-gamma {self.loss.snr_gamma} are two ways to weigh timesteps: choose one"
            )
        if self.loader.batch % self.optim.accumulation:
            raise UserError(
                f"--loader.batch {self.loader.batch} is not a multiple of --optim.accumulation {self.optim.accumulation}"
            )


RENAMED = {  # fields by their names in 0.1 -> today's: on command lines and in the config.json of runs
    "loss.clean": "loss.x0_weighting",
    "net.fresh_temporal": "net.reinit_temporal",
    "log.judge": "log.benchmark",
}

DEFAULT = TrainConfig(  # teaches the embedded editor a style that it has never seen, in ten minutes on two cores: still images show more examples a second than clips
    output="runs/shapes",
    model="shapes-edit",
    steps=300,
    loader=LoaderConfig(
        batch=32, frames=8, size=64, images=1.0, kinds=(UNSEEN_STYLE,) * len(KINDS) + KINDS
    ),
    loss=LossConfig(x0_weighting=True),
    optim=OptimConfig(
        lr=1e-3, warmup=20, ema=0.99, trainable=("/attn2/", "text_encoder")
    ),  # where words meet the picture: least of the rest is lost
    checkpoint=CheckpointConfig(every=100),
    log=LogConfig(eval_every=0, sample_every=0, sample_steps=10, benchmark=56),
)
