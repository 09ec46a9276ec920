"""Reads the compiler's text of a program: what it moves in a chip's main memory (HBM), and what the chips send each other.

Arrays that the TPU compiler keeps in on-chip memory are marked S(1) there and are not counted; its own count of bytes
(`cost_analysis`) has them in, and takes a slice's whole operand for the slice. An array counts with the padding of its tiles.
"""

import math
import re
from collections import Counter

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
SILENT = (
    "parameter",
    "bitcast",
    "get-tuple-element",
    "tuple",
    "constant",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
)  # move nothing
BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}

ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?(%[\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*?)\)(.*)$")
COMPUTATION = re.compile(r"^(?:ENTRY )?(%[\w.\-]+) .*\{$")
BODY = re.compile(r"body=(%[\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def instructions(text: str, calls: bool = False):
    """(name, result, operation, operands, rest, times) of everything that runs: the entry's instructions, and those of loops' bodies, as often as they
    run; calls: those inside fusions and other calls too. A loop counts once where its number of trips is not to be seen.
    """
    bodies, entry, current = {}, None, []
    for line in text.splitlines():
        if start := COMPUTATION.match(line):
            current = bodies[start[1]] = []
            entry = start[1] if line.startswith("ENTRY") else entry
        elif found := INSTRUCTION.match(line):
            current.append(found.groups())

    def walk(name: str, times: int):
        for instruction in bodies.get(name, ()):
            yield *instruction, times
            loop = instruction[2] == "while"
            if inner := re.search(
                BODY if loop else r"calls=(%[\w.\-]+)", instruction[4] if loop or calls else ""
            ):
                yield from walk(inner[1], times * (trips(instruction[4], bodies) if loop else 1))

    yield from walk(entry, 1)


def trips(loop: str, bodies: dict[str, list]) -> int:
    """How often a loop's body runs: as the compiler says, else by its condition, a counter from 0 below a constant, and what the body adds to it. The
    loops in which it gathers weights piece by piece while it multiplies are of the second kind.
    """
    if told := TRIPS.search(loop):
        return int(told[1])
    condition, body = (
        bodies.get(found[1], []) if (found := re.search(which, loop)) else []
        for which in (r"condition=(%[\w.\-]+)", BODY)
    )
    try:
        limit, counter = compared(condition)
        steps = {
            name: operands.split(", ")
            for name, _, operation, operands, _ in body
            if operation == "add"
        }
        return -(-limit // constant(body, steps[called(body[-1], counter)][1]))
    except (LookupError, ValueError):
        return 1


def compared(condition: list) -> tuple[int, int]:
    """(limit, number of the counter in the loop's tuple) of "counter < limit"."""
    names = {name: (operands, rest) for name, _, _, operands, rest in condition}
    operands, rest = names[condition[-1][0]]
    counter, limit = operands.split(", ")
    if condition[-1][2] != "compare" or "direction=LT" not in rest:
        raise ValueError("another condition")
    return constant(condition, limit), int(re.search(r"index=(\d+)", names[counter][1])[1])


def constant(instructions: list, wanted: str) -> int:
    return {
        name: int(operands)
        for name, _, operation, operands, _ in instructions
        if operation == "constant" and operands.isdigit()
    }[wanted]


def called(result: tuple, number: int) -> str:
    """The name of an operand."""
    return re.sub(r"/\*.*?\*/", "", result[3]).split(", ")[number]


def moved(text: str) -> int:
    """Bytes read from and written to HBM. A fusion that reads a part of an operand counts the whole of it."""
    total, sizes = 0, {}
    for name, result, operation, operands, rest, times in instructions(text):
        sizes[name] = in_hbm(result)
        if operation in SILENT or operation == "while" or operation.endswith("-done"):
            continue
        if operation.startswith("slice") or operation.startswith("dynamic-slice"):
            size = sliced(result, rest)
        elif operation.endswith("-start"):
            size = sizes[name]  # of an asynchronous operation: its operands are among its results
        else:
            size = sizes[name] + sum(
                sizes.get(operand.strip().split(" ")[-1], 0) for operand in operands.split(",")
            )
        total += times * size
    return total


def sliced(result: str, rest: str) -> int:
    """Of a slice: what it takes out, once where one of both sides is on the chip, else twice."""
    arrays = ARRAY.findall(result)
    out = (
        arrays[1] if len(arrays) > 2 else arrays[0]
    )  # started asynchronously: (operand, result, ...)
    whole = [padded(*array) for array in (out, arrays[0])]
    return min(whole) * sum("S(" not in array[3] for array in (out, arrays[0]))


def in_hbm(result: str) -> int:
    """Bytes of the arrays named in an instruction's result that lie in HBM."""
    return sum(padded(*array) for array in ARRAY.findall(result) if "S(" not in array[3])


def padded(dtype: str, sides: str, layout: str, tiles: str) -> int:
    """Bytes of an array with the padding of its first tile: the two innermost dimensions are filled up, as {1,0:T(8,128)} says."""
    dims = [int(side) for side in sides.split(",") if side]
    tile = re.match(r"T\((\d+),(\d+)\)", tiles or "")
    if tile and len(dims) > 1:
        inner, outer = (int(axis) for axis in layout.split(",")[:2])
        dims[inner], dims[outer] = (
            -(-dims[axis] // int(side)) * int(side)
            for axis, side in ((inner, tile[2]), (outer, tile[1]))
        )
    return math.prod(dims) * BYTES.get(dtype, 4)


def sent(text: str, chips: int) -> Counter:
    """Kind of collective -> bytes that each chip sends, as ring algorithms do it.

    The TPU compiler cuts a collective that runs beside other work into pieces, in computations of their own: all of one channel are one.
    """
    total, seen = Counter(), set()
    for name, result, operation, _, rest, times in instructions(text, calls=True):
        kind, started = operation.removesuffix("-start"), operation.endswith("-start")
        channel = re.search(r"channel_id=(\d+)", rest)
        if kind not in COLLECTIVES or (channel and channel[1] in seen):
            continue
        seen.add(channel and channel[1])
        arrays = [
            math.prod(int(side) for side in sides.split(",") if side) * BYTES.get(dtype, 4)
            for dtype, sides, _, _ in ARRAY.findall(result)
        ]
        if (
            started and kind != "all-reduce"
        ):  # (operands, results, ...): the gathered one is the largest, the scattered the smallest
            arrays = [min(arrays) if kind == "reduce-scatter" else max(arrays)]
        size = group_size(rest, chips)
        share = (size - 1) / size
        ring = {
            "all-gather": share,
            "all-reduce": 2 * share,
            "reduce-scatter": size - 1,
            "all-to-all": share,
            "collective-permute": 1,
        }[kind]
        total[kind] += int(times * sum(arrays) * ring)
    return total


def group_size(rest: str, chips: int) -> int:
    """Chips that take part in one collective, of replica_groups={{0,1},{2,3}}, [groups,size]<=[...] or mesh['a'=1,'b'=4] {'b'}; all of them where none
    are named.
    """
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"('[^']*')=(\d+)", named[1]))
        return math.prod(int(sizes[axis.strip()]) for axis in named[2].split(","))
    counted = re.search(r"replica_groups=\[(\d+),(\d+)\]", rest)
    return int(counted[2]) if counted else chips
