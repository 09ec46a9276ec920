"""The validation loss: always on the same held-out clips, noise and timesteps."""

import dataclasses
import itertools
import logging
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from ivid2vid_jax.data.loader import Loader
from ivid2vid_jax.data.sources import held_out_split
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.parallel import runtime, sharding
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.objectives import Objective
from ivid2vid_jax.training.params import unflatten
from ivid2vid_jax.training.step import clip_keys, micro_batches
from ivid2vid_jax.weights.pipeline_folder import ClipFolder, PipelineFolder

log = logging.getLogger(__name__)

BANDS = 4  # number of equal bands of timesteps, from the least noisy to the noisiest
CHUNK_PIXELS = 2**20  # pixels that a device evaluates at once: 16 frames of 256x256
GOLDEN = 0.6180339887498949  # its multiples modulo 1 fill [0, 1) evenly


class Validation:
    """validation(params, frozen) -> {"loss": mean, its parts, "noise_loss_t000_250": ..., ...}.

    The means are over `log.eval_batches` batches of every dataset. A prepared dataset without a
    "validation" split is skipped with a warning.
    """

    def __init__(
        self,
        config: TrainConfig,
        tokenize: Callable[[str], np.ndarray],
        view: str,
        objective: Objective,
        mesh: Mesh,
        cache: tuple[str, ...] = (),
    ):
        """tokenize, view, cache: of the loader."""
        self.config, self.mesh = config, mesh
        self.tokenize, self.view, self.cache = tokenize, view, cache
        self.batches: list[dict] | None = None
        count = chunk_count(config, mesh)

        def losses_fn(params, frozen, key_data, batch):
            def chunk_losses(chunk):
                keys = clip_keys(key_data, 0, chunk["serial"])
                losses = objective.losses(
                    unflatten({**frozen, **params}), chunk, keys, train=False, t=chunk["t"]
                )
                # t is returned, so that every process has the timesteps of all clips
                return {"loss": losses.total, **losses.parts, "t": chunk["t"]}

            if count == 1:
                return chunk_losses(batch)
            losses = jax.lax.map(chunk_losses, micro_batches(batch, count))
            return {name: x.swapaxes(0, 1).reshape(-1) for name, x in losses.items()}

        self.losses = runtime.jit(losses_fn, out_shardings=sharding.replicated(mesh))

    def load_batches(self) -> list[dict]:
        """The validation batches, in host memory.

        Of pixels without augmentation; of the latent cache with the cuts that it holds.
        """
        loader_config = dataclasses.replace(
            self.config.loader,
            images=0.0,
            pan=0.0,
            flip=0.0,
            crop=1.0,
            stride=1,
            workers=0,
            weights=(),
        )
        batches: list[dict] = []
        for name in self.config.data:
            try:
                split = held_out_split(name)
                with Loader(
                    loader_config,
                    (name,),
                    self.view,
                    self.tokenize,
                    seed=0,
                    split=split,
                    cache=self.cache,
                ) as loader:
                    batches += [next(loader)[0] for _ in range(self.config.log.eval_batches)]
            except UserError as error:
                log.warning("no validation on %s: %s", name, error)
        for i, batch in enumerate(batches):
            offset = (batch["serial"] + np.uint32(i * self.config.loader.batch) + 0.5) * GOLDEN
            batch["t"] = (1000 * (offset % 1)).astype(np.int32)
        return batches

    def __call__(self, params: dict, frozen: dict) -> dict[str, float]:
        """Mean losses of the weights; {} if no dataset has held-out clips."""
        with jax.transfer_guard("allow"):
            if self.batches is None:
                self.batches = self.load_batches()
            key = jax.random.key_data(jax.random.key(0))
            results = [
                jax.device_get(
                    self.losses(params, frozen, key, sharding.put_batch(batch, self.mesh))
                )
                for batch in self.batches
            ]
        if not results:
            return {}
        values = {name: np.concatenate([r[name] for r in results]) for name in results[0]}
        t = values.pop("t")
        means = {name: float(value.mean()) for name, value in values.items()}
        return means | (by_band(values["noise_loss"], t) if "noise_loss" in values else {})

    def calibrated(
        self, folder: PipelineFolder | ClipFolder, params: dict, frozen: dict
    ) -> PipelineFolder | ClipFolder:
        """The folder with a measured scaling factor if the task trains an autoencoder.

        The factor gives the latents of held-out clips unit variance.
        """
        if self.config.task != "autoencoder":
            return folder
        assert isinstance(folder, PipelineFolder)
        means = self(params, frozen)
        if not means:
            log.warning(
                "the autoencoder's scaling factor stays %s: there are no held-out clips to measure "
                "it on",
                folder.vae.scaling_factor,
            )
            return folder
        factor = round(float(means["latent_square"] ** -0.5), 5)
        return dataclasses.replace(
            folder, vae=dataclasses.replace(folder.vae, scaling_factor=factor)
        )


def chunk_count(config: TrainConfig, mesh: Mesh) -> int:
    """The number of chunks that a batch is evaluated in, so that memory is bounded.

    A device takes CHUNK_PIXELS at once, or one clip. CLIP's loss compares the clips of a whole
    batch, so it is one chunk.
    """
    batch, size, frames = config.loader.batch, config.loader.size, config.loader.frames
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.task == "clip" or batch % shards:
        return 1
    per_device = batch // shards
    clip_pixels = size * size * -(-frames // mesh.shape["frames"])
    fitting = max(1, CHUNK_PIXELS // clip_pixels)
    clips = max(n for n in range(1, per_device + 1) if per_device % n == 0 and n <= fitting)
    return per_device // clips


def by_band(loss: np.ndarray, t: np.ndarray) -> dict[str, float]:
    """Mean noise loss of each band of timesteps; bands without clips are left out."""
    edges = np.linspace(0, 1000, BANDS + 1).astype(int)
    masks = {(low, high): (t >= low) & (t < high) for low, high in itertools.pairwise(edges)}
    return {
        f"noise_loss_t{low:03d}_{high}": float(loss[mask].mean())
        for (low, high), mask in masks.items()
        if mask.any()
    }
