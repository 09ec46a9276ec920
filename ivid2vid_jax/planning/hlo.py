"""Reads a compiled program's HLO text: bytes moved in a chip's HBM, and bytes sent between chips.

The TPU compiler marks arrays in on-chip memory with S(1); they are not counted. Its own byte count
(`cost_analysis`) includes them, and counts the whole operand of a slice. The size of an array
includes the padding of its tiles.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FREE_OPERATION = re.compile(  # moves no data by itself
    "parameter|bitcast|get-tuple-element|tuple|constant|after-all|partition-id|replica-id|iota"
    "|while|.*-done"
)
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8} | {
    f"{sign}{bits}": bits // 8 for sign in "su" for bits in (8, 16, 32, 64)
}

ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?(%[\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*?)\)(.*)$")
COMPUTATION = re.compile(r"^(?:ENTRY )?(%[\w.\-]+) .*\{$")
CALLED = re.compile(r"calls=(%[\w.\-]+)")
BODY = re.compile(r"body=(%[\w.\-]+)")
CONDITION = re.compile(r"condition=(%[\w.\-]+)")
LISTED_GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,{}]+)\}\}")
COUNTED_GROUPS = re.compile(r"replica_groups=(\[[\d,]+\])<=(\[[\d,]+\](?:T\([\d,]+\))?)")
NAMED_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? *\{([^}]*)\}"
)
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Instruction(NamedTuple):
    """One line of HLO: `name = result operation(operands)attributes`."""

    name: str
    result: str
    operation: str
    operands: str
    attributes: str

    def operand_name(self, number: int) -> str:
        """The name of an operand, given as a bare name."""
        return re.sub(r"/\*.*?\*/", "", self.operands).split(", ")[number]


Computation = list[Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the computations of a program by name, and the name of the entry computation."""
    computations: dict[str, Computation] = {}
    entry, current = "", []
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            current = computations[match[1]] = []
            entry = match[1] if line.startswith("ENTRY") else entry
        elif match := INSTRUCTION.match(line):
            current.append(Instruction(*match.groups()))
    return computations, entry


