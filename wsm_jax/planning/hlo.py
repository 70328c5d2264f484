"""What a compiled program sends between its devices, counted from its text.

``cost_analysis`` counts the body of a loop once; here an operation counts as often as the loops around it turn.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

_SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2}  # bytes; of the others the digits tell the bits
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?\s)([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"\b(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LISTED = re.compile(r"replica_groups=\{(\{.*?\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_PAIRS = re.compile(r"source_target_pairs=\{(\{.*?\})\}")
# Operation -> bytes that a device sends, of the bytes of the result and the devices of a group.
_SENT = {
    "all-gather": lambda size, count: size * (count - 1) / count,
    "all-reduce": lambda size, count: 2 * size * (count - 1) / count,
    "all-to-all": lambda size, count: size * (count - 1) / count,
    "ragged-all-to-all": lambda size, count: size * (count - 1) / count,
    "reduce-scatter": lambda size, count: size * (count - 1),
    "collective-permute": lambda size, count: size,
}


@dataclasses.dataclass(frozen=True)
class _Computation:
    """Bytes sent by its own operations, by axes; and what it calls, how often."""

    sent: dict[str, float]
    calls: list[tuple[str, int]]


def bytes_sent(text: str, axes: Mapping[str, int]) -> dict[str, float]:
    """Axes of the mesh, joined by ``+`` -> bytes that a device sends along them in one run of a program.

    Args:
      text: of the compiled program, ``compiled.as_text()``.
      axes: axis of its mesh -> devices along it, in the mesh's order.

    Raises:
      ValueError: a loop around such an operation whose turns the compiler does not know.
    """
    computations, entry = _parse(text, axes)
    found: dict[str, float] = {}

    def add(name: str, times: int) -> None:
        one = computations.get(name)
        for along, sent in (one.sent if one else {}).items():
            if times == 0:
                raise ValueError(f"the turns of the loop around {name}, which sends data, are not known")
            found[along] = found.get(along, 0) + times * sent
        for called, turns in one.calls if one else ():
            add(called, times * turns)

    add(entry, 1)
    return found


def _parse(text: str, axes: Mapping[str, int]) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    entry, current = "", _Computation({}, [])
    for line in text.splitlines():
        if (head := _HEAD.match(line)) and " = " not in line.split(" (")[0]:
            current = computations[head[2]] = _Computation({}, [])
            entry = head[2] if head[1] else entry
        elif operation := _OPERATION.match(line):
            kind = operation[2].removesuffix("-start")
            if kind in _SENT:
                along, sent = _sent(kind, operation[2] != kind, operation[1], line, axes)
                current.sent[along] = current.sent.get(along, 0) + sent
            turns = 1
            if kind == "while":
                known = _TURNS.search(line)
                turns = int(known[1]) if known else 0
            current.calls.extend((name, turns) for name in _called(line))
    return computations, entry


def _called(line: str) -> Iterator[str]:
    yield from _CALLED.findall(line)
    for names in _BRANCHES.findall(line):
        yield from (name.strip().lstrip("%") for name in names.split(","))


def _sent(kind: str, starts: bool, result: str, line: str, axes: Mapping[str, int]) -> tuple[str, float]:
    size = sum(_bytes(dtype, dims) for dtype, dims in _ARRAY.findall(result))
    along, count = _group(line, axes)
    if starts and kind == "all-gather":  # the result is preceded by the operand, its part
        size *= count / (count + 1)
    if starts and kind == "collective-permute":
        size /= 2
    return along, _SENT[kind](size, count)


def _bytes(dtype: str, dims: str) -> float:
    bits = re.search(r"\d+", dtype)
    each = _SIZES.get(dtype) or (int(bits[0]) / 8 if bits else 0)
    return each * math.prod(int(size) for size in dims.split(",") if size)


def _group(line: str, axes: Mapping[str, int]) -> tuple[str, int]:
    """The axes along which the devices of a group differ, and how many there are."""
    sizes = tuple(axes.values())
    if pairs := _PAIRS.search(line):
        members = [_numbers(part) for part in re.findall(r"\{([\d,]*)\}", pairs[1])]
        members = [pair for pair in members if pair[0] != pair[1]]
        places = np.array([np.unravel_index(pair, sizes) for pair in members]).reshape(-1, len(sizes), 2)
        differ = (places[:, :, 0] != places[:, :, 1]).any(axis=0)
        return "+".join(name for name, does in zip(axes, differ, strict=True) if does), 2
    if iota := _IOTA.search(line):
        ids = np.arange(math.prod(sizes)).reshape(_numbers(iota[2]))
        ids = ids.transpose(_numbers(iota[3])) if iota[3] else ids
        group = ids.reshape(_numbers(iota[1]))[0]
    elif listed := _LISTED.search(line):
        group = np.array(_numbers(re.findall(r"\{([\d,]*)\}", listed[1])[0]))
    else:  # all of them
        group = np.arange(math.prod(sizes))
    places = np.unravel_index(group, sizes)
    return "+".join(name for name, at in zip(axes, places, strict=True) if len(set(at.tolist())) > 1), len(group)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
