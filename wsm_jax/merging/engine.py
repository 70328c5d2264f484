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
import functools
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

from wsm_jax.checkpoints import storage
from wsm_jax.checkpoints.storage import Source
from wsm_jax.core import leaves as leaves_lib
from wsm_jax.core.leaves import AVERAGE, FIRST, SKIP, Leaf
from wsm_jax.errors import UsageError
from wsm_jax.io import hashes
from wsm_jax.merging.spec import SAME, MergeSpec, spread, union

MEMORY = 256 * 2**20  # bytes of all workers together, by default
WORKERS = min(3, (os.cpu_count() or 1) + 1)  # one reads while others add and write
BLOCK = 1 << 19  # elements of a block, at most, where nothing forces more
STACK = 1 << 23  # bytes of the inputs of a block that are in memory at once, where one of them takes no more
PARTS = 16  # of a unit, at most, that many merges cut it into
TOTALS = 1 << 22  # bytes of the totals of a block, where a part of a unit of each fits: they stay in the caches

Write = Callable[[int, str, int, np.ndarray], None]  # number of the merge, leaf, first element, values


# --- the sum ---------------------------------------------------------------------------------------------------------


def _ordered(total: jax.Array, weights: jax.Array, stack: jax.Array) -> jax.Array:
    """total [1, n] or [1, 1] + sum_j weights [1, j] * stack [j, n], float32, in the order of j."""
    total = jnp.broadcast_to(total, (1, stack.shape[1]))
    for j in range(stack.shape[0]):
        total = total + weights[0, j] * stack[j : j + 1].astype(jnp.float32)
    return total


_ordered_first = jax.jit(_ordered)
_ordered_next = jax.jit(_ordered, donate_argnums=0)
# Adding to 0.0 would turn a sum of -0.0 into 0.0. It is an argument and no constant, so that all batches are compiled
# to the same chain of multiply-adds.
_NOTHING = np.full((1, 1), -0.0, np.float32)


