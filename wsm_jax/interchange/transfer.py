"""Tensors of a folder to leaves of ours and back, a part of one at a time: memory does not grow with the model.

The largest part is a block of BLOCK elements, or one fused projection of one layer.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes  # noqa: F401  # NumPy knows "bfloat16" by it
import numpy as np

from wsm_jax.checkpoints.storage import Source
from wsm_jax.core.leaves import Leaf
from wsm_jax.errors import UsageError
from wsm_jax.interchange.architecture import Entry, Layout
from wsm_jax.models.public import Shape

BLOCK = 1 << 24  # elements
FLOATS = ("float32", "bfloat16", "float16")

Write = Callable[[str, int, np.ndarray], None]  # leaf or tensor, first element, values 1-D


@dataclasses.dataclass(frozen=True)
class _Stored:
    """An array that lies on a disk from element ``offset`` of a leaf on."""

    source: Source
    path: str
    offset: int
    shape: Shape

    @property
    def leaf(self) -> Leaf:
        return self.source.leaves[self.path]

    def whole(self) -> np.ndarray:
        """All of it; where the leaf is stored in larger chunks, those that it lies in are read."""
        quantum, stop = self.leaf.quantum, self.offset + math.prod(self.shape)
        first = self.offset // quantum * quantum
        held = np.empty(min(-(-stop // quantum) * quantum, self.leaf.size) - first, self.leaf.dtype)
        self.source.read(self.path, first, held)
        return held[self.offset - first : stop - first].reshape(self.shape)

    def blocks(self, turned: bool) -> Iterator[tuple[int, np.ndarray]]:
        """(First element, elements) of the array in C order, or of its transpose, block by block."""
        size = math.prod(self.shape)
        if size <= BLOCK or self.leaf.quantum > 1:
            values = self.whole()
            yield 0, _flat(values.T if turned else values)
            return
        rows, across = self.shape[0], size // self.shape[0]
        if not turned:
            step = max(1, BLOCK // across)
            for row in range(0, rows, step):
                held = np.empty(min(step, rows - row) * across, self.leaf.dtype)
                self.source.read(self.path, self.offset + row * across, held)
                yield row * across, held
            return
        step = max(1, BLOCK // rows)
        for column in range(0, across, step):
            held = np.empty((rows, min(step, across - column)), self.leaf.dtype)
            for row in range(rows):
                self.source.read(self.path, self.offset + row * across + column, held[row])
            yield column * rows, _flat(held.T)


def _flat(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).reshape(-1)


def cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """``values`` in another dtype.

    Raises:
      UsageError: a finite one becomes infinite.
    """
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(dtype)
    before, after = (np.isfinite(one.astype(np.float32, copy=False)) for one in (values, cast))
    if not np.array_equal(before, after):
        raise UsageError(f"{name} overflows {dtype.name}; export it with --dtype=bfloat16 or float32")
    return cast


def check_floats(source: Source, named: Mapping[str, str]) -> None:
    """Raises UsageError for a tensor that float32 does not hold; ``named``: name in the table -> in the folder."""
    for stored in named.values():
        if (dtype := source.leaves[stored].dtype.name) not in FLOATS:
            raise UsageError(f"{source.path}: tensor {stored} is {dtype}; known: {', '.join(FLOATS)}")


def bring_in(layout: Layout, source: Source, named: Mapping[str, str], write: Write) -> None:
    """Writes every leaf of ours, float32, from the tensors of a folder.

    Args:
      layout: of the model.
      source: of the tensors.
      named: name in the table -> in the folder.
      write: takes (leaf, first element, values).
    """
    for name, entry in layout.entries.items():
        tensor = entry.tensor
        stored = _Stored(source, named[name], 0, tensor.shape(layout.ours))
        if len(tensor.leaves) == 1:
            offset = _begin(layout, entry, tensor.leaves[0])
            for start, values in stored.blocks(tensor.turned):
                write(tensor.leaves[0], offset + start, values.astype(np.float32))
            continue
        for path, part in zip(tensor.leaves, tensor.here(stored.whole()), strict=True):
            write(path, _begin(layout, entry, path), _flat(part.astype(np.float32)))


def take_out(layout: Layout, source: Source, dtypes: Mapping[str, np.dtype], write: Write) -> None:
    """Writes every tensor of a public model from leaves of ours.

    Args:
      layout: of the model.
      source: of our leaves.
      dtypes: name there -> dtype.
      write: takes (name there, first element, values).

    Raises:
      UsageError: a value that its dtype cannot hold.
    """
    for name, entry in layout.entries.items():
        tensor = entry.tensor
        stored = [
            _Stored(source, path, _begin(layout, entry, path), _rest(layout, entry, path)) for path in tensor.leaves
        ]
        if len(stored) == 1:
            for start, values in stored[0].blocks(tensor.turned):
                write(name, start, cast(values, dtypes[name], f"leaf {tensor.leaves[0]}"))
            continue
        values = _flat(tensor.there([one.whole() for one in stored]))
        write(name, 0, cast(values, dtypes[name], f"leaf {tensor.leaves[0]}"))
    for name, shape in layout.zeros.items():
        write(name, 0, np.zeros(math.prod(shape), dtypes[name]))


def _rest(layout: Layout, entry: Entry, path: str) -> Shape:
    """The shape of a leaf of ours, or of one row of it."""
    return layout.ours[path][len(entry.row) :]


def _begin(layout: Layout, entry: Entry, path: str) -> int:
    """The first element, in a leaf of ours, of the row that the tensor is."""
    shape, row = layout.ours[path], entry.row
    return sum(number * math.prod(shape[axis + 1 :]) for axis, number in enumerate(row))
