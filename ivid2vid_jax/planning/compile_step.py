"""Plans a step from its layers compiled one by one, or from the whole program."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.models import AutoencoderKL, CLIPTextModel
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.planning import hlo
from ivid2vid_jax.planning.plan_cache import cached_layer_cost
from ivid2vid_jax.planning.programs import StepProgram
from ivid2vid_jax.planning.stages import LayerStage, effort_options, find_stages
from ivid2vid_jax.planning.step_plan import StepPlan, advice
from ivid2vid_jax.training import flops
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder

log = logging.getLogger(__name__)

# Parts of a program's memory that are its arguments.
ARGUMENTS = ("parameters", "optimiser", "EMA", "frozen weights", "batch", "latents")


def plan_by_layers(
    config: TrainConfig,
    folder: PipelineFolder,
    mesh: Mesh,
    program: StepProgram,
    edit: bool,
    effort: float,
    log_line: Callable[[str], None],
    cache: Path | None,
) -> StepPlan:
    """Compiles the layers one by one and adds up their costs.

    Args:
        config: recipe.
        folder: networks, see `programs.planned_folder`.
        mesh: devices and axes.
        program: supplies the memory of the step's arguments.
        edit: whether it is a sampling step.
        effort: of the compiler, see `stages.effort_options`.
        log_line: called with a line of progress after each layer.
        cache: folder of the costs of layers compiled before.
    """
    accumulation = 1 if edit else config.optim.accumulation
    stages = all_stages(config, folder, edit, accumulation)
    operations = hbm_bytes = 0.0
    sent: Counter[str] = Counter()
    residuals = largest_temporary = 0
    start = time.perf_counter()
    for number, (stage, remat) in enumerate(stages, 1):
        cost = cached_layer_cost(stage, mesh, remat, effort, cache)
        times = stage.count * accumulation
        operations += times * cost.flops
        hbm_bytes += times * cost.hbm_bytes
        sent += Counter({kind: times * size for kind, size in cost.sent.items()})
        residuals += stage.count * cost.residual_bytes
        largest_temporary = max(largest_temporary, cost.temporary_bytes)
        eta = (time.perf_counter() - start) / number * (len(stages) - number)
        log_line(
            f"{number}/{len(stages)} {stage.path} x{stage.count}: {cost.flops / 1e9:.0f} GFLOP, "
            f"{cost.hbm_bytes / 1e6:.0f} MB; ETA {eta:.0f} s"
        )
    memory_parts = program.memory_parts | {
        "kept for the backward pass": residuals,
        "temporary, largest layer": largest_temporary,
    }
    if not edit:
        hbm_bytes += optimizer_hbm_bytes(memory_parts)
    return StepPlan(
        memory_parts={name: size for name, size in memory_parts.items() if size},
        flops=operations,
        hbm_bytes=hbm_bytes,
        sent=dict(sent),
        whole=False,
        seconds=time.perf_counter() - start,
    )


def optimizer_hbm_bytes(memory_parts: dict[str, int]) -> int:
    """HBM bytes of the optimiser: it reads and writes its state once, and reads the gradients."""
    state = sum(memory_parts.get(name, 0) for name in ("parameters", "optimiser", "EMA"))
    return 2 * state + memory_parts["gradients"]


def all_stages(
    config: TrainConfig, folder: PipelineFolder, edit: bool, accumulation: int
) -> list[tuple[LayerStage, str | None]]:
    """The layers of the U-Net, and in training the frozen networks that run in the step.

    Each comes with what it keeps for its backward pass (models/remat.py), None without one.
    """
    T, size, f = config.loader.frames, config.loader.size, folder.vae.downscale
    B = 3 if edit else config.loader.batch // accumulation
    shape = jax.ShapeDtypeStruct
    latents = shape((B, T, size // f, size // f, folder.unet.in_channels), jnp.bfloat16)
    text = shape((B, folder.text_length, folder.text_encoder.hidden_size), jnp.bfloat16)
    trained = () if edit else config.optim.trainable
    unet = find_stages(folder.unet, latents, text, trained, config.optim.attention)
    remat: str | None = None if edit else config.optim.remat
    stages = [(stage, remat) for stage in unet]
    if not edit and not config.loader.cached:
        vae, text_encoder = (
            AutoencoderKL(folder.vae, jnp.bfloat16),
            CLIPTextModel(folder.text_encoder, jnp.bfloat16),
        )
        pixels = shape((2 * B * T, size, size, 3), jnp.bfloat16)
        tokens = shape((B, folder.text_length), jnp.int32)
        stages += [
            (LayerStage(vae, "autoencoder", (pixels,), False, 1, "encode"), None),
            (LayerStage(text_encoder, "text encoder", (tokens,), False, 1), None),
        ]
    return stages


def plan_whole_step(program: StepProgram, mesh: Mesh, effort: float) -> StepPlan:
    """Compiles a program as one. UserError with the compiler's message if it exceeds the memory."""
    start = time.perf_counter()
    device = mesh.devices.flat[0]
    with jax.set_mesh(mesh):
        traced = runtime.jit(
            program.function,
            device,
            donate_argnums=program.donate,
            out_shardings=program.out_shardings,
        ).trace(*program.args)
        lowered = traced.lower()
        log.info(
            "traced and lowered in %.0f s; compiling for %d x %s",
            time.perf_counter() - start,
            mesh.size,
            device.device_kind,
        )
        try:
            compiled = lowered.compile(compiler_options=effort_options(effort))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            lines = str(error).splitlines()
            message = next(line for line in lines if "RESOURCE_EXHAUSTED" in line)
            edit = not program.memory_parts.get("optimiser")
            raise UserError(
                f"DOES NOT FIT, by the compiled program ({message}); {' '.join(advice(edit))}"
            ) from error
    text = compiled.as_text()
    operations, refetched = flops.program_flops(traced, compiled, mesh.size)
    return StepPlan(
        memory_parts=compiled_memory(program, compiled.memory_analysis()),
        flops=operations,
        hbm_bytes=hlo.hbm_bytes(text) + refetched,
        sent=dict(hlo.sent_bytes(text, mesh.size)),
        whole=True,
        seconds=time.perf_counter() - start,
    )


def compiled_memory(program: StepProgram, memory: Any) -> dict[str, int]:
    """The compiler's memory analysis of a program, what -> bytes of one chip."""
    parts = {name: size for name, size in program.memory_parts.items() if name in ARGUMENTS}
    parts |= {
        "other arguments": max(0, memory.argument_size_in_bytes - sum(parts.values())),
        "outputs beside the arguments": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }
    return {name: size for name, size in parts.items() if size}
