"""RUN/pipeline: the averaged weights as a pipeline folder, written atomically.

In the step's path are only copies: `Weights.collect` gathers what training changes. The rest,
reading frozen weights and writing files, runs in the background (`write_pipeline`).
"""

import dataclasses
from pathlib import Path

import flax
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.parallel import sharding
from ivid2vid_jax.training.config import CheckpointConfig
from ivid2vid_jax.training.params import flatten, unflatten
from ivid2vid_jax.training.step import HOST_MEMORY, TrainState, on_device
from ivid2vid_jax.utils.json_files import read_json, write_json
from ivid2vid_jax.weights import components
from ivid2vid_jax.weights.pipeline_folder import (
    ClipFolder,
    PipelineFolder,
    param_shapes,
    save_folder,
)

Folder = PipelineFolder | ClipFolder


def ema_params(state: TrainState) -> dict[str, jax.Array]:
    """The EMA of the trained weights, or the weights themselves if the run keeps no EMA.

    On the devices, also if the EMA is kept in host memory: programs take it as it is.
    """
    if any(leaf.sharding.memory_kind == HOST_MEMORY for leaf in state.ema.values()):
        return to_device(state.ema)
    return state.ema or state.params


@jax.jit
def to_device(ema: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A copy on the devices."""
    return on_device(ema)


def on_host(params: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Whole arrays in the memory of every process; all processes call it."""
    return {name: np.asarray(leaf) for name, leaf in sorted(gather_split(params).items())}


def gather_split(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The arrays, those of which other processes hold a part gathered by one program."""
    split = {name: leaf for name, leaf in params.items() if not leaf.is_fully_addressable}
    if not split:
        return params
    where = next(iter(split.values())).sharding
    assert isinstance(where, NamedSharding) and isinstance(where.mesh, Mesh)
    return params | sharding.gather(split, where.mesh)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of an export, which no later step changes.

    Attributes:
        arrays: name -> array, in host memory, or on the devices if it was gathered.
        stored: name -> shape of the frozen weights that are read from the source's files.
    """

    arrays: dict[str, jax.Array | np.ndarray]
    stored: dict[str, tuple[int, ...]]

    @classmethod
    def collect(
        cls, trained: dict[str, jax.Array], frozen: dict[str, jax.Array], source: Folder | None
    ) -> "Weights":
        """Copies what training changes; all processes call it.

        Frozen weights that the source's files hold are left out: so they keep their precision, and
        a pod need not gather them. In all processes but the first one the copies are dropped.

        Args:
            trained: name -> trained weights, which the next step may overwrite.
            frozen: name -> frozen weights, which never change.
            source: the folder that training started from, None for scratch.
        """
        with jax.transfer_guard("allow"):
            shapes = stored_shapes(source) if source else {}
            stored = {
                name: leaf.shape for name, leaf in frozen.items() if shapes.get(name) == leaf.shape
            }
            rest = {name: leaf for name, leaf in frozen.items() if name not in stored}
            gathered = gather_split({**rest, **trained})
            if jax.process_index():
                return cls({}, {})
            # Gathered arrays are copies already; the others come to the host before a step
            # overwrites them. On a CPU numpy views them, and JAX keeps memory that is viewed.
            local = {name: leaf for name, leaf in trained.items() if leaf.is_fully_addressable}
            for leaf in local.values():
                leaf.copy_to_host_async()
            return cls(gathered | {name: np.asarray(leaf) for name, leaf in local.items()}, stored)


def write_pipeline(
    run: Path, step: int, folder: Folder, source: Folder | None, weights: Weights
) -> None:
    """Writes RUN/pipeline, replacing the one of an earlier step. For the first process only.

    Args:
        run: the RUN folder.
        step: step of the weights, recorded in RUN/pipeline/training.json.
        folder: the networks' configs.
        source: the folder that training started from, None for scratch.
        weights: of all networks.

    Raises:
        UserError: a file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    if source is not None:
        arrays = stored_weights(source, weights.stored)
    arrays |= {name: np.asarray(leaf) for name, leaf in weights.arrays.items()}
    try:
        save_folder(
            run / "pipeline",
            folder,
            unflatten(arrays),
            replace=True,
            finish=lambda path: write_json(path / "training.json", {"step": step}),
        )
    except OSError as error:
        raise UserError(
            f"{run / 'pipeline'}: the pipeline of step {step} could not be written ({error}); the "
            "checkpoints are complete; free some disk space and run the same command again"
        ) from error


def exported_step(run: Path) -> int | None:
    """The step of the weights in RUN/pipeline; None if there is no complete pipeline."""
    file = run / "pipeline" / "training.json"
    return read_json(file)["step"] if file.is_file() else None


def is_export_due(config: CheckpointConfig, step: int, steps: int) -> bool:
    """Whether RUN/pipeline is written after a step of a run of `steps` steps."""
    at_interval = config.pipeline_every > 0 and step % config.pipeline_every == 0
    return config.pipeline and (step >= steps or at_interval)


def lacks_export(config: CheckpointConfig, run: Path, step: int, steps: int) -> bool:
    """Whether a run that resumes from `step` has to write RUN/pipeline first.

    It has if a kill came between the writing of the checkpoint and that of the pipeline, or if
    the pipeline is of a later step, which --resume has set aside.
    """
    exported = exported_step(run)
    is_stale = config.pipeline and exported is not None and exported > step
    return step > 0 and exported != step and (is_stale or is_export_due(config, step, steps))


def stored_shapes(source: Folder) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the weights in a folder's files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for component, config in source.models.items():
        tree = flatten({component: param_shapes(component, config)})
        shapes |= {name: leaf.shape for name, leaf in tree.items()}
    return shapes


def stored_weights(source: Folder, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The named weights of a folder's files, in their stored precision."""
    weights: dict[str, np.ndarray] = {}
    for component, config in source.models.items():
        if any(name.startswith(f"{component}/") for name in shapes):
            tree = dict(
                components.load_component_arrays(
                    component,
                    source.component_dir(component),
                    param_shapes(component, config),
                    skip=source.key_filter(component),
                )
            )
            weights |= flatten({component: flax.traverse_util.unflatten_dict(tree)})
    return {name: weights[name] for name in shapes}
