"""Checkpoints of a training run: RUN/checkpoints/<step>/{state,data,meta}, whole or not at all, each leaf under a checksum.

The only module that knows orbax. What it adds: a bit that flips on disk is found (orbax restores it silently), every failure to restore
names the folder and offers the checkpoint before it, and nothing falls back to another checkpoint or to a fresh start by itself.
"""

import functools
import hashlib
import json
import signal
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from ivid2vid_jax.utils.errors import UserError

policies = ocp.checkpoint_managers
COMMIT = "commit_success.txt"  # orbax's, in a bucket


class Leaf(NamedTuple):
    """What meta keeps of an array of the state."""

    dtype: str
    shape: list[int]
    checksum: str  # 8 hexadecimal digits

    def kind(self) -> str:
        return f"{self.dtype}{self.shape}"


class Checkpoints:
    """The checkpoints of the run folder `run` (here or on gs://), the newest `keep` of them; use it as a context manager, in the main thread.

    In a run of several processes every process makes one and calls the same methods with the same arguments.
    Raises UserError where a checkpoint cannot be read or written.
    """

    def __init__(self, run: Path | str, keep: int = 3):
        self.folder = folder_of(run)
        self.marked = is_bucket(self.folder)
        self.clean()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.LatestN(keep),
            save_decision_policy=policies.FixedIntervalPolicy(1),  # the loop decides when
            lightweight_initialize=True,  # a damaged checkpoint must not stop the others from being listed
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self.stop = threading.Event()
        self.listens = (
            not jax.distributed.is_initialized()
            and threading.current_thread() is threading.main_thread()
        )
        if (
            self.listens
        ):  # jax.distributed has a SIGTERM handler of its own, which ours would replace
            self.handler = signal.signal(signal.SIGTERM, lambda *_: self.stop.set())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending; the commit is a rename, so one that is being written has another name. A bucket cannot
        rename: there a file that is written last is the commit.
        """
        whole = (path for path in self.folder.iterdir() if path.name.isdecimal() and path.is_dir())
        return sorted(
            int(path.name) for path in whole if not self.marked or (path / COMMIT).exists()
        )

    def clean(self) -> None:
        """Removes what a killed save left behind. Not by orbax: its own cleaning runs beside the first save and may trip over itself."""
        if jax.process_index() == 0 and self.folder.is_dir():
            for path in self.folder.iterdir():
                if ".orbax-checkpoint-tmp" in path.name or (
                    self.marked and path.name.isdecimal() and not (path / COMMIT).exists()
                ):
                    path.rmtree(missing_ok=True)
        ocp.multihost.sync_global_processes("ivid2vid_jax.cleaned")

    def save(self, step: int, state: Any, data: dict, meta: dict) -> None:
        """Starts a save; returns when the arrays are copied off the device, so `state` may be donated at once.

        state: pytree of jax arrays. data (loader position) and meta: what JSON holds. Waits for the save before, and raises its error.
        """
        self.wait()
        later = [other for other in self.steps() if other >= step]
        if later:
            raise ValueError(
                f"{self.folder}: step {step} cannot be saved while {later} are there; discard_after({step - 1}) sets them aside"
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
            self.manager.save(
                step, args=args, force=True
            )  # without force orbax may decline, and says so only by its return value
        except OSError as error:
            raise self.unwritten(error) from error

    def read_meta(self, step: int) -> dict:
        """The `meta` that `save` was given."""
        return self.read_record(step)[1]["meta"]

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict, dict]:
        """(state, data, meta) as they were saved, the state on the devices that `abstract_state` asks for.

        abstract_state: the pytree with jax.ShapeDtypeStruct leaves that carry shardings; any mesh and number of devices will do.
        Raises UserError for a state of other leaves, a damaged file or a checksum that differs.
        """
        data, record = self.read_record(step)
        leaves = {path: Leaf(*leaf) for path, leaf in record["leaves"].items()}
        self.check_fit(step, leaves, abstract_state)
        state = self.read(step, state=ocp.args.StandardRestore(abstract_state))["state"]
        found = describe(state)
        wrong = [path for path in leaves if found[path].checksum != leaves[path].checksum]
        if wrong:
            raise self.damaged(
                step,
                f"is damaged: the checksum of {some(wrong)} differs from the one it was saved with",
            )
        return state, data, record["meta"]

    def discard_after(self, step: int) -> None:
        """Renames every checkpoint after `step` to `<its step>.discarded`, so that its step can be saved anew; deletes nothing."""
        self.wait()
        later = [other for other in self.steps() if other > step]
        ocp.multihost.sync_global_processes(
            "ivid2vid_jax.discard.listed"
        )  # all have looked before one renames
        if jax.process_index() == 0:
            for other in later:
                names = (
                    f"{other}.discarded{n or ''}"
                    for n in range(len(list(self.folder.iterdir())) + 1)
                )
                (self.folder / str(other)).rename(
                    next(self.folder / name for name in names if not (self.folder / name).exists())
                )
        ocp.multihost.sync_global_processes("ivid2vid_jax.discard.renamed")
        self.manager.reload()

    def preempted(self, step: int) -> bool:
        """Whether to save now and end: a SIGTERM came. To be asked at every step, as several processes agree on a step through it."""
        if jax.distributed.is_initialized():
            return self.manager.reached_preemption(step)
        return self.stop.is_set()

    def wait(self) -> None:
        """Blocks until the last save is on disk."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:  # whatever the writing thread met
            raise self.unwritten(error) from error

    def close(self) -> None:
        """Waits for the last save and gives SIGTERM back."""
        try:
            self.wait()
        finally:
            if self.listens:
                signal.signal(
                    signal.SIGTERM, self.handler or signal.SIG_DFL
                )  # None: the one before was not Python's
                self.listens = False
        self.manager.close()

    def read_record(self, step: int) -> tuple[dict, dict]:
        """data, and what `save` put in meta, both as sealed."""
        self.wait()
        if step not in self.steps():
            held = (
                f"it holds {', '.join(map(str, self.steps()))}" if self.steps() else "it holds none"
            )
            raise UserError(f"{self.folder}: there is no checkpoint of step {step}; {held}")
        found = self.read(step, data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
        data, record = found["data"], found["meta"]
        parts = (
            [record.get(name) for name in ("meta", "leaves", "seal")]
            if isinstance(record, dict)
            else [None] * 3
        )
        if parts[2] != seal(data, *parts[:2]):
            raise self.damaged(step, "is damaged: data or meta are not what was saved")
        return data, record

    def read(self, step: int, **items) -> Any:
        """Items of a checkpoint. Orbax raises whatever it meets in a broken file (a plain Exception, KeyError, JSONDecodeError, ...)."""
        try:
            return self.manager.restore(step, args=ocp.args.Composite(**items))
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # out of memory is no fault of the checkpoint
        except Exception as error:
            raise self.damaged(
                step,
                f"cannot be read: {' and '.join(items)} is missing or damaged ({first_line(error)})",
            ) from error

    def check_fit(self, step: int, leaves: dict[str, Leaf], abstract_state: Any) -> None:
        """UserError that names the leaves in which the checkpoint and `abstract_state` differ."""
        wanted = {path: Leaf(str(x.dtype), list(x.shape), "") for path, x in named(abstract_state)}
        other = [
            path for path in wanted if path in leaves and wanted[path].kind() != leaves[path].kind()
        ]
        faults = {
            "missing in it": [path for path in wanted if path not in leaves],
            "unexpected in it": [path for path in leaves if path not in wanted],
            "other shape or type": [
                f"{path} (saved {leaves[path].kind()}, wanted {wanted[path].kind()})"
                for path in other
            ],
        }
        told = "; ".join(f"{what}: {some(paths)}" for what, paths in faults.items() if paths)
        if told:
            folder = self.folder / str(step)
            raise UserError(
                f"{folder}: is a checkpoint of another model or optimiser: {told}; train with the config it was saved with"
            )

    def damaged(self, step: int, what: str) -> UserError:
        """The error for a checkpoint that cannot be had, with the way out."""
        before = [other for other in self.steps() if other < step]
        offer = "there is none before it: train anew elsewhere"
        if before:
            offer = (
                f"the one before it is of step {before[-1]}: start again with --resume {before[-1]}"
            )
        return UserError(f"{self.folder / str(step)}: {what}; {offer}")

    def unwritten(self, error: Exception) -> UserError:
        held = (
            f"the last complete one is of step {self.steps()[-1]}"
            if self.steps()
            else "there is no complete one"
        )
        return UserError(
            f"{self.folder}: a checkpoint could not be written ({first_line(error)}); {held}; make room or repair the disk"
        )


def folder_of(run: Path | str) -> epath.Path:
    """RUN/checkpoints, absolute."""
    folder = epath.Path(run) / "checkpoints"
    return (
        folder if is_bucket(folder) else folder.absolute()
    )  # which epath takes a bucket for a file's name


def is_bucket(folder: epath.Path) -> bool:
    """Whether orbax commits by a file there."""
    return str(folder).startswith("gs://")


def named(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of every leaf; names of fields, keys and positions joined by slashes."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def describe(state: Any) -> dict[str, Leaf]:
    """Kind and checksum of every array of `state`; blocks until they are computed."""
    leaves = named(state)
    meshes = [x.sharding.mesh for _, x in leaves if isinstance(x.sharding, NamedSharding)]
    replicated = NamedSharding(meshes[0], PartitionSpec()) if meshes else None
    sums = jax.device_get(checksums([x for _, x in leaves], replicated))
    return {
        path: Leaf(str(x.dtype), list(x.shape), f"{int(s):08x}")
        for (path, x), s in zip(leaves, sums, strict=True)
    }


@functools.partial(jax.jit, static_argnums=1)
def checksums(leaves: list[jax.Array], replicated: NamedSharding | None) -> jax.Array:
    """uint32 [len(leaves)], in one program, so that its collectives cannot starve each other, and whole on every process."""
    sums = jnp.stack([checksum(x) for x in leaves])
    return sums if replicated is None else jax.lax.with_sharding_constraint(sums, replicated)


@jax.jit  # traced once per shape, not once per leaf
def checksum(x: jax.Array) -> jax.Array:
    """sum_i word_i (2i + 1) mod 2^32 over the bits of `x`, uint32 scalar; i counts the logical array's words, however it is sharded.

    A flipped bit adds +-2^k (2i + 1), k < 32, to the sum: an odd number times a power of two below 2^32, hence never 0 mod 2^32.
    """
    words = as_words(x)
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(
        range(words.ndim)
    ):  # no reshape: flattening a sharded array would gather it
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(
            stride % 2**32
        )
        stride *= words.shape[axis]
    return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)


def as_words(x: jax.Array) -> jax.Array:
    """The bits of `x` as uint32 words: one per element, two (a last axis) where an element has 64 bits."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def jsonable(value: Any) -> Any:
    """`value` as it will come back from JSON."""
    return json.loads(json.dumps(value))


def seal(*parts: Any) -> str:
    """sha256 of what came out of JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
