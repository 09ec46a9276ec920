"""The plan of a step: memory, operations and bytes of one run of a program on one chip."""

import dataclasses
from typing import Any

from ivid2vid_jax.parallel.chips import Chip

# Field -> its key in JSON files, where they differ.
JSON_KEYS = {"memory_parts": "held", "hbm_bytes": "moved"}


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What one run of a program needs of one chip."""

    memory_parts: dict[str, int]  # what -> bytes
    flops: float  # operations
    hbm_bytes: float  # bytes read from and written to HBM
    sent: dict[str, int]  # kind of collective -> bytes sent
    whole: bool  # compiled as one program; memory is the compiler's figure
    seconds: float  # compile time

    @property
    def memory(self) -> int:
        """Bytes of all parts."""
        return sum(self.memory_parts.values())

    def times(self, chip: Chip) -> dict[str, float]:
        """Seconds of arithmetic, HBM traffic and communication at a chip's published peaks."""
        return {
            "arithmetic": self.flops / chip.flops,
            "HBM": self.hbm_bytes / chip.bandwidth,
            "interconnect": sum(self.sent.values()) / chip.interconnect,
        }

    def to_json(self) -> dict[str, Any]:
        """The plan as it is written to files."""
        return {JSON_KEYS.get(key, key): value for key, value in vars(self).items()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "StepPlan":
        """The inverse of `to_json`."""
        return cls(**{name: record[JSON_KEYS.get(name, name)] for name in cls.__annotations__})


def advice(edit: bool) -> list[str]:
    """What to change if a program does not fit into the memory of a chip."""
    if edit:
        return [
            "what helps: --frames (a shorter window), --size, more chips on the mesh axis frames"
        ]
    return [
        "what helps, cheapest first: --remat block; more chips on the mesh axis fsdp; "
        "--accumulation (smaller micro-batches); more chips on the mesh axis frames;",
        "--batch, --frames, --size; --loader.cached in the recipe; optim.optimizer adafactor; "
        "optim.trainable temporal with frozen_dtype bfloat16",
    ]
