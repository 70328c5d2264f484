"""The sum itself: groups of the plan, read, merged and written by a few workers at once.

One merge is the ordered sum total + c_j x_j in float32, whose bits do not depend on how the leaves are cut. Several
merges are the matrix product (merges x inputs) . (inputs x elements), which reads every input once for all of them and
differs from the ordered sum by rounding.
"""

import functools
import os
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from tqdm import tqdm

from wsm_jax.checkpoints.storage import Source
from wsm_jax.core.leaves import infinite_hint
from wsm_jax.errors import UsageError
from wsm_jax.merging.plan import Group, piece_elements

MEMORY = 256 * 2**20  # bytes of all workers together, by default
WORKERS = min(3, (os.cpu_count() or 1) + 1)  # one reads while others add and write

Write = Callable[[int, str, int, np.ndarray], None]  # merge, leaf, first element, values


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


class Fingerprints:
    """128-bit fingerprints of what was read from each input, whatever the order in which it came.

    The sum of the XXH3 hashes of all pieces, each seeded with its leaf and position. Equal ones are of equal arrays;
    arrays stored in other chunks, or merged with such, are cut into other pieces and have others. It does not guard
    against forgery.
    """

    def __init__(self, count: int):
        self._sums = [0] * count
        self._lock = threading.Lock()

    def add(self, index: int, path: str, start: int, piece: int, values: np.ndarray) -> None:
        """Takes in ``values``, elements of leaf ``path`` from ``start`` on, in pieces of ``piece`` elements."""
        seed = zlib.crc32(path.encode()) << 32
        data = values.view(np.uint8).data
        size = values.itemsize
        parts = range(0, values.size, piece)
        found = sum(
            xxhash.xxh3_128_intdigest(data[i * size : (i + piece) * size], seed=seed ^ (start + i)) for i in parts
        )
        with self._lock:
            self._sums[index] = (self._sums[index] + found) % 2**128

    def hexdigests(self) -> list[str | None]:
        """One for each input; None for one of which nothing was read."""
        return [f"{value:032x}" if value else None for value in self._sums]


def workers_for(groups: Sequence[Group], memory: int) -> int:
    """How many groups may be in memory at once."""
    largest = max((group.bytes_held for group in groups), default=1)
    return max(1, min(WORKERS, memory // max(largest, 1)))


def execute(
    sources: Sequence[Source],
    groups: Sequence[Group],
    write: Write,
    *,
    dtypes: Mapping[str, np.dtype],
    quanta: Mapping[str, int],
    names: Sequence[str],
    memory: int = MEMORY,
    progress: bool = False,
) -> Fingerprints:
    """Reads every group once, merges it and hands the parts of the result to ``write``, from several threads.

    Args:
      sources: the inputs.
      groups: of the plan; every process of a distributed run passes its own.
      write: takes (merge, path, first element, values 1-D of the leaf's dtype in ``dtypes``); the values are only valid
        during the call.
      dtypes: path -> dtype of the result.
      quanta: path -> quantum of the plan.
      names: of the merges, for errors.
      memory: bytes that all workers together may hold, where the largest stored chunk allows it.
      progress: show a bar.

    Returns:
      the fingerprints of what was read.

    Raises:
      UsageError: an input that cannot be read, or holds a NaN or an infinity, named with its leaf; a result that
        overflows.
    """
    fingerprints = Fingerprints(len(sources))
    local = threading.local()
    device = _host_device()

    def buffer(kind: str, dtype: np.dtype, elements: int) -> np.ndarray:
        """Kept from group to group; zeros at first, later what was checked to be finite."""
        held = local.__dict__.setdefault("buffers", {})
        if held.get((kind, dtype.name), np.empty(0)).size < elements:
            held[kind, dtype.name] = _aligned(elements, dtype)
        return held[kind, dtype.name][:elements]

    def read(group: Group, index: int, out: np.ndarray) -> None:
        for segment in group.segments:
            values = out[segment.place]
            stored = sources[index].leaves[segment.path].dtype
            as_stored = values if stored == values.dtype else np.empty(values.size, stored)
            sources[index].read(segment.path, segment.start, as_stored)
            fingerprints.add(index, segment.path, segment.start, piece_elements(quanta[segment.path]), as_stored)
            if as_stored is not values:
                values[:] = as_stored

    def merge(group: Group) -> np.ndarray:
        """[merges, elements] in the dtype of the result."""
        assert group.weights is not None
        total: Any = None
        for first in range(0, len(group.inputs), group.batch):
            batch = group.inputs[first : first + group.batch]
            stack = buffer("stack", group.dtype, len(batch) * group.elements).reshape(len(batch), group.elements)
            for row, index in zip(stack, batch, strict=True):
                read(group, index, row)
            # The stack is lent to XLA without a copy, so it must be done before the next batch is read into it.
            total = add(total, group.weights[:, first : first + group.batch], stack).block_until_ready()
        dtype = dtypes[group.segments[0].path]
        merged = np.asarray(total if dtype == np.float32 else _cast(total, dtype))
        finite = merged if dtype == np.float32 else merged.astype(np.float32)  # the cast may overflow too
        if not np.isfinite(finite[:, : group.used]).all():
            _blame(sources, group, finite, names)
        return merged

    def work(group: Group) -> None:
        with jax.default_device(device):
            if group.weights is None:
                copied = buffer("copy", group.dtype, group.elements)
                read(group, group.inputs[0], copied)
                merged = [copied] * len(group.merges)
            else:
                merged = merge(group)
        for number, row in zip(group.merges, merged, strict=True):
            for segment in group.segments:
                write(number, segment.path, segment.start, row[segment.place])
        bar.update(group.bytes_read)

    with tqdm(
        total=sum(g.bytes_read for g in groups),
        unit="B",
        unit_scale=True,
        desc="merging",
        disable=None if progress else True,
    ) as bar:
        with ThreadPoolExecutor(workers_for(groups, memory)) as pool:
            try:
                for _ in pool.map(work, groups):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return fingerprints


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


def _blame(sources: Sequence[Source], group: Group, merged: np.ndarray, names: Sequence[str]) -> None:
    """Raises the error for a result that is not finite: an input's fault, or an overflow."""
    for segment in group.segments:
        for index in group.inputs:
            values = np.empty(segment.stop - segment.start, sources[index].leaves[segment.path].dtype)
            sources[index].read(segment.path, segment.start, values)
            if not np.isfinite(values.astype(np.float32)).all():
                hint = infinite_hint(segment.path)
                raise UsageError(f"{sources[index].path}: leaf {segment.path} holds a NaN or an infinity{hint}")
    number, element = np.argwhere(~np.isfinite(merged[:, : group.used]))[0]
    path = next(s.path for s in group.segments if s.place.start <= element < s.place.stop)
    raise UsageError(f"merge {names[number]}: leaf {path} overflows; its weights or the output's dtype do not fit")