@functools.partial(jax.jit, donate_argnums=0)
def _grid(total: jax.Array | None, weights: jax.Array, stack: jax.Array) -> jax.Array:
    """total [merges, n] (None: nothing yet) + weights [merges, j] . stack [j, n], float32."""
    added = jnp.matmul(weights, stack.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return added if total is None else total + added


@functools.partial(jax.jit, static_argnums=1)
def _cast(total: jax.Array, dtype: Any) -> jax.Array:
    return total.astype(dtype)


def add(total: jax.Array | None, weights: np.ndarray, stack: np.ndarray) -> jax.Array:
    """total + weights . stack in float32: the ordered sum for one merge, the matrix product for several.

    Args:
      total: float32 [merges, n], which is donated; None: nothing yet.
      weights: float32 [merges, inputs].
      stack: [inputs, n] of any floating dtype.
    """
    if len(weights) > 1:
        return _grid(total, weights, stack)
    return _ordered_first(_NOTHING, weights, stack) if total is None else _ordered_next(total, weights, stack)


# --- what is to be done ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Merges:
    """Merges of the same checkpoints, opened and checked.

    Attributes:
      specs: name -> merge.
      sources: what the merges read, each once, oldest first.
      places: for each merge the place in ``sources`` of each of its inputs.
      vectors: for each merge path -> float64 [sources].
      ends: for each merge the sources of its ``first`` and ``last`` leaves, the ends of what has a weight.
      policies: path -> policy.
      leaves: path -> leaf of the inputs, with a quantum that suits all of them.
      results: path -> leaf of the result; what is skipped is not there.
      memory: bytes that all workers together may hold, where the largest stored chunk allows it.
    """

    specs: Mapping[str, MergeSpec]
    sources: list[Source]
    places: list[np.ndarray]
    vectors: list[dict[str, np.ndarray]]
    ends: list[tuple[int, int]]
    policies: dict[str, str]
    leaves: dict[str, Leaf]
    results: dict[str, Leaf]
    memory: int = MEMORY

    @property
    def nbytes(self) -> int:
        """Bytes of one result."""
        return sum(leaf.nbytes for leaf in self.results.values())


@contextlib.contextmanager
def opened(specs: Mapping[str, MergeSpec], memory: int = MEMORY) -> Iterator[Merges]:
    """Opens and checks everything that the merges need; reads metadata only.

    Args:
      specs: name -> merge; all with the same rules and dtype.
      memory: bytes that all workers together may hold, where the largest stored chunk allows it.

    Raises:
      UsageError: no merges; as :func:`wsm_jax.merge_checkpoints` before any array is read.
    """
    if not specs:
        raise UsageError("nothing to merge: no weights were given")
    spec = next(iter(specs.values()))
    inputs, places = union(list(specs.values()))
    with storage.open_sources([one.path for one in inputs], [one.item for one in inputs]) as sources:
        leaves_lib.check_same(
            [source.leaves for source in sources], [str(source.path) for source in sources], spec.rules
        )
        every = {path: leaf for source in sources for path, leaf in source.leaves.items()}
        found = leaves_lib.leaf_policies(every, spec.rules)
        policies = {path: found[path] for path in sources[0].leaves}
        leaves = {path: _common([s.leaves[path] for s in sources if path in s.leaves]) for path in policies}
        results = {path: _result(path, leaves[path], policies[path], spec.dtype) for path in policies}
        results = {path: leaf for path, leaf in results.items() if policies[path] != SKIP}
        if not results:
            raise UsageError(f"nothing to merge: {sources[0].path} has no leaf" + " but skipped ones" * bool(policies))
        averaged = [path for path, policy in policies.items() if policy == AVERAGE]
        own = [one.vectors(averaged) for one in specs.values()]
        vectors, ends = [], []
        for found, where in zip(own, places, strict=True):
            vectors.append({path: spread(vector, where, len(inputs)) for path, vector in found.items()})
            first, last = leaves_lib.window_ends(found, len(where))
            ends.append((int(where[first]), int(where[last])))
        yield Merges(specs, sources, places, vectors, ends, policies, leaves, results, memory)


def _common(leaves: Sequence[Leaf]) -> Leaf:
    """A leaf of several inputs with a quantum that suits all of them."""
    quantum = math.lcm(*(leaf.quantum for leaf in leaves))
    return dataclasses.replace(leaves[0], quantum=min(quantum, max(leaves[0].size, 1)))


def _result(path: str, leaf: Leaf, policy: str, dtype: str) -> Leaf:
    if policy != AVERAGE or dtype == SAME:
        if policy == AVERAGE and leaf.dtype == np.float64:
            raise UsageError(f"leaf {path} is float64, but merges are float32 at best; ask for dtype=float32")
        return Leaf(leaf.shape, leaf.dtype)
    return Leaf(leaf.shape, np.dtype(dtype))


@dataclasses.dataclass(frozen=True)
class Task:
    """What is done with every block of a leaf.

    Attributes:
      path: the leaf.
      leaf: as it is read.
      inputs: indices of the inputs that count, ascending; for a copy just the one.
      merges: numbers of the merges it is for.
      weights: float32 [merges, inputs]; None for a copy.
      elements: of its buffers. Leaves of a dtype have the same number, so that the sum is compiled once.
      grain: elements; blocks begin at multiples of it.
      batch: inputs that are in memory at the same time.
    """

    path: str
    leaf: Leaf
    inputs: tuple[int, ...]
    merges: tuple[int, ...]
    weights: np.ndarray | None
    elements: int
    grain: int
    batch: int

    @classmethod
    def of(
        cls,
        path: str,
        leaf: Leaf,
        inputs: Sequence[int],
        merges: Sequence[int],
        weights: np.ndarray | None,
        memory: int,
        largest: int,
    ) -> "Task":
        """That of a leaf whose worker may hold ``memory`` bytes; ``largest``: elements of the largest leaf."""
        width, totals = leaf.dtype.itemsize, 0 if weights is None else len(weights)
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
        return cls(path, leaf, tuple(inputs), tuple(merges), weights, elements, grain, batch)

    @property
    def bytes_held(self) -> int:
        """Bytes of the inputs and of the totals before and after a step."""
        totals = 0 if self.weights is None else len(self.weights)
        return self.elements * (self.batch * self.leaf.dtype.itemsize + 2 * 4 * totals)

    def owner(self, start: int) -> int:
        """A number that decides which process does the block: one for all blocks that a unit lies in, to be hashed."""
        apart = self.grain % hashes.UNIT == 0 or hashes.UNIT % self.grain == 0
        return zlib.crc32(self.path.encode()) + (start // max(self.elements, hashes.UNIT) if apart else 0)

    def blocks(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of the blocks that hold the elements ``first`` to ``last``, and no more than to whole grains."""
        begin, end = first // self.grain * self.grain, min(-(-last // self.grain) * self.grain, self.leaf.size)
        step = max(1, self.elements // self.grain) * self.grain
        for start in range(begin, end, step):
            yield start, min(start + step, end)


def tasks(merges: Merges, numbers: Sequence[int]) -> list[Task]:
    """Those of the merges ``numbers``: one for each leaf that is averaged, one for each input that it is copied from."""
    vectors = [merges.vectors[number] for number in numbers]
    every, count = range(len(vectors)), len(merges.sources)
    held = merges.memory // WORKERS, max(leaf.size for leaf in merges.results.values())
    found = []
    for path in merges.results:
        leaf, policy = merges.leaves[path], merges.policies[path]
        if not leaf.size:
            continue
        if policy == AVERAGE:
            table = np.stack([vector[path] for vector in vectors])
            # An input that no merge wants is not read. Not even all-zero weights leave the sum without a term.
            used = np.flatnonzero((table != 0).any(axis=0)).tolist() or [count - 1]
            weights = np.ascontiguousarray(table[:, used], np.float32)
            found.append(Task.of(path, leaf, used, every, weights, *held))
            continue
        wanted = [merges.ends[number][policy != FIRST] for number in numbers]
        for source in sorted(set(wanted)):
            those = [number for number in every if wanted[number] == source]
            found.append(Task.of(path, leaf, [source], those, None, *held))
    return found


def _padded(elements: int) -> int:
    """Up to a multiple of 64, which keeps every row of a stack aligned."""
    return -(-elements // 64) * 64


# --- the loop --------------------------------------------------------------------------------------------------------


def run(
    merges: Merges,
    write: Write,
    *,
    numbers: Sequence[int] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    progress: bool = False,
) -> list[str | None]:
    """Reads every block once, merges it and hands the results to ``write``, from several threads.

    Args:
      merges: opened.
      write: takes (place in ``numbers``, path, first element, values 1-D of the result's dtype); the values are only
        valid during the call.
      numbers: of the merges to do; default: all.
      ranges: path -> first and last element that this process wants; without it the processes of a distributed run
        share all blocks, and what is read is fingerprinted.
      progress: show a bar.

    Returns:
      the fingerprint of what was read of each input: the sum of the hashes of its units, modulo 2^128; None where
      nothing was read or ``ranges`` are given.

    Raises:
      UsageError: an input that cannot be read, is not what was written, or holds a NaN or an infinity, named with its
        leaf; a result that overflows.
    """
    numbers = range(len(merges.specs)) if numbers is None else numbers
    todo = []
    for task in tasks(merges, numbers):
        for start, stop in task.blocks(*(ranges or {}).get(task.path, (0, task.leaf.size))):
            if ranges is not None or task.owner(start) % jax.process_count() == jax.process_index():
                todo.append((task, start, stop))
    loop = _Loop(merges, write, numbers, fingerprints=ranges is None)
    total = sum((stop - start) * len(task.inputs) * task.leaf.dtype.itemsize for task, start, stop in todo)
    largest = max((task.bytes_held for task, *_ in todo), default=1)
    with (
        _bar(total, progress and jax.process_index() == 0) as advance,
        ThreadPoolExecutor(max(1, min(WORKERS, merges.memory // largest))) as pool,
    ):

        def work(block: tuple[Task, int, int]) -> None:
            loop.block(*block)
            task, start, stop = block
            advance((stop - start) * len(task.inputs) * task.leaf.dtype.itemsize)

        try:
            for _ in pool.map(work, todo):
                pass
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

    def block(self, task: Task, start: int, stop: int) -> None:
        """Reads, merges and hands on elements ``start`` to ``stop`` of the task's leaf."""
        if task.weights is None:
            copied = self._buffer(1, stop - start, task.leaf.dtype)
            self._read(task.inputs[0], task.path, start, copied[0])
            rows: Any = [copied[0]] * len(task.merges)
        else:
            with jax.default_device(self._device):
                rows = self._merged(task, start, stop)
        for number, row in zip(task.merges, rows, strict=True):
            self._write(number, task.path, start, row[: stop - start])

    def _merged(self, task: Task, start: int, stop: int) -> np.ndarray:
        """[merges, elements] in the dtype of the result."""
        assert task.weights is not None
        total, used = None, stop - start
        for first in range(0, len(task.inputs), task.batch):
            batch = task.inputs[first : first + task.batch]
            stack = self._buffer(len(batch), task.elements, task.leaf.dtype)
            for row, index in zip(stack, batch, strict=True):
                self._read(index, task.path, start, row[:used])
            # The stack is lent to XLA without a copy, so it must be done before the next batch is read into it.
            total = add(total, task.weights[:, first : first + task.batch], stack).block_until_ready()
        assert total is not None
        dtype = self._merges.results[task.path].dtype
        merged = np.asarray(total if dtype == np.float32 else _cast(total, dtype))
        finite = merged if dtype == np.float32 else merged.astype(np.float32)  # the cast may overflow too
        if not np.isfinite(finite[:, :used]).all():
            number = int(np.argwhere(~np.isfinite(finite[:, :used]))[0, 0])
            self._blame(task, start, stop, self._names[number])
        return merged

    def _read(self, index: int, path: str, start: int, out: np.ndarray) -> None:
        source, units = self._merges.sources[index], self._units[index]
        source.read(path, start, out)
        for number, digest in units.add(path, start, out) if units else ():
            if source.hashes is not None and source.hashes.get(path, [])[number : number + 1] != [digest]:
                raise UsageError(
                    f"{source.path}: leaf {path} is not what was written there (elements {number * hashes.UNIT} and on "
                    "have another hash); merge it again, or retrain the interval that ends there"
                )
            with self._lock:
                self.sums[index] = (self.sums[index] + int(digest, 16)) % 2**128

    def _buffer(self, rows: int, elements: int, dtype: np.dtype) -> np.ndarray:
        """A worker's own, kept from block to block; zeros at first, later what was checked to be finite."""
        held = self._local.__dict__
        if held.get(dtype.name, np.empty(0)).size < rows * elements:
            held[dtype.name] = _aligned(rows * elements, dtype)
        return held[dtype.name][: rows * elements].reshape(rows, elements)

    def _blame(self, task: Task, start: int, stop: int, name: str) -> None:
        """Raises the error for a result that is not finite: an input's fault, or an overflow."""
        values = np.empty(stop - start, task.leaf.dtype)
        for index in task.inputs:
            source = self._merges.sources[index]
            source.read(task.path, start, values)
            if not np.isfinite(values.astype(np.float32)).all():
                raise UsageError(f"{source.path}: leaf {task.path} holds a NaN or an infinity")
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


def _aligned(elements: int, dtype: np.dtype) -> np.ndarray:
    """Zeros whose address is a multiple of a page: XLA on a CPU uses such memory without copying it."""
    raw = np.zeros(elements * dtype.itemsize + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + elements * dtype.itemsize].view(dtype)


def _host_device() -> Any:
    """The CPU: from disk to disk nothing is won by a way through an accelerator."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names accelerators only
        return jax.local_devices()[0]
