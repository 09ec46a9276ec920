"""What the chips send each other, read from the compiler's text of a program."""

import re
from collections import Counter

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
OPERATION = re.compile(rf"= (?P<result>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\((?P<rest>.*)$", re.MULTILINE)
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


def sent(text: str, chips: int) -> Counter:
    """Kind -> bytes that each chip sends in one run of a compiled program, as ring algorithms do it. text: `compiled.as_text()`.

    A collective inside a loop counts once.
    """
    total = Counter()
    for match in OPERATION.finditer(text):
        kind, size = match["kind"], group_size(match["rest"], chips)
        arrays = [elements(dims) * BYTES.get(dtype, 4) for dtype, dims in ARRAY.findall(match["result"])]
        # the result of an asynchronous start is (operands, results, ...): of what it names the largest is the gathered one, the smallest the scattered one
        data = (max(arrays) if kind == "all-gather" else min(arrays)) if match["start"] else sum(arrays)
        share = (size - 1) / size
        times = {"all-gather": share, "all-reduce": 2 * share, "reduce-scatter": size - 1, "all-to-all": share, "collective-permute": 1}[kind]
        total[kind] += int(data * times)
    return total


def elements(dims: str) -> int:
    count = 1
    for side in dims.split(","):
        count *= int(side) if side else 1
    return count


def group_size(rest: str, chips: int) -> int:
    """Chips that take part in one collective: replica_groups={{0,1},{2,3}} or [groups,size]<=[...]; all of them where none are named."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    if listed:
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[(\d+),(\d+)\]", rest)
    return int(counted[2]) if counted else chips
