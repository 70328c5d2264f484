"""What a compiled program sends between its devices, counted from its text.

``cost_analysis`` counts the body of a loop once; here an operation counts as often as the loops around it turn.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from wsm_jax import errors

_SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2}  # bytes; of the others the digits tell the bits
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?\s)([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"\b(?:calls|body|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LISTED = re.compile(r"replica_groups=\{(\{.*?\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[(.*?)\](.*?)\{(.*?)\}")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?(?:=(\d+))?")
_CONSTANT = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
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
    """Of one computation: bytes sent by its own operations, by axes; what it calls, and how often, or up to which
    condition; and its whole constants, of which that of a loop's condition is where it ends."""

    sent: dict[str, float] = dataclasses.field(default_factory=dict)
    calls: list[tuple[str, int | str]] = dataclasses.field(default_factory=list)
    constants: list[int] = dataclasses.field(default_factory=list)


def bytes_sent(text: str, axes: Mapping[str, int]) -> dict[str, float]:
    """Axes of the mesh, joined by ``+`` -> bytes that a device sends along them in one run of a program.

    Args:
      text: of the compiled program, ``compiled.as_text()``.
      axes: axis of its mesh -> devices along it, in the mesh's order.

    Of a loop whose turns are not known one is counted, with a warning.
    """
    computations, entry = _parse(text, axes)
    found: dict[str, float] = {}

    def add(name: str, times: int) -> bool:
        one = computations.get(name, _Computation())
        for along, sent in one.sent.items():
            found[along] = found.get(along, 0) + times * sent
        sending = bool(one.sent)
        for called, turns in one.calls:
            if isinstance(turns, str):
                ends = computations.get(turns, _Computation()).constants
                turns = ends[0] if len(ends) == 1 else 0
            inside = add(called, times * (turns or 1))
            if inside and not turns:
                errors.warn(f"the compiled loop {called} sends data and does not say how often: one turn is counted")
            sending = sending or inside
        return sending

    add(entry, 1)
    return found


def _parse(text: str, axes: Mapping[str, int]) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    entry, current = "", _Computation()
    for line in text.splitlines():
        if (head := _HEAD.match(line)) and " = " not in line.split(" (")[0]:
            current = computations[head[2]] = _Computation()
            entry = head[2] if head[1] else entry
        elif constant := _CONSTANT.search(line):
            current.constants.append(int(constant[1]))
        elif operation := _OPERATION.match(line):
            kind = operation[2].removesuffix("-start")
            if kind in _SENT:
                along, sent = _sent(kind, operation[2] != kind, operation[1], line, axes)
                current.sent[along] = current.sent.get(along, 0) + sent
            turns: int | str = 1
            if kind == "while":
                known, condition = _TURNS.search(line), _CONDITION.search(line)
                turns = int(known[1]) if known else condition[1] if condition else ""
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
    if mesh := _MESH.search(line):
        group = _of_mesh(*mesh.groups())
    elif iota := _IOTA.search(line):
        ids = np.arange(math.prod(sizes)).reshape(_numbers(iota[2]))
        ids = ids.transpose(_numbers(iota[3])) if iota[3] else ids
        group = ids.reshape(_numbers(iota[1]))[0]
    elif listed := _LISTED.search(line):
        group = np.array(_numbers(re.findall(r"\{([\d,]*)\}", listed[1])[0]))
    else:  # all of them
        group = np.arange(math.prod(sizes))
    places = np.unravel_index(group, sizes)
    return "+".join(name for name, at in zip(axes, places, strict=True) if len(set(at.tolist())) > 1), len(group)


def _of_mesh(declared: str, order: str, used: str) -> np.ndarray:
    """The first group where a mesh of the compiler's is spread along some of its axes, or along parts of them."""
    sizes = {name: int(size) for name, _, _, size in _AXIS.findall(declared)}
    cuts = {name: (int(before or 1), int(size or sizes[name])) for name, before, size, _ in _AXIS.findall(used)}
    ids = np.arange(math.prod(sizes.values()))
    if arranged := re.search(r"\[([\d,]+)\]\)?(?:T\(([\d,]+)\))", order):
        ids = ids.reshape(_numbers(arranged[1])).transpose(_numbers(arranged[2]))
    dims: list[int] = []
    along: list[int] = []
    for name, size in sizes.items():
        before, part = cuts.get(name, (1, 1))
        dims += [before, part, size // (before * part)]
        along.append(len(dims) - 2)
    ids = ids.reshape(dims)
    return np.moveaxis(ids, along, range(-len(along), 0)).reshape(-1, math.prod(dims[i] for i in along))[0]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
