"""Everything a training run needs before its first step, in the order in which it is made."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from ivid2vid_jax.data.loader import Loader
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.parallel import sharding
from ivid2vid_jax.training import init_state, run_folder
from ivid2vid_jax.training.checkpoints import Checkpoints
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.init_state import Folder, InitialWeights
from ivid2vid_jax.training.objectives import Objective, make_objective
from ivid2vid_jax.training.step import TrainState, make_optimizer, new_state, offload
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder
from ivid2vid_jax.weights.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

# What the loader yields for each task, see `data/loader.py`.
TASK_VIEWS = {
    "edit": "edit",
    "text_to_image": "caption",
    "autoencoder": "pixels",
    "clip": "caption",
}


SINGLE_FRAMES = (
    "trains on single frames of the clips (--loader.images 1.0): frame_loss is 0 and temporal "
    "layers learn nothing; --loader.images 0 trains on clips"
)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """text -> int32 [K] token ids, padded or cut to `length`. Picklable, for loader workers."""

    tokenizer: Any
    length: int

    def __call__(self, text: str) -> np.ndarray:
        """Tokenizes a text."""
        return self.tokenizer(
            [text],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="np",
        )["input_ids"][0].astype(np.int32)


@dataclasses.dataclass
class TrainSetup:
    """Networks, data and objective of a run.

    Attributes:
        config: the training config, its data folders on this machine.
        run: the RUN folder on this machine.
        mesh: the devices.
        folder: the networks to train.
        source: the folder with the initial weights; None for scratch.
        weights: the initial weights; `weights.trained` is empty once the state is made.
        tokenize: of the text encoder.
        objective: the loss.
        counted: the same loss without rematerialisation, for the count of operations.
        optimizer: updates the trained weights.
        loader: the training data.
        cache: keys of the latent caches that the data is read from; () for pixels.
    """

    config: TrainConfig
    run: Path
    mesh: Mesh
    folder: Folder
    source: Folder | None
    weights: InitialWeights
    tokenize: Tokenizer
    objective: Objective
    counted: Objective
    optimizer: optax.GradientTransformation
    loader: Loader
    cache: tuple[str, ...]


def make_setup(config: TrainConfig, run: Path, mesh: Mesh) -> TrainSetup:
    """Loads the networks and opens the data."""
    folder, source = init_state.plan_networks(config, lambda: run_folder.texts(config), run)
    tokenize = Tokenizer(load_tokenizer(folder.tokenizer), folder.text_length)
    weights = init_state.load_initial_weights(config, folder, source, mesh)
    trained = frozenset(weights.trained)
    dtype = init_state.compute_dtype_of(config)
    plain = dataclasses.replace(config.optim, remat="none", attention="xla")
    objective, counted = (
        make_objective(c, folder, tokenize(""), dtype, trained)
        for c in (config, dataclasses.replace(config, optim=plain))
    )
    optimizer = make_optimizer(config.optim, config.steps)
    cache = latent_cache_keys(config, folder, trained) if config.loader.cached else ()
    loader = Loader(
        config.loader, config.data, TASK_VIEWS[config.task], tokenize, config.seed, cache=cache
    )
    return TrainSetup(
        config=config,
        run=run,
        mesh=mesh,
        folder=folder,
        source=source,
        weights=weights,
        tokenize=tokenize,
        objective=objective,
        counted=counted,
        optimizer=optimizer,
        loader=loader,
        cache=cache,
    )


def latent_cache_keys(config: TrainConfig, folder: Folder, trained: frozenset[str]) -> tuple:
    """The latent caches that fit the model and the loader's cuts, see `data/latent_cache.py`.

    Raises UserError if the run trains what the cache would hold.
    """
    from ivid2vid_jax.training import encode_latents

    if config.model is None or config.task in ("autoencoder", "clip"):
        raise UserError("--loader.cached needs --model, whose frozen autoencoder made the cache")
    assert isinstance(folder, PipelineFolder)
    trains_text = any(name.startswith("text_encoder/") for name in trained)
    use_text = config.task == "edit" and not trains_text
    return encode_latents.latent_cache_keys(folder, config.loader, text=use_text)


def make_state(
    setup: TrainSetup, checkpoints: Checkpoints, start_step: int
) -> tuple[TrainState, TrainState]:
    """The state that training starts from, sharded over the mesh, and its shardings.

    It is restored from the checkpoint of `start_step`, together with the loader's position, or
    made from the initial weights if `start_step` is 0.
    """
    config, weights = setup.config, setup.weights

    def init(params):
        return new_state(params, setup.optimizer, config.optim, config.seed)

    shapes = jax.eval_shape(init, weights.trained)
    shardings = sharding.tree_shardings(shapes, setup.mesh)
    shardings = offload(shapes, shardings, config.optim.offload)
    trained, weights.trained = weights.trained, {}
    if not start_step:
        return jax.jit(init, out_shardings=shardings)(trained), shardings
    del trained  # frees memory for the restored state
    abstract_state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    state, position, meta = checkpoints.restore(start_step, abstract_state)
    run_folder.check_origin(setup.run, meta["origin"], weights.origin)
    setup.loader.restore(position)
    return state, shardings


def log_start(setup: TrainSetup, state: TrainState, start_step: int) -> None:
    """Logs what is trained, from where, and on which devices."""
    if jax.process_index():
        return
    config = setup.config
    trained, frozen = (
        sum(x.size for x in tree.values()) / 1e6 for tree in (state.params, setup.weights.frozen)
    )
    log.info(
        "%s: %s, %s; %.2f M parameters trained, %.2f M frozen; %s",
        setup.run,
        config.task,
        f"resuming from step {start_step}" if start_step else f"from {config.model or 'scratch'}",
        trained,
        frozen,
        " x ".join(f"{name} {size}" for name, size in setup.mesh.shape.items()),
    )
    if note := single_frames_note(config, [stream.image_pairs for stream in setup.loader.streams]):
        log.info(note)
    log.info("config: %s ... (RUN/config.json)", json.dumps(run_folder.to_jsonable(config))[:100])


def single_frames_note(config: TrainConfig, image_pairs: Sequence[bool]) -> str:
    """A note on a run that has clips and trains on single frames of them; "" for other runs.

    image_pairs: whether each dataset consists of image pairs.
    """
    has_frame_loss = config.task in ("edit", "text_to_image")
    if not has_frame_loss or config.loader.images < 1 or config.loader.frames == 1:
        return ""
    return "" if all(image_pairs) else SINGLE_FRAMES
