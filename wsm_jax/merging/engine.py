"""The sum itself, one loop over blocks of rows: read a block of every input, add, hand the result on.

A few workers do that at once, each with buffers of a fixed size, so memory depends on neither the number of inputs nor
the size of the model – unless an input can only be read in larger chunks.

One merge is the ordered sum total + c_j x_j in float32, whose bits do not depend on how the leaves are cut. Several
merges are the matrix product (merges x inputs) . (inputs x elements), which reads every input once for all of them and
differs from the ordered sum by rounding.

XLA does the sum, although importing JAX takes most of the start of a small merge: it fuses each multiply and add, with
one rounding, and takes numbers below the normal ones for zero. NumPy rounds twice. Multiply-adds by way of float64
would have the same bits but for one in 2^29 that is rounded twice and for the small numbers, and cost 3 ns an
element and input, more than the import already for 125M parameters; BLAS has them fused or not, as the processor goes.
"""

import contextlib
import dataclasses
import math
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsm_jax.checkpoints import integrity
from wsm_jax.core.leaves import AVERAGE, FIRST, Leaf, infinite_hint
from wsm_jax.errors import UsageError
from wsm_jax.io import hashes
from wsm_jax.merging.spec import Merges

WORKERS = min(3, (os.cpu_count() or 1) + 1)  # one reads while others add and write
BLOCK = 1 << 19  # elements of a block, at most, where nothing forces more
STACK = 1 << 23  # bytes of the inputs of a block that are in memory at once, where one of them takes no more
PARTS = 16  # of a unit, at most, that many merges cut it into
TOTALS = 1 << 23  # bytes of the totals of a block, where a part of a unit of each fits: they stay in the caches

Write = Callable[[int, str, int, np.ndarray], None]  # number of the merge, leaf, first element, values


# --- the sum ---------------------------------------------------------------------------------------------------------