def instructions(text: str, calls: bool = False) -> Iterator[tuple[Instruction, int]]:
    """Yields the instructions that run, with how often: those of the entry and of loop bodies.

    With `calls`, also those inside fusions and other calls. A loop whose number of trips is
    unknown counts once.
    """
    computations, entry = parse(text)

    def walk(name: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for instruction in computations.get(name, ()):
            yield instruction, times
            if instruction.operation == "while":
                if body := BODY.search(instruction.attributes):
                    yield from walk(body[1], times * trip_count(instruction, computations))
            elif calls and (called := CALLED.search(instruction.attributes)):
                yield from walk(called[1], times)

    yield from walk(entry, 1)


def trip_count(loop: Instruction, computations: dict[str, Computation]) -> int:
    """How often the body of a loop runs; 1 if it cannot be read.

    The compiler states it for most loops. Of the loops in which it gathers weights piece by piece
    while it multiplies, it is computed from the condition "counter < limit", a counter that
    starts at 0, and the constant that the body adds to it.
    """
    if stated := TRIP_COUNT.search(loop.attributes):
        return int(stated[1])
    condition, body = (
        computations.get(match[1], []) if (match := pattern.search(loop.attributes)) else []
        for pattern in (CONDITION, BODY)
    )
    try:
        limit, counter = limit_and_counter(condition)
        additions = {
            instruction.name: instruction.operands.split(", ")
            for instruction in body
            if instruction.operation == "add"
        }
        increment = additions[body[-1].operand_name(counter)][1]
        return -(-limit // constant(body, increment))
    except (LookupError, ValueError):
        return 1


def limit_and_counter(condition: Computation) -> tuple[int, int]:
    """Of a condition "counter < limit": the limit, and the counter's index in the loop's tuple."""
    by_name = {instruction.name: instruction for instruction in condition}
    comparison = condition[-1]
    if comparison.operation != "compare" or "direction=LT" not in comparison.attributes:
        raise ValueError("the condition is not counter < limit")
    counter, limit = comparison.operands.split(", ")
    index = re.search(r"index=(\d+)", by_name[counter].attributes)
    if index is None:
        raise ValueError("the counter is not an element of the loop's tuple")
    return constant(condition, limit), int(index[1])


def constant(computation: Computation, name: str) -> int:
    """The value of an integer constant; LookupError if it is none."""
    constants = {
        instruction.name: int(instruction.operands)
        for instruction in computation
        if instruction.operation == "constant" and instruction.operands.isdigit()
    }
    return constants[name]


def hbm_bytes(text: str) -> int:
    """Bytes read from and written to HBM.

    A fusion that reads part of an operand counts the whole of it.
    """
    total, sizes = 0, {}
    for instruction, times in instructions(text):
        name, result, operation, operands, _ = instruction
        sizes[name] = result_bytes(result)
        if FREE_OPERATION.fullmatch(operation):
            continue
        if operation.startswith(("slice", "dynamic-slice")):
            size = slice_bytes(result)
        elif operation.endswith("-start"):
            size = sizes[name]  # the result of an asynchronous operation includes its operands
        else:
            operand_names = [operand.strip().split(" ")[-1] for operand in operands.split(",")]
            size = sizes[name] + sum(sizes.get(operand, 0) for operand in operand_names)
        total += times * size
    return total


def slice_bytes(result: str) -> int:
    """HBM bytes of a slice: its size, twice if both the operand and the result are in HBM."""
    arrays = ARRAY.findall(result)
    # an asynchronous slice has the result (operand, slice, ...)
    piece, first = arrays[1] if len(arrays) > 2 else arrays[0], arrays[0]
    size = min(padded_bytes(*piece), padded_bytes(*first))
    return size * sum("S(" not in array[3] for array in (piece, first))


def result_bytes(result: str) -> int:
    """Bytes of the arrays of an instruction's result that are in HBM."""
    return sum(padded_bytes(*array) for array in ARRAY.findall(result) if "S(" not in array[3])


def padded_bytes(dtype: str, shape: str, layout: str, tiles: str) -> int:
    """Bytes of an array, its two innermost dimensions padded to the first tile.

    The layout {1,0:T(8,128)} means: dimension 1 is innermost and is padded to a multiple of 128.
    """
    dims = [int(size) for size in shape.split(",") if size]
    tile = re.match(r"T\((\d+),(\d+)\)", tiles or "")
    if tile and len(dims) > 1:
        inner, outer = (int(axis) for axis in layout.split(",")[:2])
        dims[inner], dims[outer] = (
            -(-dims[axis] // int(size)) * int(size)
            for axis, size in ((inner, tile[2]), (outer, tile[1]))
        )
    return math.prod(dims) * BYTES.get(dtype, 4)


def sent_bytes(text: str, chips: int) -> Counter[str]:
    """Kind of collective -> bytes that each chip sends, with ring algorithms.

    The TPU compiler cuts a collective that runs beside other work into pieces, in computations of
    their own. Pieces with the same channel are counted once.
    """
    total: Counter[str] = Counter()
    seen_channels = set()
    for instruction, times in instructions(text, calls=True):
        kind = instruction.operation.removesuffix("-start")
        match = re.search(r"channel_id=(\d+)", instruction.attributes)
        if kind not in COLLECTIVES or (match and match[1] in seen_channels):
            continue
        if match:
            seen_channels.add(match[1])
        group = group_size(instruction.attributes, chips)
        total[kind] += int(times * collective_bytes(instruction, kind) * ring_factor(kind, group))
    return total


def collective_bytes(instruction: Instruction, kind: str) -> int:
    """Bytes of the result of a collective, without padding."""
    sizes = [
        math.prod(int(size) for size in shape.split(",") if size) * BYTES.get(dtype, 4)
        for dtype, shape, _, _ in ARRAY.findall(instruction.result)
    ]
    if instruction.operation.endswith("-start") and kind != "all-reduce":
        # The result holds operands and results: a gathered array is the largest of them, a
        # scattered one the smallest.
        return min(sizes) if kind == "reduce-scatter" else max(sizes)
    return sum(sizes)


def ring_factor(kind: str, group: int) -> float:
    """Bytes that each chip of a group sends, per byte of the result."""
    share = (group - 1) / group
    return {
        "all-gather": share,
        "all-reduce": 2 * share,
        "reduce-scatter": group - 1,
        "all-to-all": share,
        "collective-permute": 1,
    }[kind]


def group_size(attributes: str, chips: int) -> int:
    """Chips that take part in one collective."""
    return len(collective_groups(attributes, chips)[0])


def collective_groups(attributes: str, chips: int) -> list[list[int]]:
    """The groups of chips of a collective; one group of all chips if none is named.

    Of a permutation, the pairs of sender and receiver. Groups are written as {{0,1},{2,3}}, as
    [groups,size]<=[sizes]T(order), or as mesh['a'=2,'b'=4], device_ids=([sizes]T(order)) {'b'}.
    """
    if listed := LISTED_GROUPS.search(attributes):
        return [[int(chip) for chip in group.split(",")] for group in listed[1].split("},{")]
    if counted := COUNTED_GROUPS.search(attributes):
        return ordered_chips(counted[2]).reshape(integers(counted[1])).tolist()
    if named := NAMED_GROUPS.search(attributes):
        axes = dict(re.findall(r"('[^']*')=(\d+)", named[1]))
        names = [name.strip() for name in named[3].split(",")]
        sizes = [int(size) for size in axes.values()]
        chip_ids = (ordered_chips(named[2]) if named[2] else np.arange(chips)).reshape(sizes)
        inner = [list(axes).index(name) for name in names]
        outer = [axis for axis in range(len(sizes)) if axis not in inner]
        size = math.prod(sizes[axis] for axis in inner)
        return chip_ids.transpose(*outer, *inner).reshape(-1, size).tolist()
    return [list(range(chips))]


def ordered_chips(text: str) -> np.ndarray:
    """The numbers of the chips in the order that [sizes]T(order) means."""
    shape, _, order = text.partition("T")
    sizes = integers(shape)
    axes = integers(order) if order else None
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(axes).ravel()


def integers(text: str) -> list[int]:
    """The whole numbers in a text."""
    return [int(number) for number in re.findall(r"\d+", text)]
