"""Checkpoints of a training run: RUN/checkpoints/<step>/{state,data,meta}, by orbax.

Added to what orbax does:
- Every leaf has a checksum: orbax itself restores a file with a flipped bit without an error.
- Every failure to restore is a UserError with the checkpoint's folder and the step of the previous
  one. Nothing falls back to another checkpoint or to a fresh start by itself.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import signal
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.signals import set_on_interrupt

policies = ocp.checkpoint_managers
COMMIT = "commit_success.txt"  # written last by orbax: in a bucket it marks a complete checkpoint


class Leaf(NamedTuple):
    """Type, shape and checksum of an array of the state, as meta stores them."""

    dtype: str
    shape: list[int]
    checksum: str  # 8 hexadecimal digits

    def kind(self) -> str:
        """Type and shape, for messages."""
        return f"{self.dtype}{self.shape}"


class Checkpoints:
    """The checkpoints of a run folder; a context manager, for the main thread.

    Of several processes each creates one and calls the same methods with the same arguments.
    Raises UserError if a checkpoint cannot be read or written.
    """

    def __init__(self, run: Path | str, keep: int = 3):
        """Opens RUN/checkpoints.

        Args:
            run: the RUN folder, local or gs://.
            keep: number of checkpoints to keep, the newest.
        """
        self.folder = checkpoints_folder(run)
        self.in_bucket = is_bucket(self.folder)
        self.clean()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.LatestN(keep),
            save_decision_policy=policies.FixedIntervalPolicy(1),  # the training loop decides
            lightweight_initialize=True,  # do not read the checkpoints, one may be corrupt
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self.stop = threading.Event()
        # jax.distributed has its own SIGTERM handler, which must stay.
        self.handles_sigterm = (
            not jax.distributed.is_initialized()
            and threading.current_thread() is threading.main_thread()
        )
        if self.handles_sigterm:
            self.old_handler = signal.signal(signal.SIGTERM, lambda *_: self.stop.set())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending.

        On a file system orbax renames a checkpoint when it is complete; in a bucket, which cannot
        rename, it writes the file COMMIT last.
        """
        return sorted(
            int(path.name)
            for path in self.folder.iterdir()
            if path.name.isdecimal() and path.is_dir() and self.is_complete(path)
        )

    def is_complete(self, path: epath.Path) -> bool:
        """Whether orbax has finished writing the checkpoint with this name."""
        return not self.in_bucket or (path / COMMIT).exists()

    def clean(self) -> None:
        """Removes incomplete checkpoints, left by a killed save.

        Orbax would remove them while it writes the first checkpoint, and may fail at that.
        """
        if jax.process_index() == 0 and self.folder.is_dir():
            for path in self.folder.iterdir():
                if ".orbax-checkpoint-tmp" in path.name or (
                    path.name.isdecimal() and not self.is_complete(path)
                ):
                    path.rmtree(missing_ok=True)
        ocp.multihost.sync_global_processes("ivid2vid_jax.cleaned")

    def save(self, step: int, state: Any, data: dict, meta: dict) -> None:
        """Starts a save and returns when the arrays are copied: `state` may be donated then.

        Waits for the previous save, and raises its error.

        Args:
            step: newer than every checkpoint.
            state: pytree of jax arrays.
            data: position of the loader, JSON.
            meta: anything else, JSON.
        """
        self.wait()
        later = [other for other in self.steps() if other >= step]
        if later:
            raise ValueError(
                f"{self.folder}: step {step} cannot be saved while checkpoints of {later} exist; "
                f"discard_after({step - 1}) sets them aside"
            )
        data, meta = jsonable(data), jsonable(meta)
        leaves = jsonable(describe(state))
        record = {"meta": meta, "leaves": leaves, "seal": seal(data, meta, leaves)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data),
            meta=ocp.args.JsonSave(record),
        )
        try:
            # Without force orbax may skip the save, which only its return value tells.
            self.manager.save(step, args=args, force=True)
        except OSError as error:
            raise self.write_error(error) from error

    def read_meta(self, step: int) -> dict:
        """The `meta` that was saved."""
        return self.read_record(step)[1]["meta"]

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict, dict]:
        """(state, data, meta) as they were saved.

        Args:
            step: one of `steps()`.
            abstract_state: the pytree with jax.ShapeDtypeStruct leaves that carry shardings, on any
                mesh and number of devices.

        Raises:
            UserError: the state has other leaves, a file is corrupt, or a checksum differs.
        """
        data, record = self.read_record(step)
        leaves = {path: Leaf(*leaf) for path, leaf in record["leaves"].items()}
        self.check_leaves(step, leaves, abstract_state)
        state = self.read(step, state=ocp.args.StandardRestore(abstract_state))["state"]
        restored = describe(state)
        corrupt = [path for path in leaves if restored[path].checksum != leaves[path].checksum]
        if corrupt:
            raise self.read_error(step, f"is corrupt: wrong checksum of {first_names(corrupt)}")
        return state, data, record["meta"]

    def discard_after(self, step: int) -> None:
        """Renames every checkpoint after `step` to `<its step>.discarded`, so that steps are free.

        Nothing is deleted.
        """
        self.wait()
        later = [other for other in self.steps() if other > step]
        # No process renames before all have listed the steps.
        ocp.multihost.sync_global_processes("ivid2vid_jax.discard.listed")
        if jax.process_index() == 0:
            for other in later:
                (self.folder / str(other)).rename(self.unused_name(f"{other}.discarded"))
        ocp.multihost.sync_global_processes("ivid2vid_jax.discard.renamed")
        self.manager.reload()

    def unused_name(self, name: str) -> epath.Path:
        """`name`, or `name` with the smallest number that makes it new."""
        candidates = (self.folder / f"{name}{n or ''}" for n in itertools.count())
        return next(path for path in candidates if not path.exists())

    def preempted(self, step: int) -> bool:
        """Whether to save and end after this step, because of SIGTERM.

        Call it at every step: several processes agree on a common step by it.
        """
        if jax.distributed.is_initialized():
            return self.manager.reached_preemption(step)
        return self.stop.is_set()

    def stop_on_interrupt(self) -> contextlib.AbstractContextManager:
        """Within the block a first Ctrl-C stops the run as SIGTERM does; a second ends it at once.

        Several processes are stopped by SIGTERM only.
        """
        return set_on_interrupt(self.stop) if self.handles_sigterm else contextlib.nullcontext()

    def wait(self) -> None:
        """Blocks until the last save is on disk."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:  # any error of the writing thread
            raise self.write_error(error) from error

    def close(self) -> None:
        """Waits for the last save and restores the old SIGTERM handler."""
        try:
            self.wait()
        finally:
            if self.handles_sigterm:
                # The old handler is None if it was not installed from Python.
                signal.signal(signal.SIGTERM, self.old_handler or signal.SIG_DFL)
                self.handles_sigterm = False
        self.manager.close()

    def read_record(self, step: int) -> tuple[dict, dict]:
        """data, and the record that `save` stored in meta; checked against their seal."""
        self.wait()
        steps = self.steps()
        if step not in steps:
            available = f"there are {', '.join(map(str, steps))}" if steps else "there are none"
            raise UserError(f"{self.folder}: there is no checkpoint of step {step}; {available}")
        items = self.read(step, data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
        data, record = items["data"], items["meta"]
        fields = record if isinstance(record, dict) else {}
        if fields.get("seal") != seal(data, fields.get("meta"), fields.get("leaves")):
            raise self.read_error(step, "is corrupt: wrong checksum of data or meta")
        return data, record

    def read(self, step: int, **items) -> Any:
        """Reads items of a checkpoint. Any error but lack of memory means a corrupt checkpoint.

        Orbax raises Exception, KeyError, JSONDecodeError and others for a broken file.
        """
        try:
            return self.manager.restore(step, args=ocp.args.Composite(**items))
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            raise self.read_error(
                step,
                f"cannot be read: {' and '.join(items)} is missing or corrupt "
                f"({first_line(error)})",
            ) from error

    def check_leaves(self, step: int, saved: dict[str, Leaf], abstract_state: Any) -> None:
        """Raises UserError that names the leaves in which a checkpoint and a state differ."""
        expected = {
            path: Leaf(str(x.dtype), list(x.shape), "") for path, x in named_leaves(abstract_state)
        }
        differences = {
            "missing in it": [path for path in expected if path not in saved],
            "unexpected in it": [path for path in saved if path not in expected],
            "other shape or type": [
                f"{path} (saved {saved[path].kind()}, expected {leaf.kind()})"
                for path, leaf in expected.items()
                if path in saved and leaf.kind() != saved[path].kind()
            ],
        }
        faults = "; ".join(
            f"{fault}: {first_names(paths)}" for fault, paths in differences.items() if paths
        )
        if faults:
            raise UserError(
                f"{self.folder / str(step)}: is a checkpoint of another model or optimiser: "
                f"{faults}; train with the config it was saved with"
            )

    def read_error(self, step: int, fault: str) -> UserError:
        """The error for a checkpoint that cannot be restored; it names the previous one."""
        before = [other for other in self.steps() if other < step]
        advice = "there is no checkpoint before it: train again in a new --output"
        if before:
            advice = f"the one before it is of step {before[-1]}: use --resume {before[-1]}"
        return UserError(f"{self.folder / str(step)}: {fault}; {advice}")

    def write_error(self, error: Exception) -> UserError:
        """The error for a checkpoint that cannot be written; it names the last complete one."""
        steps = self.steps()
        last = (
            f"the last complete one is of step {steps[-1]}" if steps else "there is no complete one"
        )
        return UserError(
            f"{self.folder}: a checkpoint could not be written ({first_line(error)}); {last}; "
            "free some disk space or repair the disk"
        )


def checkpoints_folder(run: Path | str) -> epath.Path:
    """RUN/checkpoints, absolute."""
    folder = epath.Path(run) / "checkpoints"
    # epath would make a bucket's URL a local path.
    return folder if is_bucket(folder) else folder.absolute()


def has_checkpoint(run: Path | str) -> bool:
    """Whether RUN holds a checkpoint."""
    folder = checkpoints_folder(run)
    return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())


def is_bucket(folder: epath.Path) -> bool:
    """Whether orbax marks complete checkpoints in this folder by the file COMMIT."""
    return str(folder).startswith("gs://")


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of every leaf; the path joins fields, keys and indices by slashes."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def describe(state: Any) -> dict[str, Leaf]:
    """Path -> type, shape and checksum of every array; blocks until they are computed."""
    leaves = named_leaves(state)
    meshes = [x.sharding.mesh for _, x in leaves if isinstance(x.sharding, NamedSharding)]
    replicated = NamedSharding(meshes[0], PartitionSpec()) if meshes else None
    sums = jax.device_get(checksums([x for _, x in leaves], replicated))
    return {
        path: Leaf(str(x.dtype), list(x.shape), f"{int(s):08x}")
        for (path, x), s in zip(leaves, sums, strict=True)
    }


@functools.partial(jax.jit, static_argnums=1)
def checksums(leaves: list[jax.Array], replicated: NamedSharding | None) -> jax.Array:
    """The leaves' checksums, uint32 [len(leaves)], on every process.

    One program for all leaves: the collectives of several programs at once could deadlock.
    """
    sums = jnp.stack([checksum(x) for x in leaves])
    return sums if replicated is None else jax.lax.with_sharding_constraint(sums, replicated)


@jax.jit  # so that equal shapes are traced once
def checksum(x: jax.Array) -> jax.Array:
    """sum_i word_i (2i + 1) mod 2^32 over the bits of `x`, a uint32 scalar.

    i counts the words of the logical array, so the sum does not depend on its sharding. A flipped
    bit changes the sum by +-2^k (2i + 1) with k < 32: an odd number times a power of two below
    2^32, which is never 0 mod 2^32.
    """
    words = as_words(jax.device_put(x, jax.memory.Space.Device))  # x may be in host memory
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    # No reshape: flattening a sharded array would gather it.
    for axis in reversed(range(words.ndim)):
        axis_index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index += axis_index * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)


def as_words(x: jax.Array) -> jax.Array:
    """The bits of `x` as uint32 words: one per element, or two, on a new last axis, of 64 bits."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def jsonable(value: Any) -> Any:
    """`value` as JSON gives it back."""
    return json.loads(json.dumps(value))


def seal(*parts: Any) -> str:
    """sha256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def first_names(names: list[str], limit: int = 5) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def first_line(error: Exception) -> str:
    """The first line of an error's message, else its type; at most 200 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
