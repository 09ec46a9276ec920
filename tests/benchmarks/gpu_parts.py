"""The two parts of the GPU benchmark, a training step and an edit; see tests/benchmarks/gpu.py."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import torch

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.diffusion.denoiser import Condition, make_denoiser
from ivid2vid_jax.diffusion.guidance import guidance_branches
from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.diffusion.samplers import make_sampler
from ivid2vid_jax.diffusion.schedule import NoiseSchedule
from ivid2vid_jax.inference.sampling_loop import Guidance, SamplingLoop
from ivid2vid_jax.models import AutoencoderConfig, CLIPTextConfig, UNetConfig
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.planning.programs import SD15, TEXT_SD15, batch_shapes
from ivid2vid_jax.training import flops
from ivid2vid_jax.training import params as param_names
from ivid2vid_jax.training.compiled_step import CompiledStep
from ivid2vid_jax.training.config import OptimConfig, TrainConfig
from ivid2vid_jax.training.init_state import DEFAULT_SCHEDULER
from ivid2vid_jax.training.objectives import make_objective
from ivid2vid_jax.training.step import learning_rate, make_optimizer, new_state
from ivid2vid_jax.weights import torch_keys
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder, param_initializer, param_shapes
from ivid2vid_jax.weights.random_init import init_params
from tests.benchmarks import torch_side
from tests.benchmarks.turns import sync

TINY = UNetConfig(
    block_out_channels=(32,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=32,
    norm_num_groups=8,
)
TEXT_TINY = CLIPTextConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=8,
)


@dataclasses.dataclass(frozen=True)
class Size:
    """The defaults of a benchmark size."""

    unet: UNetConfig
    text: CLIPTextConfig
    pixels: tuple[int, ...]  # sides of the frames
    frames: int
    steps: int  # of the sampler
    repeats: int
    dtype: str
    modes: tuple[str, ...]  # of torch.compile


SIZES = {
    "sd15": Size(SD15, TEXT_SD15, (256, 512), 16, 10, 10, "bfloat16", ("default", "max-autotune")),
    "tiny": Size(TINY, TEXT_TINY, (64,), 3, 2, 2, "float32", ()),
}
# Largest root mean square of the difference of the outputs, relative to that of the reference.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}
BRANCHES = guidance_branches(7.5, 1.5)


@dataclasses.dataclass
class Programs:
    """What a part times.

    Attributes:
        ours: runs our program once and waits for it.
        theirs: the same of PyTorch's program with a network.
        net: PyTorch's network, not compiled.
        flop: operations of one run.
        facts: what else is recorded; called after the timings.
    """

    ours: Callable[[], Any]
    theirs: Callable[[torch.nn.Module], Any]
    net: torch.nn.Module
    flop: int
    facts: Callable[[], dict[str, Any]]


@dataclasses.dataclass
class Bench:
    """What both sides share at one frame size: configs, weights and inputs."""

    config: TrainConfig
    folder: PipelineFolder
    dtype: str
    device: str  # PyTorch's
    net: torch.nn.Module
    params: dict  # of the U-Net, float32

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "Bench":
        size = SIZES[args.size]
        unet = dataclasses.replace(
            size.unet, in_channels=8, temporal=("conv", "attention"), num_frames=size.frames
        )
        scheduler = DEFAULT_SCHEDULER | {"prediction_type": "epsilon"}
        folder = PipelineFolder(
            Path("benchmark"), unet, AutoencoderConfig(), size.text, scheduler, {}
        )
        config = TrainConfig(
            loader=LoaderConfig(
                batch=args.batch, frames=size.frames, size=args.pixels, cached=True
            ),
            loss=LossConfig(snr_gamma=5.0),
            optim=OptimConfig(
                lr=1e-4,
                schedule="constant",
                warmup=0,
                b2=0.999,
                ema=0.9999,
                remat=args.remat,
                dtype=size.dtype,
            ),
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        net = torch_side.random_net(unet, device)
        return cls(config, folder, size.dtype, device, net, flax_params(net, unet))

    @property
    def latents(self) -> tuple[int, int, int, int]:
        """[T, h, w, C]."""
        side = self.config.loader.size // self.folder.vae.downscale
        return self.config.loader.frames, side, side, self.folder.vae.latent_channels

    @property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule.from_json(self.folder.scheduler)

    @property
    def text_shape(self) -> tuple[int, int]:
        return self.folder.text_length, self.folder.text_encoder.hidden_size

    def normal(self, *shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(shape, np.float32)

    def text(self, count: int) -> np.ndarray:
        """Random text embeddings."""
        return self.normal(count, *self.text_shape, seed=9)

    def to_torch(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def forward_flop(self, clips: int) -> int:
        """Operations of one forward evaluation of some clips."""
        shape = jax.ShapeDtypeStruct
        denoise = make_denoiser(self.folder.unet, "xla", dtype=jnp.bfloat16)
        x = shape((clips, *self.latents), jnp.float32)
        timesteps = shape((clips,), jnp.int32)
        text = shape((clips, *self.text_shape), jnp.float32)
        params = param_shapes("unet", self.folder.unet)
        return flops.count_flops(denoise, params, x, timesteps, Condition(text, x)).useful


def flax_params(net: torch.nn.Module, config: UNetConfig) -> dict:
    """The weights of the PyTorch net as a Flax tree."""
    state = net.state_dict()
    shapes = flax.traverse_util.flatten_dict(param_shapes("unet", config))
    params = {}
    for path in shapes:
        weight = state[torch_keys.torch_key(path)].cpu().numpy()
        params[path] = jnp.asarray(torch_keys.from_torch(path, weight))
    return flax.traverse_util.unflatten_dict(params)


def check_outputs(
    bench: Bench, params: dict, net: torch.nn.Module, clips: int, cast: bool
) -> float:
    """Returns the relative difference of the two nets; AssertionError beyond the tolerance.

    cast: whether the weights of the PyTorch net are in the compute dtype.
    """
    dtype = getattr(torch, bench.dtype)
    x, source = bench.normal(clips, *bench.latents), bench.normal(clips, *bench.latents, seed=1)
    t, text = np.linspace(1, 900, clips).astype(np.int32), bench.text(clips)
    # Without autotuning, which takes most of the compile time on a GPU.
    options = {"xla_gpu_autotune_level": "0"} if bench.device == "cuda" else None
    denoise = jax.jit(
        make_denoiser(bench.folder.unet, dtype=runtime.DTYPES[bench.dtype]),
        compiler_options=options,
    )
    ours = np.asarray(denoise(params, *jax.device_put((x, t, Condition(text, source)))))
    inputs = torch_side.channels_first(np.concatenate([x, source], -1), bench.device)
    context = bench.to_torch(text)
    with torch.no_grad(), torch_side.precision(dtype, bench.device):
        if cast:
            inputs, context = inputs.to(dtype), context.to(dtype)
        prediction = net(inputs, bench.to_torch(t), context).sample
    reference = prediction.float().cpu().numpy().transpose(0, 2, 3, 4, 1)
    return relative_difference(ours, reference, TOLERANCES[bench.dtype])


def relative_difference(actual: np.ndarray, reference: np.ndarray, tolerance: float) -> float:
    """Root mean square of the difference, relative to that of the reference.

    Raises AssertionError beyond the tolerance.
    """
    difference = float(np.sqrt(np.square(actual - reference).mean() / np.square(reference).mean()))
    assert difference <= tolerance, (
        f"the outputs differ by {difference:.2g} of the reference's root mean square, more than "
        f"{tolerance:g}: nothing was timed"
    )
    return difference


def training(bench: Bench, args: argparse.Namespace) -> Programs:
    """One optimiser step on both sides."""
    difference = check_outputs(bench, bench.params, bench.net, args.batch, cast=False)
    log(f"the outputs differ by {difference:.2g}")
    arrays = random_batch(bench)
    our_step, program = jax_training(bench, arrays)

    def facts() -> dict[str, Any]:
        (compiled, _), *_ = program.programs.values()
        gib = program_gib(compiled)
        return {"difference": difference, "ours_program_gib": gib, "clips": args.batch}

    flop = 3 * bench.forward_flop(args.batch)
    return Programs(our_step, torch_training(bench, arrays), bench.net, flop, facts)


def random_batch(bench: Bench) -> dict[str, np.ndarray]:
    """A training batch of cached latents, without the tokens."""
    return {
        name: np.abs(bench.normal(*shape)).astype(dtype)
        for name, (shape, dtype) in batch_shapes(bench.config, bench.folder).items()
        if name != "tokens"
    }


def jax_training(
    bench: Bench, arrays: dict[str, np.ndarray]
) -> tuple[Callable[[], None], CompiledStep]:
    """Returns a function that runs one step, and its compiled program. Drops `bench.params`."""
    config, dtype = bench.config, runtime.DTYPES[bench.dtype]
    null_tokens = np.zeros(bench.folder.text_length, np.int32)
    params = param_names.flatten({"unet": bench.params})
    del bench.params
    text_encoder = init_params(param_initializer("text_encoder", bench.folder.text_encoder), 0)
    frozen = {
        f"text_encoder/{'/'.join(path)}": jnp.asarray(x, dtype) for path, x in text_encoder.items()
    }
    objective = make_objective(config, bench.folder, null_tokens, dtype, frozenset(params))
    optimizer = make_optimizer(config.optim, config.steps)
    state = jax.jit(lambda params: new_state(params, optimizer, config.optim, config.seed))(params)
    program = CompiledStep(
        objective,
        optimizer,
        config.optim,
        learning_rate(config.optim, config.steps),
        jax.tree.map(lambda x: x.sharding, state),
    )
    tokens = np.zeros((config.loader.batch, len(null_tokens)), np.int32)
    batch = jax.device_put(arrays | {"tokens": tokens})

    def step() -> None:
        nonlocal state
        if not program.is_compiled_for(batch):
            program.compile(state, frozen, batch)
        state, metrics = program(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        assert np.isfinite(metrics["loss"])

    return step, program


def torch_training(
    bench: Bench, arrays: dict[str, np.ndarray]
) -> Callable[[torch.nn.Module], None]:
    """Returns a function that runs one step with a network."""
    trainer = torch_side.Training(
        bench.net,
        bench.config,
        bench.schedule.alphas_cumprod,
        bench.folder.vae.scaling_factor,
        bench.text(1)[0],
        getattr(torch, bench.dtype),
        bench.device,
    )
    batch = {
        name: torch_side.channels_first(arrays[name].astype(np.float32), bench.device)
        for name in ("source_mean", "target_mean", "target_std")
    }
    batch["text"] = bench.to_torch(arrays["text"].astype(np.float32))

    def step(net: torch.nn.Module) -> None:
        trainer.run = net
        assert torch.isfinite(trainer.step(batch))  # waits for the step

    return step


def editing(bench: Bench, args: argparse.Namespace) -> Programs:
    """The sampling loop on both sides, from the same noise; compares the latents."""
    dtype, torch_dtype = runtime.DTYPES[bench.dtype], getattr(torch, bench.dtype)
    params = jax.tree.map(lambda x: x.astype(dtype), bench.params)
    del bench.params
    net, branches = bench.net.to(torch_dtype), len(BRANCHES)
    difference = check_outputs(bench, params, net, branches, cast=True)
    log(f"the outputs differ by {difference:.2g}")
    source, noise = bench.normal(*bench.latents, seed=1), bench.normal(*bench.latents)
    null, instruction = bench.text(2)
    text = np.stack([instruction if branch.text else null for branch in BRANCHES])
    video = np.array([branch.video for branch in BRANCHES], np.float32)
    weights = np.array([branch.weight for branch in BRANCHES], np.float32)
    table = make_sampler("ddim", bench.schedule, args.steps)
    guidance = [Guidance(*jax.device_put((text, video, weights, np.float32(0))))] * args.steps
    loop = SamplingLoop(make_denoiser(bench.folder.unet, dtype=dtype), "epsilon")

    def our_edit() -> np.ndarray:
        *_, latents = loop(params, source, guidance, table, 0, [slice(0, len(source))], noise)
        return latents

    x, condition = (
        torch_side.channels_first(array[None], bench.device) for array in (noise, source)
    )
    branch_tensors = [bench.to_torch(array) for array in (text, video, weights)]

    def torch_edit(net: torch.nn.Module) -> torch.Tensor:
        latents = torch_side.sample(net, x, condition, *branch_tensors, table, torch_dtype)
        sync()
        return latents

    net.eval()

    def facts() -> dict[str, Any]:
        reference = torch_edit(net)[0].permute(1, 2, 3, 0).cpu().numpy()
        return {
            "difference": difference,
            "latents_difference": relative_difference(our_edit(), reference, np.inf),
            "sampler_steps": args.steps,
        }

    flop = args.steps * bench.forward_flop(branches)
    return Programs(our_edit, torch_edit, net, flop, facts)


PARTS = {"training": training, "editing": editing}


def program_gib(compiled: jax.stages.Compiled) -> float:
    """Memory of a program with its arguments and outputs (compiler estimate)."""
    memory = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return (memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes) / 2**30


def log(message: str) -> None:
    """Prints a line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
