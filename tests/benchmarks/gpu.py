"""The training step and the edit on a GPU: ours against the same architecture in PyTorch at its best, in one run, in turns.

    python -m tests.benchmarks.gpu --output gpu.json      # SD 1.5's size, 16 frames, 256x256 and 512x512, bfloat16
    python -m tests.benchmarks.gpu --size tiny            # its tiny twin, float32, on any machine

PyTorch's side is the net that our exports ship (torch_side.py): bfloat16, channels last, scaled-dot-product attention, torch.compile max-autotune; the record
says which mode it was where that one failed. Both have the same weights, and their outputs are compared before anything is timed. A training step is one on
cached latents of all of the U-Net; an edit is the sampling loop with its three guidance branches, latents to latents. A ratio above 1 means that we are faster;
compilation is apart. Every part at every size is a process of its own, so that peak memory is its own too: that of each side's allocator. One that fails is
recorded with its last words, and the others still run. Both sides' training states lie on the GPU at once, 52 GiB before any activation (1.4 billion
parameters, 20 bytes each, twice): training wants a GPU of more than 80 GB, or --parts editing.

    model FLOP/s utilisation = evaluations x F / (seconds x peak)

F: operations of one forward evaluation, counted over the jaxpr (training/flops.py), a multiply-add being two; evaluations: 3 for a training step (backward is
twice forward; what is recomputed counts nothing), one a step for an edit; peak: of PEAKS. The machine needs jax, flax, optax, einops, safetensors and torch:
diffusers, grain, tensorflow-datasets, av and tyro it does not.
"""

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU's memory is PyTorch's too

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
from ivid2vid_jax.training import params as by_name
from ivid2vid_jax.training.compiled_step import CompiledStep
from ivid2vid_jax.training.config import OptimConfig, TrainConfig
from ivid2vid_jax.training.init_state import DEFAULT_SCHEDULER
from ivid2vid_jax.training.objectives import make_objective
from ivid2vid_jax.training.step import learning_rate, make_optimizer, new_state
from ivid2vid_jax.weights import torch_keys
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder, param_initializer, param_shapes
from ivid2vid_jax.weights.random_init import init_params
from tests.benchmarks import torch_side
from tests.benchmarks.turns import sync, turns

# Operations a second in bfloat16, dense, by a part of the device's name, the first that fits. Source: NVIDIA's data sheet of each; where it tells the number
# with sparsity alone, half of that.
PEAKS = {
    "B200": 2250e12,
    "H200 NVL": 835.5e12,
    "H200": 989.5e12,
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756.5e12,
    "H100": 989.5e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165.2e12,
}
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
SIZES = {
    "sd15": dict(
        unet=SD15,
        text=TEXT_SD15,
        pixels=[256, 512],
        frames=16,
        steps=10,
        repeats=10,
        dtype="bfloat16",
        compile="max-autotune",
    ),
    "tiny": dict(
        unet=TINY,
        text=TEXT_TINY,
        pixels=[64],
        frames=3,
        steps=2,
        repeats=2,
        dtype="float32",
        compile="none",
    ),
}
TOLERANCES = {
    "float32": 1e-4,
    "bfloat16": 0.05,
}  # of the outputs' difference, root mean square, relative to the reference's
BRANCHES = guidance_branches(7.5, 1.5)


