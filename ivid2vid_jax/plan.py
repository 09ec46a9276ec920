"""`python -m ivid2vid_jax.plan`: memory and time of a recipe on TPUs, computed without a TPU.

python -m ivid2vid_jax.plan --config configs/sd15.py --topology v5e:4x4
python -m ivid2vid_jax.plan --config configs/sd15.py --topology v5e:2x2 --mesh frames=4 --edit
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils import cli
from ivid2vid_jax.utils.versions import versions

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from ivid2vid_jax.parallel.mesh import MeshConfig
    from ivid2vid_jax.planning.chips import TPUSlice
    from ivid2vid_jax.planning.report import RunEstimate
    from ivid2vid_jax.planning.step_plan import StepPlan
    from ivid2vid_jax.training.config import TrainConfig


@dataclasses.dataclass
class PlanArgs:
    """Compiles a training or sampling step for a TPU slice and prints its memory and time.

    The options from --size to --steps replace values of the recipe.
    """

    config: Path | None = None  # recipe file; None = the shapes world
    # chip (v4, v5e, v5p, v6e) and sides of the slice; None = v5e:4x4, with --edit v5e:2x2
    topology: str | None = None
    # sizes of the mesh axes, e.g. data=1,fsdp=16,frames=1; -1: all remaining chips; None = the
    # recipe's, with --edit all chips on frames
    mesh: str | None = None
    edit: bool = False  # plan one sampling step of one clip instead of the training step
    # compile the whole step instead of layer by layer; this proves the memory, and takes tens of
    # minutes and up to 20 GB of host memory
    full: bool = False
    size: int | None = None  # pixels of a frame's side
    frames: int | None = None  # frames per clip
    batch: int | None = None  # clips per optimiser step
    accumulation: int | None = None  # micro-batches per optimiser step
    remat: str | None = None  # rematerialisation: none, products or block
    attention: str | None = None  # attention backend, see models/attention.py
    # parts of the training state in host memory: ema, moments
    offload: tuple[Literal["ema", "moments"], ...] | None = None
    ema: float | None = None  # decay of the averaged weights; 0 = none
    steps: int | None = None  # optimiser steps of the run; with --edit sampler steps
    efficiency: float = 0.4  # share of the peak that is reached, for chip-hours and cost
    price: float | None = None  # dollars per chip-hour, for the cost
    # compiler effort, -1 to 1; real runs use 0, which compiles about five times slower and moves
    # less data
    effort: float = -1.0
    output: Path | None = None  # also write the plan to this JSON file


def run(args: PlanArgs) -> None:
    """Prints the plan; raises UserError for invalid options."""
    from ivid2vid_jax.planning import chips

    tpu = chips.TPUSlice(args.topology or ("v5e:2x2" if args.edit else "v5e:4x4"))
    chips.hide_accelerators()  # before JAX is imported
    config = planned_config(args)
    from ivid2vid_jax.parallel.mesh import make_mesh
    from ivid2vid_jax.parallel.sharding import check_batch
    from ivid2vid_jax.planning import report

    mesh = make_mesh(config.mesh, tpu.devices())
    if not args.edit:
        check_batch(config.loader.batch, config.loader.frames, config.optim.accumulation, mesh)
    plan, comparison = make_plan(args, config, tpu, mesh)
    print(report.plan_text(plan, tpu, run_estimate(args, config)))
    print(comparison)
    print(f"compiled in {plan.seconds:.0f} s with effort {args.effort:g}")
    if args.output:
        write_record(args, plan, tpu, mesh)


def planned_config(args: PlanArgs) -> "TrainConfig":
    """The recipe, with the values of the command line. Raises UserError for invalid values."""
    from ivid2vid_jax.parallel.mesh import MeshConfig
    from ivid2vid_jax.train import recipe
    from ivid2vid_jax.training.config import DEFAULT

    config = recipe(args.config) if args.config else DEFAULT
    if not -1 <= args.effort <= 1:
        raise UserError(f"--effort {args.effort} must be from -1 to 1")
    if not 0 < args.efficiency <= 1:
        raise UserError(f"--efficiency {args.efficiency} must be above 0 and at most 1")

    def given(*names: str) -> dict:
        return {name: getattr(args, name) for name in names if getattr(args, name) is not None}

    mesh = config.mesh
    if args.mesh:
        mesh = parse_mesh(args.mesh)
    elif args.edit:
        mesh = MeshConfig(data=1, frames=-1)
    config = dataclasses.replace(
        config,
        loader=dataclasses.replace(config.loader, **given("size", "frames", "batch")),
        optim=dataclasses.replace(
            config.optim, **given("accumulation", "remat", "attention", "offload", "ema")
        ),
        mesh=mesh,
    )
    config.check()
    return config


def parse_mesh(text: str) -> "MeshConfig":
    """A MeshConfig from "data=1,fsdp=16"; raises UserError."""
    from ivid2vid_jax.parallel.mesh import MeshConfig

    try:
        pairs = (part.partition("=") for part in text.split(","))
        return MeshConfig(**{"data": 1} | {name: int(size) for name, _, size in pairs})
    except (TypeError, ValueError) as error:
        raise UserError(f"--mesh {text}: give sizes such as data=1,fsdp=16,frames=1") from error


def make_plan(
    args: PlanArgs, config: "TrainConfig", tpu: "TPUSlice", mesh: "Mesh"
) -> tuple["StepPlan", str]:
    """Compiles the step or loads it from the cache; returns the plan and a line of comparison."""
    from ivid2vid_jax.planning import chips, compile_step, programs, report
    from ivid2vid_jax.planning.plan_cache import PlanCache

    folder = programs.planned_folder(config)
    make_program = programs.editing_program if args.edit else programs.training_program
    program = make_program(config, folder, mesh)
    print_header(args, config, tpu, mesh)
    if host_bytes := programs.host_bytes_per_chip(program.args[0]):
        print(
            f"{' and '.join(config.optim.offload)} in host memory: {host_bytes / 2**30:.2f} GiB "
            "per chip, read and written in each step\n"
        )
    cache = PlanCache(
        [
            dataclasses.asdict(config.loader),
            dataclasses.asdict(config.optim),
            repr(folder),
            tpu.name,
            dict(mesh.shape),
            args.edit,
        ],
        mesh,
        chips.cache_folder(),
    )
    if args.full:
        plan = cache.load(True, args.effort)
        plan = plan or compile_step.plan_whole_step(program, mesh, args.effort)
    else:
        plan = compile_step.plan_by_layers(
            config, folder, mesh, program, args.edit, args.effort, print_line, chips.cache_folder()
        )
        print()
    cache.save(plan, args.effort)
    return plan, report.comparison_line(cache)


def print_line(line: str) -> None:
    """Prints a line of progress at once."""
    print(line, flush=True)


def print_header(args: PlanArgs, config: "TrainConfig", tpu: "TPUSlice", mesh: "Mesh") -> None:
    """Prints what is planned."""
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    loader, optim = config.loader, config.optim
    print(
        f"{args.config or 'the shapes world'}: {'sampling' if args.edit else 'training'} step "
        f"on {tpu.name}, {tpu.count} chips, mesh {shape}"
    )
    print(
        f"{'1 clip, 3 guidance branches,' if args.edit else f'{loader.batch} clips'} "
        f"of {loader.frames} frames, {loader.size}x{loader.size}, bfloat16, "
        f"remat {optim.remat}, attention {optim.attention}\n"
    )


def run_estimate(args: PlanArgs, config: "TrainConfig") -> "RunEstimate":
    """What the time and cost of the run are computed from."""
    from ivid2vid_jax.planning.report import RunEstimate

    steps = args.steps or (config.log.sample_steps if args.edit else config.steps)
    return RunEstimate(
        edit=args.edit,
        unit="frames" if args.edit else "clips",
        amount=config.loader.frames / steps if args.edit else config.loader.batch,
        steps=steps,
        effort=args.effort,
        efficiency=args.efficiency,
        price=args.price,
    )


def write_record(args: PlanArgs, plan: "StepPlan", tpu: "TPUSlice", mesh: "Mesh") -> None:
    """Writes the plan with its arguments and versions to --output."""
    assert args.output
    compiler = " ".join(mesh.devices.flat[0].client.platform_version.split())
    record = {
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "mesh": dict(mesh.shape),
        "versions": versions(("jax", "jaxlib")) | {"compiler": compiler},
        "plan": plan.to_json(),
        "seconds_at_peak": plan.times(tpu.chip),
    }
    args.output.write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Runs the command line."""
    cli.main(PlanArgs, run)


if __name__ == "__main__":
    main()
