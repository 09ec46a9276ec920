"""A plan: what a program needs of a chip and what bounds its speed, from compiled layers or from the compiled whole."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from ivid2vid_jax.models import AutoencoderKL, CLIPTextModel
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.planning import chips, hlo
from ivid2vid_jax.planning import stages as layers
from ivid2vid_jax.planning.programs import StepProgram
from ivid2vid_jax.training import flops
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.json_files import write_json
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder

log = logging.getLogger(__name__)

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Of one run of the program on one chip. held: what -> bytes; flops, moved (HBM bytes), sent (kind of collective -> bytes); whole: compiled as
    one program, so that memory is the compiler's own figure; seconds: of compiling.
    """

    memory_parts: dict[str, int]
    flops: float
    moved: float
    sent: dict[str, int]
    whole: bool
    seconds: float

    @property
    def memory(self) -> int:
        return sum(self.memory_parts.values())

    def times(self, chip: chips.Chip) -> dict[str, float]:
        """Seconds of each of the three at the chip's published peak."""
        return {
            "arithmetic": self.flops / chip.flops,
            "HBM": self.moved / chip.bandwidth,
            "interconnect": sum(self.sent.values()) / chip.interconnect,
        }


def plan_by_layers(
    config: TrainConfig,
    folder: PipelineFolder,
    mesh,
    program: StepProgram,
    edit: bool,
    effort: float,
    told: Callable[[str], None],
    cache: Path | None,
) -> StepPlan:
    """The sum of the layers, each compiled with this effort; told(line) hears of each one."""
    accumulation = 1 if edit else config.optim.accumulation
    wanted = all_stages(config, folder, edit, accumulation)
    total, sent, kept, widest = Counter(), Counter(), 0, 0
    begin = time.perf_counter()
    for number, (stage, remat) in enumerate(wanted, 1):
        cost = cached(stage, mesh, remat, effort, cache)
        times = stage.count * accumulation
        for name in ("flops", "moved"):
            total[name] += times * getattr(cost, name)
        sent += Counter({kind: times * number for kind, number in cost.sent.items()})
        kept, widest = kept + stage.count * cost.kept, max(widest, cost.temporary)
        spent = time.perf_counter() - begin
        told(
            f"{number}/{len(wanted)} {stage.path} x{stage.count}: {cost.flops / 1e9:.0f} GFLOP, {cost.moved / 1e6:.0f} MB; ETA {spent / number * (len(wanted) - number):.0f} s"
        )
    held = dict(program.held) | {
        "kept for the backward pass": kept,
        "temporary, largest layer": widest,
    }
    state = sum(held.get(name, 0) for name in ("parameters", "optimiser", "EMA"))
    moved = total["moved"] + (
        0 if edit else 2 * state + held["gradients"]
    )  # the optimiser reads and writes its state once
    return StepPlan(
        {k: v for k, v in held.items() if v},
        total["flops"],
        moved,
        dict(sent),
        False,
        time.perf_counter() - begin,
    )