@dataclasses.dataclass
class Bench:
    """What both sides have in common at one point: sizes, weights and inputs."""

    config: TrainConfig
    folder: PipelineFolder
    dtype: str
    device: str  # PyTorch's
    net: torch.nn.Module
    params: dict  # of the U-Net, float32

    @classmethod
    def of(cls, args) -> "Bench":
        size = SIZES[args.size]
        unet = dataclasses.replace(
            size["unet"], in_channels=8, temporal=("conv", "attention"), num_frames=size["frames"]
        )
        folder = PipelineFolder(
            Path("benchmark"),
            unet,
            AutoencoderConfig(),
            size["text"],
            DEFAULT_SCHEDULER | {"prediction_type": "epsilon"},
            {},
        )
        config = TrainConfig(
            loader=LoaderConfig(
                batch=args.batch, frames=size["frames"], size=args.one_pixels, cached=True
            ),
            loss=LossConfig(snr_gamma=5.0),
            optim=OptimConfig(
                lr=1e-4,
                schedule="constant",
                warmup=0,
                b2=0.999,
                ema=0.9999,
                remat=args.remat,
                dtype=size["dtype"],
            ),
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        net = torch_side.random_net(unet, device)
        return cls(config, folder, size["dtype"], device, net, flax_params(net, unet))

    @property
    def latents(self) -> tuple[int, int, int, int]:
        """[T, h, w, C]."""
        side = self.config.loader.size // self.folder.vae.downscale
        return self.config.loader.frames, side, side, self.folder.vae.latent_channels

    @property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule.from_json(self.folder.scheduler)

    def drawn(self, *shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(shape, np.float32)

    def text(self, count: int) -> np.ndarray:
        return self.drawn(
            count, self.folder.text_length, self.folder.text_encoder.hidden_size, seed=9
        )

    def theirs(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def evaluation(self, clips: int) -> int:
        """Operations of one forward evaluation of so many clips."""
        shape, T = jax.ShapeDtypeStruct, self.latents
        run = make_denoiser(self.folder.unet, "xla", dtype=jnp.bfloat16)
        x, text = (
            shape((clips, *T), jnp.float32),
            shape(
                (clips, self.folder.text_length, self.folder.text_encoder.hidden_size), jnp.float32
            ),
        )
        args = (
            param_shapes("unet", self.folder.unet),
            x,
            shape((clips,), jnp.int32),
            Condition(text, x),
        )
        return flops.count(run, *args).useful


def flax_params(net: torch.nn.Module, config: UNetConfig) -> dict:
    """PyTorch's weights as our tree."""
    state, flat = net.state_dict(), flax.traverse_util.flatten_dict(param_shapes("unet", config))
    return flax.traverse_util.unflatten_dict(
        {
            path: jnp.asarray(
                torch_keys.from_torch(path, state[torch_keys.torch_key(path)].cpu().numpy())
            )
            for path in flat
        }
    )


def assert_equal(bench: Bench, params: dict, net: torch.nn.Module, clips: int, cast: bool) -> float:
    """Both nets on the same clips; AssertionError beyond the tolerance. cast: the net's weights are in the compute type. Returns the difference."""
    dtype = getattr(torch, bench.dtype)
    x, source = bench.drawn(clips, *bench.latents), bench.drawn(clips, *bench.latents, seed=1)
    t, text = np.linspace(1, 900, clips).astype(np.int32), bench.text(clips)
    run = runtime.jit(make_denoiser(bench.folder.unet, dtype=runtime.DTYPES[bench.dtype]))
    ours = np.asarray(run(params, *jax.device_put((x, t, Condition(text, source)))))
    inputs, words = (
        torch_side.channels_first(np.concatenate([x, source], -1), bench.device),
        bench.theirs(text),
    )
    with torch.no_grad(), torch_side.precision(dtype, bench.device):
        inputs, words = (inputs.to(dtype), words.to(dtype)) if cast else (inputs, words)
        theirs = (
            net(inputs, bench.theirs(t), words)
            .sample.float()
            .cpu()
            .numpy()
            .transpose(0, 2, 3, 4, 1)
        )
    return compared(ours, theirs, TOLERANCES[bench.dtype])


def compared(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> float:
    """The root mean square of the difference, relative to the reference's. AssertionError beyond the tolerance."""
    difference = float(np.sqrt(np.square(ours - theirs).mean() / np.square(theirs).mean()))
    assert difference <= tolerance, (
        f"the two nets differ by {difference:.2g} of the reference's root mean square, more than {tolerance:g}: nothing was timed"
    )
    return difference


def training(bench: Bench, args) -> dict:
    """One optimiser step of both."""
    found = {"difference": assert_equal(bench, bench.params, bench.net, args.batch, cast=False)}
    config, null = bench.config, np.zeros(bench.folder.text_length, np.int32)
    flat = by_name.flatten({"unet": bench.params})
    del bench.params
    text_encoder = init_params(param_initializer("text_encoder", bench.folder.text_encoder), 0)
    frozen = {
        f"text_encoder/{'/'.join(path)}": jnp.asarray(x, runtime.DTYPES[bench.dtype])
        for path, x in text_encoder.items()
    }
    learned = make_objective(
        config, bench.folder, null, runtime.DTYPES[bench.dtype], frozenset(flat)
    )
    optimizer = make_optimizer(config.optim, config.steps)
    state = jax.jit(lambda params: new_state(params, optimizer, config.optim, config.seed))(flat)
    program = CompiledStep(
        learned,
        optimizer,
        config.optim,
        learning_rate(config.optim, config.steps),
        jax.tree.map(lambda x: x.sharding, state),
    )
    held = {
        name: np.abs(bench.drawn(*shape)).astype(dtype)
        for name, (shape, dtype) in batch_shapes(config, bench.folder).items()
        if name != "tokens"
    }
    batch = jax.device_put(held | {"tokens": np.zeros((args.batch, len(null)), np.int32)})

    def ours():
        nonlocal state
        if not program.is_compiled_for(batch):
            program.compile(state, frozen, batch)
        state, metrics = program(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        assert np.isfinite(metrics["loss"])

    alphas, scaling, dtype = (
        bench.schedule.alphas_cumprod,
        bench.folder.vae.scaling_factor,
        getattr(torch, bench.dtype),
    )
    step = torch_side.Training(
        bench.net, config, alphas, scaling, bench.text(1)[0], dtype, bench.device
    )
    moved = {
        name: torch_side.channels_first(held[name].astype(np.float32), bench.device)
        for name in ("source_mean", "target_mean", "target_std")
    }
    moved["text"] = bench.theirs(held["text"].astype(np.float32))

    def attempt(net):
        step.run = net
        assert torch.isfinite(step.step(moved))

    step.run, how = torch_side.compiled(bench.net, args.compile, attempt)
    found |= timed(ours, lambda: (step.step(moved), sync()), args.repeats)
    (compiled, _), *_ = program.programs.values()
    return found | {
        "torch": how,
        "flop": 3 * bench.evaluation(args.batch),
        "ours_program_gib": program_gib(compiled),
        "clips": args.batch,
    }


def editing(bench: Bench, args) -> dict:
    """The sampling loop of both, from the same noise, and how far their latents are apart in the end."""
    dtype, torch_dtype = runtime.DTYPES[bench.dtype], getattr(torch, bench.dtype)
    params = jax.tree.map(lambda x: x.astype(dtype), bench.params)
    del bench.params
    net, K = bench.net.to(torch_dtype), len(BRANCHES)
    found = {"difference": assert_equal(bench, params, net, K, cast=True)}
    source, noise, (null, told) = (
        bench.drawn(*bench.latents, seed=1),
        bench.drawn(*bench.latents),
        bench.text(2),
    )
    text = np.stack([told if branch.text else null for branch in BRANCHES])
    video, weights = (
        np.array([getattr(branch, name) for branch in BRANCHES], np.float32)
        for name in ("video", "weight")
    )
    table = make_sampler("ddim", bench.schedule, args.steps)
    guidance = [Guidance(*jax.device_put((text, video, weights, np.float32(0))))] * args.steps
    loop = SamplingLoop(make_denoiser(bench.folder.unet, dtype=dtype), "epsilon")

    def ours():
        *_, latents = loop(params, source, guidance, table, 0, [slice(0, len(source))], noise)
        return latents

    x, condition = (
        torch_side.channels_first(array[None], bench.device) for array in (noise, source)
    )
    branch_arrays = [bench.theirs(array) for array in (text, video, weights)]

    def theirs(net=net):
        out = torch_side.sample(net, x, condition, *branch_arrays, table, torch_dtype)
        sync()
        return out

    fast, how = torch_side.compiled(net.eval(), args.compile, theirs)
    found |= timed(ours, lambda: theirs(fast), args.repeats)
    latents = theirs(fast)[0].permute(1, 2, 3, 0).cpu().numpy()
    found["latents_difference"] = compared(ours(), latents, np.inf)
    return found | {
        "torch": how,
        "flop": args.steps * bench.evaluation(K),
        "sampler_steps": args.steps,
    }


PARTS = {"training": training, "editing": editing}


def timed(ours, theirs, repeats: int) -> dict:
    """`turns`, and the peak memory of both allocators, where they tell it: PyTorch's of this while, JAX's of the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    found = turns(ours, theirs, repeats)
    stats = jax.local_devices()[0].memory_stats() or {}
    found["ours_peak_gib"] = (
        stats["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in stats else None
    )
    found["torch_peak_gib"] = (
        torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    )
    return found


def program_gib(compiled) -> float:
    """Memory of a compiled program by the compiler's word, arguments and outputs included."""
    memory = compiled.memory_analysis()
    held = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return held / 2**30


def peak_of(device: str) -> float | None:
    """Operations a second by the device's name; None for one that is not in the table."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def point(args) -> dict:
    """One part at one size, in this process."""
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
    if (
        SIZES[args.size]["dtype"] == "float32"
    ):  # else both sides' libraries round float32 products to TF32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        jax.config.update("jax_default_matmul_precision", "highest")
    bench = Bench.of(args)
    found = {
        "part": args.one,
        "pixels": args.one_pixels,
        "frames": bench.config.loader.frames,
        "dtype": bench.dtype,
    } | PARTS[args.one](bench, args)
    device = jax.devices()[0].device_kind
    peak = peak_of(device)
    for side in ("ours", "torch"):
        found[f"{side}_utilisation"] = found["flop"] / found[f"{side}_s"] / peak if peak else None
    return {"device": device, "peak_flop_per_s": peak, "versions": versions(), "point": found}


def versions() -> dict[str, str]:
    found = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "torch")}
    return found | {
        "python": platform.python_version(),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="sd15")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--pixels", type=int, nargs="+", help="pixels a side")
    parser.add_argument("--batch", type=int, default=1, help="clips of a training step")
    parser.add_argument("--steps", type=int, help="sampler steps of an edit")
    parser.add_argument("--repeats", type=int)
    parser.add_argument(
        "--remat",
        default="none",
        help="what our training step keeps for its backward pass, see models/remat.py",
    )
    parser.add_argument(
        "--compile", choices=torch_side.MODES, help="torch.compile's mode to begin with"
    )
    parser.add_argument("--output", type=Path, help="writes the record here, after every point")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--one-pixels", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name in ("pixels", "steps", "repeats", "compile"):
        setattr(args, name, getattr(args, name) or SIZES[args.size][name])
    if args.one:
        print(json.dumps(point(args)))
        return
    record = {"command": sys.argv if argv is None else argv, "points": []}
    for pixels in args.pixels:
        for part in args.parts:
            words = [
                sys.executable,
                "-m",
                "tests.benchmarks.gpu",
                *(sys.argv[1:] if argv is None else argv),
                "--one",
                part,
                "--one-pixels",
                str(pixels),
            ]
            done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            sys.stderr.write(done.stderr)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if line.strip()]
                out = {
                    "point": {
                        "part": part,
                        "pixels": pixels,
                        "failed": lines[-1] if lines else f"exit code {done.returncode}",
                    }
                }
            else:
                out = json.loads(done.stdout.strip().splitlines()[-1])
            print(json.dumps(found := out.pop("point")), flush=True)
            record |= out
            record["points"].append(found)
            if args.output:
                args.output.write_text(json.dumps(record, indent=2) + "\n")
    if failed := [
        f"{each['part']} at {each['pixels']}" for each in record["points"] if "failed" in each
    ]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