def _sum(total: Any, weights: jax.Array, stack: jax.Array) -> jax.Array:
    if len(weights) > 1:
        added = jnp.matmul(weights, stack.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
        return added if total is None else total + added
    total = jnp.broadcast_to(total, (1, stack.shape[1]))
    for j in range(len(stack)):
        total = total + weights[0, j] * stack[j : j + 1].astype(jnp.float32)
    return total


_first, _next = jax.jit(_sum), jax.jit(_sum, donate_argnums=0)
# Adding to 0.0 would turn a sum of -0.0 into 0.0. It is an argument and no constant, so that all batches are compiled
# to the same chain of multiply-adds.
_NOTHING = np.full((1, 1), -0.0, np.float32)


def add(total: jax.Array | None, weights: np.ndarray, stack: np.ndarray) -> jax.Array:
    """total + weights . stack in float32: the ordered sum for one merge, the matrix product for several.

    Args:
      total: float32 [merges, n], which is donated; None: nothing yet.
      weights: float32 [merges, inputs].
      stack: [inputs, n] of any floating dtype.
    """
    if total is None:
        return _first(None if len(weights) > 1 else _NOTHING, weights, stack)
    return _next(total, weights, stack)


# --- what is to be done ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Task:
    """What is done with every block of a leaf.

    Attributes:
      path: the leaf.
      leaf: as it is read.
      inputs: indices of the inputs that count, ascending; for a copy just the one.
      merges: numbers of the merges it is for.
      weights: float32 [merges, inputs]; for a copy [0, 1].
      elements: of its buffers. Leaves of a dtype have the same number, so that the sum is compiled once.
      grain: elements; blocks begin at multiples of it.
      batch: inputs that are in memory at the same time.
    """

    path: str
    leaf: Leaf
    inputs: tuple[int, ...]
    merges: tuple[int, ...]
    weights: np.ndarray
    elements: int
    grain: int
    batch: int

    @property
    def bytes_held(self) -> int:
        """Bytes of the inputs and of the totals before and after a step."""
        return self.elements * (self.batch * self.leaf.dtype.itemsize + 2 * 4 * len(self.weights))

    def nbytes(self, start: int, stop: int) -> int:
        """Bytes that are read for a block."""
        return (stop - start) * len(self.inputs) * self.leaf.dtype.itemsize

    def owner(self, start: int) -> int:
        """A number that decides which process does the block: one for all blocks that a unit lies in, to be hashed."""
        apart = self.grain % hashes.UNIT == 0 or hashes.UNIT % self.grain == 0
        return zlib.crc32(self.path.encode()) + (start // max(self.elements, hashes.UNIT) if apart else 0)

    def blocks(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """(start, stop) of the blocks that hold the elements of ascending ``ranges``, in whole grains, none twice."""
        step, end = max(1, self.elements // self.grain) * self.grain, 0
        for first, last in ranges:
            begin = max(first // self.grain * self.grain, end)
            end = max(min(-(-last // self.grain) * self.grain, self.leaf.size), end)
            for start in range(begin, end, step):
                yield start, min(start + step, end)


def make_task(
    path: str, leaf: Leaf, inputs: Sequence[int], merges: Sequence[int], weights: np.ndarray, memory: int, largest: int
) -> Task:
    """That of a leaf whose worker may hold ``memory`` bytes; ``largest``: elements of the largest leaf."""
    width, totals = leaf.dtype.itemsize, len(weights)
    fit = min(BLOCK, max(STACK // (len(inputs) * width), hashes.UNIT))  # all inputs at once, or batches of them
    fit = min(fit, min(TOTALS, memory // 4) // (4 * max(totals, 1)))
    grain = hashes.UNIT
    while grain > max(fit, hashes.UNIT // PARTS):
        grain //= 2
    elements = min(max(grain, fit // grain * grain), _padded(largest))
    grain = math.lcm(grain, leaf.quantum)  # whole units are hashed at once, chunks can only be read whole
    grain = grain if grain <= elements else leaf.quantum if leaf.quantum > 1 else leaf.size
    elements = max(elements, _padded(min(grain, leaf.size)))  # one stored chunk may exceed the block
    stack = min(STACK, memory - 8 * totals * elements)
    batch = max(1, min(len(inputs), stack // (elements * width)))
    return Task(path, leaf, tuple(inputs), tuple(merges), weights, elements, grain, batch)


def tasks(merges: Merges, numbers: Sequence[int]) -> Iterator[Task]:
    """Those of the merges ``numbers``: one for an averaged leaf, one for each input that a leaf is copied from."""
    held = merges.memory // WORKERS, max(leaf.size for leaf in merges.results.values())
    every = range(len(numbers))
    for path in merges.results:
        leaf, policy = merges.leaves[path], merges.policies[path]
        if not leaf.size:
            continue
        if policy == AVERAGE:
            table = np.stack([merges.vectors[number][path] for number in numbers])
            used = np.flatnonzero((table != 0).any(axis=0)).tolist()  # an input that no merge wants is not read
            yield make_task(path, leaf, used, every, np.ascontiguousarray(table[:, used], np.float32), *held)
            continue
        wanted = [merges.ends[number][policy != FIRST] for number in numbers]
        for source in sorted(set(wanted)):
            those = [place for place in every if wanted[place] == source]
            yield make_task(path, leaf, [source], those, np.empty((0, 1), np.float32), *held)


def _padded(elements: int) -> int:
    """Up to a multiple of 64, which keeps every row of a stack aligned."""
    return -(-elements // 64) * 64


# --- the loop --------------------------------------------------------------------------------------------------------


def run(
    merges: Merges,
    write: Write,
    *,
    numbers: Sequence[int] | None = None,
    ranges: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    progress: bool = False,
) -> list[str | None]:
    """Reads every block once, merges it and hands the results to ``write``, from several threads.

    Args:
      merges: opened.
      write: takes (place in ``numbers``, path, first element, values 1-D of the result's dtype); the values are only
        valid during the call.
      numbers: of the merges to do; default: all.
      ranges: path -> (first, last) elements that this process wants, ascending; without it the processes of a
        distributed run share all blocks, and what is read is fingerprinted.
      progress: show a bar.

    Returns:
      the fingerprint of what was read of each input: the sum of the hashes of its units, modulo 2^128; None where
      nothing was read or ``ranges`` are given.

    Raises:
      UsageError: an input that cannot be read, is not what was written, or holds a NaN or an infinity, named with its
        leaf; a result that overflows.
    """
    numbers = range(len(merges.specs)) if numbers is None else numbers
    blocks = [
        (task, start, stop)
        for task in tasks(merges, numbers)
        for start, stop in task.blocks((ranges or {}).get(task.path, [(0, task.leaf.size)]))
        if ranges is not None or task.owner(start) % jax.process_count() == jax.process_index()
    ]
    total, largest = (
        sum(task.nbytes(*block) for task, *block in blocks),
        max((b[0].bytes_held for b in blocks), default=1),
    )
    loop = _Loop(merges, write, numbers, fingerprints=ranges is None)
    with (
        _bar(total, progress and jax.process_index() == 0) as advance,
        ThreadPoolExecutor(max(1, min(WORKERS, merges.memory // largest))) as pool,
    ):
        try:
            for nbytes in pool.map(lambda block: loop.block(*block), blocks):
                advance(nbytes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [f"{value:032x}" if value else None for value in loop.sums]


class _Loop:
    """What the workers share."""

    def __init__(self, merges: Merges, write: Write, numbers: Sequence[int], *, fingerprints: bool):
        self._merges, self._write = merges, write
        self._names = [list(merges.specs)[number] for number in numbers]
        sizes = {path: leaf.size for path, leaf in merges.leaves.items()}
        self._units = [hashes.Units(sizes) if fingerprints or source.hashes else None for source in merges.sources]
        self.sums = [0] * len(merges.sources)
        self._lock, self._local, self._device = threading.Lock(), threading.local(), _host_device()

    def block(self, task: Task, start: int, stop: int) -> int:
        """Reads, merges and hands on elements ``start`` to ``stop`` of the task's leaf; returns the bytes it read."""
        with jax.default_device(self._device):
            rows = self._merged(task, start, stop) if len(task.weights) else self._copied(task, start, stop)
        for number, row in zip(task.merges, rows, strict=True):
            self._write(number, task.path, start, row)
        return task.nbytes(start, stop)

    def _copied(self, task: Task, start: int, stop: int) -> Sequence[np.ndarray]:
        row = self._buffer(1, stop - start, task.leaf.dtype)[0]
        self._read(task.inputs[0], task.path, start, row)
        return [row] * len(task.merges)

    def _merged(self, task: Task, start: int, stop: int) -> Sequence[np.ndarray]:
        total: Any = None
        for first in range(0, len(task.inputs), task.batch):
            batch = task.inputs[first : first + task.batch]
            stack = self._buffer(len(batch), task.elements, task.leaf.dtype)
            for row, index in zip(stack, batch, strict=True):
                self._read(index, task.path, start, row[: stop - start])
            # The stack is lent to XLA without a copy, so it must be done before the next batch is read into it.
            total = add(total, task.weights[:, first : first + task.batch], stack).block_until_ready()
        merged = np.asarray(total.astype(self._merges.results[task.path].dtype))[:, : stop - start]
        # The cast may overflow too. NumPy knows nothing of other dtypes' infinities.
        finite = np.isfinite(merged if merged.dtype == np.float32 else merged.astype(np.float32))
        if not finite.all():
            self._blame(task, start, stop, self._names[int(np.argmin(finite.all(axis=1)))])
        return list(merged)

    def _read(self, index: int, path: str, start: int, out: np.ndarray) -> None:
        source, units = self._merges.sources[index], self._units[index]
        stored = source.leaves[path].dtype
        values = out if stored == out.dtype else np.empty(out.size, stored)
        source.read(path, start, values)
        if values is not out:
            out[:] = values
        for number, digest in units.add(path, start, values) if units else ():
            if source.hashes is not None and source.hashes.get(path, [])[number : number + 1] != [digest]:
                raise UsageError(
                    f"{source.path}: leaf {path} is not what was written there (elements {number * hashes.UNIT} and on "
                    f"have another hash); {integrity.advice(source.path)}"
                )
            with self._lock:
                self.sums[index] = (self.sums[index] + int(digest, 16)) % 2**128

    def _buffer(self, rows: int, elements: int, dtype: np.dtype) -> np.ndarray:
        """A worker's own, kept from block to block; zeros at first, later what was checked to be finite."""
        held = self._local.__dict__
        if held.get(dtype.name, np.empty(0)).size < rows * elements:
            held[dtype.name] = aligned(rows * elements, dtype)
        return held[dtype.name][: rows * elements].reshape(rows, elements)

    def _blame(self, task: Task, start: int, stop: int, name: str) -> None:
        """Raises the error for a result that is not finite: an input's fault, or an overflow."""
        for index in task.inputs:
            source = self._merges.sources[index]
            values = np.empty(stop - start, source.leaves[task.path].dtype)
            source.read(task.path, start, values)
            if not np.isfinite(values.astype(np.float32)).all():
                raise UsageError(
                    f"{source.path}: leaf {task.path} holds a NaN or an infinity{infinite_hint(task.path)}"
                )
        raise UsageError(f"merge {name}: leaf {task.path} overflows; its weights or the output's dtype do not fit")


@contextlib.contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int], Any]]:
    """What is called with the bytes that were read; a bar on a terminal, if one is wanted."""
    if not (shown and sys.stderr.isatty()):
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc="merging") as bar:
        yield bar.update


def aligned(elements: int, dtype: np.dtype, make: Callable[..., np.ndarray] = np.zeros) -> np.ndarray:
    """What ``make`` gives, at a multiple of a page's address: XLA on a CPU uses such memory without copying it."""
    raw = make(elements * dtype.itemsize + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + elements * dtype.itemsize].view(dtype)


def _host_device() -> Any:
    """The CPU: from disk to disk nothing is won by a way through an accelerator."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names accelerators only
        return jax.local_devices()[0]
