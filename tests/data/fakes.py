"""A dataset in memory whose pixels identify record and frame, and loaders on it."""

import dataclasses
import itertools
import time

import numpy as np
import psutil

from ivid2vid_jax.data.loader import Loader, LoaderConfig
from ivid2vid_jax.data.triplet import Triplet
from ivid2vid_jax.errors import UserError

SMALL = LoaderConfig(batch=8, frames=2, size=8)


@dataclasses.dataclass(frozen=True)
class FakeSource:
    """Records whose red and green are their index, and whose blue is `mark` and the frame."""

    length: int
    frames: int = 4
    mark: int = 0
    side: int = 8
    damaged: tuple[int, ...] = ()
    one_frame: tuple[int, ...] = ()  # records with a single frame
    unequal: tuple[int, ...] = ()  # records whose two clips differ in shape
    faulty: tuple[int, ...] = ()  # records that raise an error of the program
    instruction: str = "make it snow"
    pause: float = 0.0  # seconds per record

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        time.sleep(self.pause)
        if not 0 <= index < self.length:
            raise IndexError(index)
        if index in self.faulty:
            raise ZeroDivisionError(f"record {index}")
        if index in self.damaged:
            raise UserError(f"record {index} is torn")
        length = 1 if index in self.one_frame else self.frames
        clip = np.zeros((length, self.side, self.side, 3), np.uint8)
        clip[..., 0], clip[..., 1] = index % 256, index // 256 % 256
        clip[..., 2] = (self.mark * 16 + np.arange(length))[:, None, None]
        return Triplet(
            id=str(index),
            source=clip,
            edited=clip[:, :, : -1 if index in self.unequal else None],
            instruction=self.instruction,
            source_caption="a source",
            edited_caption="an edited one",
            edit_type="style",
            fps=8.0,
            mask=None,
            licence="CC0-1.0",
            provenance="made up",
        )


def tokenize(text):
    """The first four bytes of a text."""
    return np.frombuffer(text.encode()[:4].ljust(4), np.uint8)


def open_loader(config, *data, view="pixels", seed=0, **options):
    """A loader with `tokenize`, if the view has texts."""
    return Loader(config, data, view, None if view == "pixels" else tokenize, seed, **options)


def take(loader, count):
    """The next (batch, state) pairs."""
    return list(itertools.islice(loader, count))


def read_batches(count, *arguments, **options):
    """The first batches of a new loader."""
    with open_loader(*arguments, **options) as loader:
        return [batch for batch, _ in take(loader, count)]


def record_indices(batch, part="clip"):
    """Indices of a batch's records in a FakeSource, from the pixels."""
    pixels = batch[part][:, 0, 0, 0]
    return (pixels[:, 0] + 256 * pixels[:, 1].astype(int)).tolist()


def assert_same(actual, expected):
    """Compares lists of (batch, state) pairs."""
    assert len(actual) == len(expected)
    pairs = zip(actual, expected, strict=True)
    for (batch, state), (expected_batch, expected_state) in pairs:
        assert state == expected_state
        assert batch.keys() == expected_batch.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], expected_batch[name])


def worker_processes(process):
    """A process's spawned children, without zombies."""
    return [
        child
        for child in process.children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(child.cmdline())
    ]
