"""The TPU compiler's devices of a slice, which need no TPU. Figures: `parallel/chips.py`."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.parallel.chips import CHIPS, Chip
from ivid2vid_jax.utils.versions import install_command

CHIPS_PER_HOST = (2, 2, 1)  # of a slice with more than one chip


@dataclasses.dataclass(frozen=True)
class TPUSlice:
    """A slice by name, such as "v5e:4x4". Raises UserError for a name of another form."""

    name: str

    def __post_init__(self) -> None:
        kind, _, shape = self.name.partition(":")
        if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
            raise UserError(
                f"--topology {self.name}: give a chip ({', '.join(CHIPS)}) and the sides of the "
                "slice, such as v5e:4x4 or v5p:2x2x1"
            )
        dimensions = CHIPS[kind].dimensions
        if len(self.shape) != dimensions:
            example = f"{kind}:{'x'.join(['2'] * dimensions)}"
            raise UserError(
                f"--topology {self.name}: a slice of {kind} has {dimensions} sides, "
                f"such as {example}"
            )

    @property
    def kind(self) -> str:
        """The chip's name, such as "v5e"."""
        return self.name.partition(":")[0]

    @property
    def chip(self) -> Chip:
        """The figures of one chip."""
        return CHIPS[self.kind]

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips along each side."""
        return tuple(map(int, self.name.partition(":")[2].split("x")))

    @property
    def count(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    def devices(self) -> list:
        """The compiler's devices; UserError without libtpu, or if no such slice exists."""
        find_libtpu()
        from jax.experimental import topologies

        options: dict[str, Any] = {
            "chips_per_host_bounds": (1, 1, 1) if self.count == 1 else CHIPS_PER_HOST
        }
        if self.kind == "v4":
            options["chip_config_name"] = "megacore"  # one device per chip, as JAX runs it
        try:
            with silence_stderr():
                topology = topologies.get_topology_desc(
                    platform="tpu", topology_name=self.name, **options
                )
        except Exception as error:
            raise UserError(
                f"--topology {self.name}: the TPU compiler knows no such slice "
                f"({str(error).splitlines()[0]})"
            ) from error
        return list(topology.devices)


def find_libtpu() -> None:
    """Checks that the TPU compiler (libtpu) is installed and configures it; else UserError."""
    if "TPU_LIBRARY_PATH" not in os.environ and importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the TPU compiler (libtpu) is not installed; it needs no TPU: " + install_command("tpu")
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not query the cloud's metadata server
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


@contextlib.contextmanager
def silence_stderr() -> Iterator[None]:
    """Discards what the process writes to stderr: libtpu warns at length that there is no TPU."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as discarded:
        os.dup2(discarded.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)


def hide_accelerators() -> None:
    """Makes JAX use the CPU, so that libtpu looks for no TPU. Call it before JAX is used."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def cache_folder() -> Path:
    """The folder of cached plans: compiling takes minutes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "ivid2vid_jax" / "plans"
