"""The validation loss: the same held-out clips, noise and timesteps every time, so that its values can be compared."""

import dataclasses
import logging

import jax
import numpy as np

from ivid2vid_jax.data.loader import Loader, held_out_split
from ivid2vid_jax.parallel import runtime, sharding
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.params import unflatten
from ivid2vid_jax.training.step import clip_keys
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder

log = logging.getLogger(__name__)

BANDS = 4  # equal bands of timesteps, the least noisy first
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, fill [0, 1) evenly


class Validation:
    """validation(params, frozen) -> {"loss": mean, "noise_loss_t000_250": ..., parts}, over `log.eval_batches` batches of every dataset.

    A prepared dataset without a "validation" split is left out, with a note.
    """

    def __init__(self, config: TrainConfig, tokenize, view: str, objective, mesh):
        self.config, self.mesh = config, mesh
        self.sources = (tokenize, view)
        self.batches = None

        def losses(params, frozen, key_data, batch):
            keys = clip_keys(key_data, 0, batch["serial"])
            found = objective.losses(
                unflatten({**frozen, **params}), batch, keys, train=False, t=batch["t"]
            )
            return {"loss": found.total, **found.parts, "t": batch["t"]}  # t from every process

        self.losses = runtime.jit(losses, out_shardings=sharding.replicated(mesh))

    def load(self) -> list[dict]:
        """The batches, on the host; small enough to keep."""
        tokenize, view = self.sources
        plain = dataclasses.replace(
            self.config.loader, images=0.0, pan=0.0, flip=0.0, crop=1.0, stride=1, workers=0
        )
        batches = []
        for name in self.config.data:
            try:
                with Loader(
                    dataclasses.replace(plain, weights=()),
                    (name,),
                    view,
                    tokenize,
                    seed=0,
                    split=held_out_split(name),
                ) as loader:
                    batches += [next(loader)[0] for _ in range(self.config.log.eval_batches)]
            except UserError as error:
                log.warning("no validation on %s: %s", name, error)
        for i, batch in enumerate(batches):
            place = (batch["serial"] + np.uint32(i * self.config.loader.batch) + 0.5) * GOLDEN
            batch["t"] = (1000 * (place % 1)).astype(np.int32)
        return batches

    def __call__(self, params: dict, frozen: dict) -> dict[str, float]:
        with jax.transfer_guard("allow"):
            if self.batches is None:
                self.batches = self.load()
            key = jax.random.key_data(jax.random.key(0))
            found = [
                jax.device_get(
                    self.losses(params, frozen, key, sharding.put_batch(batch, self.mesh))
                )
                for batch in self.batches
            ]
        if not found:
            return {}
        rows = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
        t = rows.pop("t")
        means = {name: float(values.mean()) for name, values in rows.items()}
        return means | (by_band(rows["noise_loss"], t) if "noise_loss" in rows else {})

    def calibrated(self, folder: PipelineFolder, params: dict, frozen: dict) -> PipelineFolder:
        """The folder with the scaling factor that gives a trained autoencoder's latents unit variance, where one is trained."""
        if self.config.task != "autoencoder":
            return folder
        found = self(params, frozen)
        if not found:
            log.warning(
                "the autoencoder's scaling factor stays %s: there are no held-out clips to measure its latents on",
                folder.vae.scaling_factor,
            )
            return folder
        factor = round(float(found["latent_square"] ** -0.5), 5)
        return dataclasses.replace(
            folder, vae=dataclasses.replace(folder.vae, scaling_factor=factor)
        )


def by_band(loss: np.ndarray, t: np.ndarray) -> dict[str, float]:
    """Mean noise loss of each band of timesteps that has any clips."""
    edges = np.linspace(0, 1000, BANDS + 1).astype(int)
    pairs = zip(edges, edges[1:], strict=False)
    return {
        f"noise_loss_t{low:03d}_{high}": float(loss[(t >= low) & (t < high)].mean())
        for low, high in pairs
        if ((t >= low) & (t < high)).any()
    }
