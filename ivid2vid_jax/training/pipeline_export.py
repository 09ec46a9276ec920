"""RUN/pipeline: the averaged weights as a pipeline folder, written atomically."""

from pathlib import Path

import flax
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ivid2vid_jax.parallel import sharding
from ivid2vid_jax.training.params import flatten, unflatten
from ivid2vid_jax.training.step import TrainState
from ivid2vid_jax.utils.json_files import read_json, write_json
from ivid2vid_jax.weights import components
from ivid2vid_jax.weights.pipeline_folder import (
    ClipFolder,
    PipelineFolder,
    param_shapes,
    save_folder,
)


def ema_params(state: TrainState) -> dict[str, jax.Array]:
    """The EMA of the trained weights, or the weights themselves if the run keeps no EMA."""
    return state.ema or state.params


def on_host(params: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Whole arrays in the memory of every process; all processes call it."""
    split = {name: leaf for name, leaf in params.items() if not leaf.is_fully_addressable}
    if split:
        where = next(iter(split.values())).sharding
        assert isinstance(where, NamedSharding) and isinstance(where.mesh, Mesh)
        params = params | sharding.gather(split, where.mesh)
    return {name: np.asarray(leaf) for name, leaf in sorted(params.items())}


def write_pipeline(
    run: Path,
    step: int,
    folder: PipelineFolder | ClipFolder,
    source: PipelineFolder | ClipFolder | None,
    trained: dict[str, jax.Array],
    frozen: dict[str, jax.Array],
) -> None:
    """Writes RUN/pipeline, replacing the one of an earlier step.

    Args:
        run: the RUN folder.
        step: step of the weights, recorded in RUN/pipeline/training.json.
        folder: the networks' configs.
        source: the folder that training started from, None for scratch. Frozen weights are copied
            from its files, so that they keep their precision.
        trained: name -> trained weights.
        frozen: name -> frozen weights.
    """
    with jax.transfer_guard("allow"):
        weights = on_host({**frozen, **trained})
        if jax.process_index():
            return
        if source is not None:
            weights |= stored_weights(source, {name: weights[name].shape for name in frozen})
        save_folder(run / "pipeline", folder, unflatten(weights), replace=True)
        write_json(run / "pipeline" / "training.json", {"step": step})


def exported_step(run: Path) -> int | None:
    """The step of the weights in RUN/pipeline; None if there is no complete pipeline."""
    file = run / "pipeline" / "training.json"
    return read_json(file)["step"] if file.is_file() else None


def stored_weights(
    source: PipelineFolder | ClipFolder, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The named weights that a folder holds in the given shapes, in their stored precision."""
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
    return {
        name: weights[name]
        for name, shape in shapes.items()
        if name in weights and weights[name].shape == shape
    }
