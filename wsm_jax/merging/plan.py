"""The byte plan of a merge: every leaf cut into pieces, the pieces packed into groups that are merged at once.

A group is what one worker holds: a stack [inputs, elements] and the totals [merges, elements]. All groups of a dtype
have the same number of elements whatever the leaves are, so the sum is compiled once, and memory depends on neither the
number of inputs nor the size of a leaf – unless an input can only be read in larger chunks.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from wsm_jax.core import leaves as leaves_lib
from wsm_jax.core.leaves import Leaf

PIECE = 1 << 16  # elements; what is fingerprinted at once
GROUP = 1 << 19  # elements of a group, at most, where nothing forces more
STACK = 1 << 23  # bytes of a stack, where one row of it takes no more: memory does not grow with the number of inputs
TOTALS = (
    1 << 23
)  # bytes of the totals of a group, where a piece of each fits: above, malloc gives pages back every time


@dataclasses.dataclass(frozen=True)
class Segment:
    """Elements ``start`` to ``stop`` of a leaf in C order, which lie from ``offset`` on in the group."""

    path: str
    start: int
    stop: int
    offset: int

    @property
    def place(self) -> slice:
        """Where it lies in the group."""
        return slice(self.offset, self.offset + self.stop - self.start)


@dataclasses.dataclass(frozen=True)
class Group:
    """What is merged at once.

    Attributes:
      segments: what is in it, in order of offset.
      elements: length of the buffers, at least what the segments fill.
      dtype: of the inputs.
      inputs: indices of the inputs that count, ascending; for a copy just the one.
      merges: numbers of the merges it is for.
      weights: float32 [len(merges), len(inputs)]; None for a copy.
      batch: inputs that are in memory at the same time.
    """

    segments: tuple[Segment, ...]
    elements: int
    dtype: np.dtype
    inputs: tuple[int, ...]
    merges: tuple[int, ...]
    weights: np.ndarray | None
    batch: int

    @property
    def used(self) -> int:
        """Elements that the segments fill."""
        return self.segments[-1].place.stop

    @property
    def bytes_read(self) -> int:
        """Bytes that all its inputs are read for."""
        return self.used * len(self.inputs) * self.dtype.itemsize

    @property
    def bytes_held(self) -> int:
        """Bytes of its stack and of its totals before and after a step."""
        totals = 0 if self.weights is None else len(self.weights)
        return self.elements * (self.batch * self.dtype.itemsize + 2 * 4 * totals)


def piece_elements(quantum: int) -> int:
    """Elements of a piece of a leaf with this quantum: the smallest multiple of it from PIECE on."""
    return -(-PIECE // quantum) * quantum


def make_plan(
    leaves: Mapping[str, Leaf],
    policies: Mapping[str, str],
    weights: Sequence[Mapping[str, np.ndarray]],
    count: int,
    *,
    memory: int,
    ranges: Mapping[str, tuple[int, int]] | None = None,
) -> list[Group]:
    """Groups that together hold every leaf that is not skipped, once.

    Args:
      leaves: path -> leaf; the quantum is that of the coarsest input.
      policies: path -> policy.
      weights: for each merge path -> float64 [count].
      count: number of inputs.
      memory: bytes that one worker may hold, where the quanta allow it.
      ranges: path -> first and last element that are wanted; default: all. Whole pieces are planned.
    """
    classes: dict[tuple, list[str]] = {}
    tables: dict[tuple, np.ndarray] = {}
    every = tuple(range(len(weights)))
    ends = [leaves_lib.window_ends(vectors, count) for vectors in weights]
    for path, policy in policies.items():
        if policy == leaves_lib.SKIP or not leaves[path].size:
            continue
        dtype = leaves[path].dtype.name
        if policy == leaves_lib.AVERAGE:
            table = np.stack([vectors[path] for vectors in weights])
            # An input that no merge wants is not read. Not even all-zero weights leave the sum without a term.
            used = tuple(np.flatnonzero((table != 0).any(axis=0)).tolist()) or (count - 1,)
            rows = np.ascontiguousarray(table[:, used], np.float32)
            key = (dtype, used, every, rows.tobytes())
            tables[key] = rows
            classes.setdefault(key, []).append(path)
            continue
        wanted = [first if policy == leaves_lib.FIRST else last for first, last in ends]
        for source in sorted(set(wanted)):
            merges = tuple(number for number in every if wanted[number] == source)
            classes.setdefault((dtype, (source,), merges, None), []).append(path)
    groups = []
    for key, paths in classes.items():
        (_, used, merges, _), rows = key, tables.get(key)
        totals = 0 if rows is None else len(rows)
        dtype = leaves[paths[0]].dtype
        room = min(TOTALS, memory // 4) // (4 * max(totals, 1)) // PIECE * PIECE
        elements = min(max(PIECE, min(GROUP, room)), _padded(sum(leaves[path].size for path in paths)))
        for segments in _pack(paths, leaves, ranges or {}, elements):
            length = max(elements, _padded(segments[-1].place.stop))  # one stored chunk may exceed the group
            stack = min(STACK, memory - 8 * totals * length)
            batch = max(1, min(len(used), stack // (length * dtype.itemsize)))
            groups.append(Group(tuple(segments), length, dtype, used, merges, rows, batch))
    return groups


def _padded(elements: int) -> int:
    """Up to a multiple of 64, which keeps every row of a stack aligned."""
    return -(-elements // 64) * 64


def _pack(
    paths: Sequence[str], leaves: Mapping[str, Leaf], ranges: Mapping[str, tuple[int, int]], elements: int
) -> Iterator[list[Segment]]:
    """Pieces in order of the leaves, as many in a group as fit; neighbours of one leaf become one segment."""
    group: list[Segment] = []
    offset = 0
    for path in paths:
        leaf, piece = leaves[path], piece_elements(leaves[path].quantum)
        first, last = ranges.get(path, (0, leaf.size))
        for start in range(first // piece * piece, last, piece):
            stop = min(start + piece, leaf.size)
            if group and offset + stop - start > elements:
                yield group
                group, offset = [], 0
            if group and group[-1].path == path:
                group[-1] = dataclasses.replace(group[-1], stop=stop)
            else:
                group.append(Segment(path, start, stop, offset))
            offset += stop - start
    if group:
        yield group


def common_leaves(inputs: Sequence[Mapping[str, Leaf]]) -> dict[str, Leaf]:
    """The leaves of the first input, each with a quantum (the least common multiple) and a dtype that suit all."""
    found = {}
    for path, leaf in inputs[0].items():
        there = [other[path] for other in inputs if path in other]
        quantum = min(math.lcm(*(one.quantum for one in there)), max(leaf.size, 1))
        dtype = leaves_lib.common_dtype(there)
        found[path] = dataclasses.replace(leaf, quantum=quantum, dtype=dtype)
    return found
