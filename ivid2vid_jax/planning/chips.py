"""TPU chips: what their maker publishes, and the compiler's view of a slice of them, which needs no TPU.

Peaks: https://cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e, tables "key chip specifications". Interconnect: the published bandwidth per chip is
of both directions together, so half of it leaves the chip.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import sys
import tempfile
from pathlib import Path

from ivid2vid_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """flops: bfloat16, a second. hbm: bytes. bandwidth: HBM bytes a second. interconnect: bytes a second that leave the chip over all its links
    together. sides: dimensions of its torus.
    """

    flops: float
    hbm: int
    bandwidth: float
    interconnect: float
    sides: int


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 150e9, 3),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 2),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 3),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 400e9, 2),
}
HOST = (2, 2, 1)  # chips of the smallest host of several


@dataclasses.dataclass(frozen=True)
class TPUSlice:
    """A named slice such as "v5e:4x4"."""

    name: str

    def __post_init__(self):
        kind, _, shape = self.name.partition(":")
        if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
            raise UserError(
                f"--topology {self.name}: give a chip ({', '.join(CHIPS)}) and the slice's sides, such as v5e:4x4 or v5p:2x2x1"
            )
        sides = CHIPS[kind].sides
        if len(self.shape) != sides:
            raise UserError(
                f"--topology {self.name}: a slice of {kind} has {sides} sides, such as {kind}:{'x'.join(['2'] * sides)}"
            )

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name.partition(":")[0]]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(int, self.name.partition(":")[2].split("x")))

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def devices(self) -> list:
        """The compiler's devices of the slice. Raises UserError without libtpu, or for a slice that does not exist."""
        find_libtpu()
        from jax.experimental import topologies

        bounds = (1, 1, 1) if self.count == 1 else HOST
        try:
            with quiet():
                found = topologies.get_topology_desc(
                    platform="tpu", topology_name=self.name, chips_per_host_bounds=bounds
                )
        except Exception as error:
            raise UserError(
                f"--topology {self.name}: the TPU compiler knows no such slice ({str(error).splitlines()[0]})"
            ) from error
        return list(found.devices)


def find_libtpu() -> None:
    """Makes the TPU compiler ready; UserError with the way out where it is not installed."""
    if "TPU_LIBRARY_PATH" not in os.environ and importlib.util.find_spec("libtpu") is None:
        raise UserError(
            'the TPU compiler is not installed here (it runs without a TPU): pip install "jax[tpu]"'
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # ask no metadata server for a TPU
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


@contextlib.contextmanager
def quiet():
    """Libtpu writes screens of warnings about the TPU that is not there straight to the process's stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def hide_accelerators() -> None:
    """This process computes on the CPU: an installed libtpu must not look for a TPU. Before JAX's first device."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def cache_folder() -> Path:
    """Where plans that took minutes are kept."""
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ivid2vid_jax" / "plans"
    )
