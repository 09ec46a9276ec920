"""`python -m ivid2vid_jax.plan`: what a recipe needs of TPUs, by the real TPU compiler and without a TPU.

python -m ivid2vid_jax.plan --config configs/sd15.py --topology v5e:4x4
python -m ivid2vid_jax.plan --config configs/sd15.py --topology v5e:2x2 --mesh frames=4 --edit
"""

import dataclasses
import json
from pathlib import Path

from ivid2vid_jax.utils.cli import main
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.versions import versions


@dataclasses.dataclass
class PlanArgs:
    """Compiles a recipe's training step, or its sampling step, for a TPU slice: memory, arithmetic, traffic, the least time a step can take."""

    config: Path | None = None  # a recipe (default: the shapes world)
    topology: str | None = (
        None  # chip and sides of the slice: v4, v5e, v5p or v6e (default: v5e:4x4; with --edit, which one host does, v5e:2x2)
    )
    mesh: str | None = (
        None  # data=1,fsdp=16,frames=1; -1 for what is left (default: the recipe's; with --edit all chips on frames)
    )
    edit: bool = False  # the sampling step of one clip instead of the training step
    full: bool = False  # compile the whole step instead of layer by layer: the proof, in tens of minutes and up to 20 GB of memory
    size: int | None = None  # pixels of a side; this and what follows in the place of the recipe's
    frames: int | None = None  # frames of a clip
    batch: int | None = None  # clips of an optimiser step
    accumulation: int | None = None  # micro-batches of an optimiser step
    remat: str | None = None  # none, products or block
    attention: str | None = None  # backend, see models/attention.py
    steps: int | None = None  # of the run; of the sampler with --edit
    efficiency: float = 0.4  # share of the bound that is reached, for chip-hours and cost
    price: float | None = None  # dollars a chip-hour, for the cost
    effort: float = -1.0  # the compiler's: 0 is a run's own, some five times slower to compile here, and moves less, small arrays far less
    output: Path | None = None  # also write the plan as JSON to this file


def run(args: PlanArgs) -> None:
    """Prints the plan."""
    from ivid2vid_jax.planning import chips

    where = chips.TPUSlice(args.topology or ("v5e:2x2" if args.edit else "v5e:4x4"))
    chips.hide_accelerators()  # before anything imports JAX
    config = changed(args)
    from ivid2vid_jax.parallel.mesh import make_mesh
    from ivid2vid_jax.planning import programs, report

    folder = programs.folder_of(config)
    mesh = make_mesh(config.mesh, where.devices())
    program = (programs.editing_program if args.edit else programs.training_program)(
        config, folder, mesh
    )
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    clips = "1 clip, 3 guidance branches," if args.edit else f"{config.loader.batch} clips"
    print(
        f"{args.config or 'the shapes world'}: {'sampling' if args.edit else 'training'} step on {where.name}, {where.count} chips, mesh {shape}"
    )
    print(
        f"{clips} of {config.loader.frames} frames, {config.loader.size}x{config.loader.size}, bfloat16, remat {config.optim.remat}, attention {config.optim.attention}\n"
    )
    program_is = [
        dataclasses.asdict(config.loader),
        dataclasses.asdict(config.optim),
        repr(folder),
        where.name,
        dict(mesh.shape),
        args.edit,
    ]
    memory = report.PlanCache(program_is, mesh, chips.cache_folder())
    if args.full:
        plan = memory.recall(True, args.effort) or report.plan_whole_step(
            program, mesh, args.effort
        )
    else:
        plan = report.plan_by_layers(
            config,
            folder,
            mesh,
            program,
            args.edit,
            args.effort,
            lambda line: print(line, flush=True),
            chips.cache_folder(),
        )
        print()
    memory.keep(plan, args.effort)
    amount, what = (
        (config.loader.frames / steps_of(args, config), "frames")
        if args.edit
        else (config.loader.batch, "clips")
    )
    print(
        report.plan_text(
            plan,
            where,
            what,
            amount,
            steps_of(args, config),
            args.efficiency,
            args.price,
            args.edit,
            args.effort,
        )
    )
    print(memory.apart())
    print(f"compiled in {plan.seconds:.0f} s with effort {args.effort:g}")
    if args.output:
        told = versions(("jax", "jaxlib")) | {
            "compiler": " ".join(mesh.devices.flat[0].client.platform_version.split())
        }
        record = {
            "arguments": {k: str(v) for k, v in vars(args).items()},
            "mesh": dict(mesh.shape),
            "versions": told,
            "plan": dataclasses.asdict(plan),
        }
        args.output.write_text(
            json.dumps(record | {"seconds_at_peak": plan.times(where.chip)}, indent=2) + "\n"
        )


def steps_of(args: PlanArgs, config) -> int:
    return args.steps or (config.log.sample_steps if args.edit else config.steps)


def changed(args: PlanArgs):
    """The recipe with what the command line says in its place. Raises UserError that names a value out of its range."""
    from ivid2vid_jax.parallel.mesh import MeshConfig
    from ivid2vid_jax.train import recipe
    from ivid2vid_jax.training.config import DEFAULT

    config = recipe(args.config) if args.config else DEFAULT
    if not -1 <= args.effort <= 1:
        raise UserError(f"--effort {args.effort} must be from -1 to 1")
    if not 0 < args.efficiency <= 1:
        raise UserError(f"--efficiency {args.efficiency} must be above 0 and at most 1")
    loader = {
        name: getattr(args, name)
        for name in ("size", "frames", "batch")
        if getattr(args, name) is not None
    }
    optim = {
        name: getattr(args, name)
        for name in ("accumulation", "remat", "attention")
        if getattr(args, name) is not None
    }
    mesh = (
        mesh_of(args.mesh)
        if args.mesh
        else MeshConfig(data=1, frames=-1)
        if args.edit
        else config.mesh
    )
    config = dataclasses.replace(
        config,
        loader=dataclasses.replace(config.loader, **loader),
        optim=dataclasses.replace(config.optim, **optim),
        mesh=mesh,
    )
    config.check()
    config.loader.check()
    return config


def mesh_of(words: str):
    """ "data=1,fsdp=16" as a MeshConfig."""
    from ivid2vid_jax.parallel.mesh import MeshConfig

    try:
        sizes = {
            name: int(size) for name, _, size in (word.partition("=") for word in words.split(","))
        }
        return MeshConfig(**{"data": 1} | sizes)
    except (TypeError, ValueError) as error:
        raise UserError(f"--mesh {words}: give sizes such as data=1,fsdp=16,frames=1") from error


if __name__ == "__main__":
    main(PlanArgs, run)