def all_stages(
    config: TrainConfig, folder: PipelineFolder, edit: bool, accumulation: int
) -> list[tuple[layers.LayerStage, str | None]]:
    """The U-Net's layers, and the frozen nets that run in a training step, each with what it keeps for its backward pass, None where it has none."""
    T, size, f = config.loader.frames, config.loader.size, folder.vae.downscale
    B = 3 if edit else config.loader.batch // accumulation
    shape = jax.ShapeDtypeStruct
    latents = shape((B, T, size // f, size // f, folder.unet.in_channels), jnp.bfloat16)
    text = shape((B, folder.text_length, folder.text_encoder.hidden_size), jnp.bfloat16)
    found = layers.stages(
        folder.unet, latents, text, () if edit else config.optim.trainable, config.optim.attention
    )
    out = [(stage, None if edit else config.optim.remat) for stage in found]
    if not edit and not config.loader.cached:
        pixels = shape((2 * B * T, size, size, 3), jnp.bfloat16)
        out.append(
            (
                layers.LayerStage(
                    AutoencoderKL(folder.vae, jnp.bfloat16),
                    "autoencoder",
                    (pixels,),
                    False,
                    1,
                    "encode",
                ),
                None,
            )
        )
        tokens = shape((B + 1, folder.text_length), jnp.int32)
        out.append(
            (
                layers.LayerStage(
                    CLIPTextModel(folder.text_encoder, jnp.bfloat16),
                    "text encoder",
                    (tokens,),
                    False,
                    1,
                ),
                None,
            )
        )
    return out


def cached(
    stage: layers.LayerStage, mesh, remat: str | None, effort: float, cache: Path | None
) -> layers.LayerCost:
    """The layer's cost, from the cache where this compiler has told it before."""
    device = mesh.devices.flat[0]
    mark = hashlib.sha256(
        json.dumps(
            [
                stage.key,
                remat,
                effort,
                device.device_kind,
                dict(mesh.shape),
                compiler(mesh),
                source_mark(),
            ]
        ).encode()
    ).hexdigest()[:24]
    file = cache / f"{mark}.json" if cache else None
    if file and file.is_file():
        return layers.LayerCost(**json.loads(file.read_text()))
    cost = layers.compile_stage(stage, mesh, remat, effort)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, dataclasses.asdict(cost))
    return cost


def compiler(mesh) -> list:
    """What compiles for these devices."""
    device = mesh.devices.flat[0]
    return [
        *(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib")),
        device.client.platform_version,
        runtime.compiler_options(device),
    ]


@functools.cache
def source_mark(*parts: str) -> str:
    """A hash of the code in these parts of the package, by default of what decides how layers are compiled, so that no plan outlives it."""
    home = Path(__file__).parents[1]
    files = [
        file
        for part in parts or ("models", "planning")
        for file in sorted((home / part).glob("*.py"))
    ] + [home / "training" / "sharding.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def plan_whole_step(program: StepProgram, mesh, effort: float) -> StepPlan:
    """The program compiled as one. UserError with the compiler's words where it does not fit into a chip's memory."""
    begin = time.perf_counter()
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
            time.perf_counter() - begin,
            mesh.size,
            device.device_kind,
        )
        try:
            compiled = lowered.compile(compiler_options={layers.EFFORT: effort})
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            words = next(line for line in str(error).splitlines() if "RESOURCE_EXHAUSTED" in line)
            raise UserError(
                f"DOES NOT FIT, by the compiled program ({words}); {' '.join(advice(not program.held.get('optimiser')))}"
            ) from error
    memory, words = compiled.memory_analysis(), compiled.as_text()
    operations, again = flops.program_flops(traced, compiled, mesh.size)
    rest = memory.argument_size_in_bytes - sum(program.held.get(name, 0) for name in ARGUMENTS)
    held = {name: size for name, size in program.held.items() if name in ARGUMENTS} | {
        "other arguments": max(0, rest)
    }
    held |= {
        "outputs beside the arguments": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }
    held, seconds = {k: v for k, v in held.items() if v}, time.perf_counter() - begin
    return StepPlan(
        held, operations, hlo.moved(words) + again, dict(hlo.sent(words, mesh.size)), True, seconds
    )


ARGUMENTS = ("parameters", "optimiser", "EMA", "frozen weights", "batch", "latents")


def plan_text(
    plan: StepPlan,
    where: chips.TPUSlice,
    per_run: str,
    amount: float,
    steps: int,
    efficiency: float,
    price: float | None,
    edit: bool,
    effort: float,
) -> str:
    """The plan in words. per_run, amount: what one run makes, and how much of it. effort: below 0 HBM traffic is more than a run's, and bounds nothing."""
    chip, times = where.chip, plan.times(where.chip)
    slowest = max(times, key=times.get)
    proof = (
        "by the compiled program"
        if plan.whole
        else "UNPROVEN: the sum of layers compiled one by one, not of the whole program"
    )
    lines = [f"memory of a chip, {proof}"]
    lines += [f"  {name:32s} {size / GIB:8.2f} GiB" for name, size in plan.memory_parts.items()]
    fits = plan.memory <= chip.hbm
    lines += [
        f"  {'sum':32s} {plan.memory / GIB:8.2f} GiB of {chip.hbm / GIB:.0f}: {'fits' if fits else 'DOES NOT FIT'}",
        "",
    ]
    lines += [
        f"time of a step, at the chip's published peaks (cloud.google.com/tpu/docs/{where.name.partition(':')[0]})"
    ]
    amounts = {
        "arithmetic": f"{plan.flops / 1e12:.2f} TFLOP",
        "HBM": f"{plan.moved / 1e9:.1f} GB",
        "interconnect": f"{sum(plan.sent.values()) / 1e9:.2f} GB sent",
    }
    notes = {slowest: "  <- binds"}
    if effort < 0:
        notes["HBM"] = "  at most: --effort 0 moves less" + notes.get("HBM", "").replace(
            "binds", "may bind"
        )
    lines += [
        f"  {name:14s} {amounts[name]:>16s} {seconds:9.4f} s{notes.get(name, '')}"
        for name, seconds in times.items()
    ]
    lines += [
        f"    {kind:20s} {size / 1e9:8.3f} GB"
        for kind, size in sorted(plan.sent.items(), key=lambda item: -item[1])
    ]
    bound = max(seconds for name, seconds in times.items() if effort >= 0 or name != "HBM")
    lines += [
        f"  at least {bound:.4f} s a step; at most {amount / bound:.2f} {per_run} a second",
        "",
    ]
    hours = steps * times[slowest] / efficiency * where.count / 3600
    cost = (
        f"{price * hours:.3g} dollars at {price} a chip-hour"
        if price
        else "--price says what that costs (cloud.google.com/tpu/pricing)"
    )
    lines.append(
        f"{'one edit' if edit else 'the whole run'}, {steps} steps at {efficiency:.0%} of the slowest of the three: {hours:.3g} chip-hours; {cost}"
    )
    return "\n".join(lines + ([] if fits else ["", *advice(edit)]))


class PlanCache:
    """Plans of one program, by layers and whole, as this code and compiler told them; program: what JSON can say of it."""

    def __init__(self, program: list, mesh, cache: Path):
        mark = hashlib.sha256(
            json.dumps(
                [program, compiler(mesh), source_mark(), source_mark("diffusion", "training")],
                default=str,
            ).encode()
        ).hexdigest()[:24]
        self.files = {
            whole: cache / f"{mark}-{'whole' if whole else 'layers'}.json"
            for whole in (True, False)
        }

    def recall(self, whole: bool, effort: float | None = None) -> StepPlan | None:
        """effort: the compiler's; None: any."""
        if not self.files[whole].is_file():
            return None
        found = json.loads(self.files[whole].read_text())
        return StepPlan(**found["plan"]) if effort in (None, found["effort"]) else None

    def keep(self, plan: StepPlan, effort: float) -> None:
        self.files[plan.whole].parent.mkdir(parents=True, exist_ok=True)
        write_json(self.files[plan.whole], {"plan": dataclasses.asdict(plan), "effort": effort})

    def apart(self) -> str:
        """How far layers and the whole are apart, in words."""
        layered, whole = self.recall(False), self.recall(True)
        if not (layered and whole):
            return f"how far layers and the whole are apart is not known: run it {'without' if whole else 'with'} --full too"
        amounts = [
            {"GiB": plan.memory / GIB, "TFLOP": plan.flops / 1e12, "GB of HBM": plan.moved / 1e9}
            for plan in (layered, whole)
        ]
        return "by layers and whole: " + "; ".join(
            f"{a:.2f} and {b:.2f} {name} ({a / b - 1:+.0%})"
            for name, a, b in zip(amounts[0], *(each.values() for each in amounts), strict=True)
        )


def advice(edit: bool) -> list[str]:
    """What can be turned where it does not fit."""
    if edit:
        return [
            "what helps: --frames (a shorter window), --size, more chips on the mesh's frames axis"
        ]
    return [
        "what helps, cheapest first: --remat block; more of the mesh on fsdp; --accumulation (smaller micro-batches); more chips on frames;",
        "--batch, --frames, --size; --loader.cached in the recipe; optim.optimizer adafactor; optim.trainable temporal with frozen_dtype bfloat16",
    ]
