"""Blocks of an array as ranges of its elements in C order, for files that hold an array as it is.

A block that is cut along the first dimension is one range. One that is cut along a later dimension is a range for each
index of the dimensions before it: few where these count layers, hopelessly many where they count tokens.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from wsm_jax.parallel import sharding

MOST = 4096  # ranges of a leaf on all devices together

Index = tuple[slice, ...]


def of(shape: Sequence[int], index: Index) -> tuple[np.ndarray, int]:
    """The ranges that a block is made of, in the order of its elements.

    Args:
      shape: of the array.
      index: the block, as shardings give it.

    Returns:
      the first elements, ascending int64 [ranges], and the length of each.
    """
    bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    axis = max((i for i, (bound, size) in enumerate(zip(bounds, shape, strict=True)) if bound != (0, size)), default=0)
    if not shape:
        return np.zeros(1, np.int64), 1
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    before = itertools.product(*(range(*bound) for bound in bounds[:axis]))
    first = [sum(map(math.prod, zip(place, strides, strict=False))) for place in before]
    start, stop = bounds[axis]
    return np.asarray(first, np.int64) + start * strides[axis], (stop - start) * strides[axis]


def cut_axis(leaf: Any) -> int:
    """The last dimension along which an array is cut; 0 where it is whole."""
    if not isinstance(leaf, jax.Array):
        return 0
    shard = leaf.sharding.shard_shape(leaf.shape)
    return max((i for i, (part, size) in enumerate(zip(shard, leaf.shape, strict=True)) if part != size), default=0)


def as_ranges(where: Any, shape: Sequence[int]) -> Any:
    """A sharding by which each device has an equal share of an array in few ranges.

    Args:
      where: the sharding now; one that is cut along the first dimension alone, or by no mesh, stays.
      shape: of the array.

    Returns:
      ``where``, or a sharding along the first dimension that the same devices can share equally; some of them have the
      same share where there is none.
    """
    if not isinstance(where, NamedSharding) or not any(where.spec[1:]):
        return where
    names = sharding.names(where.spec)
    count = sharding.count(where.mesh, names)
    for axis, size in enumerate(shape):
        if size % count == 0 and math.prod(shape[:axis]) * count <= MOST:
            return NamedSharding(where.mesh, sharding.spec(*[()] * axis, tuple(names)))
    while shape[0] % sharding.count(where.mesh, names):
        names.pop()
    return NamedSharding(where.mesh, sharding.spec(tuple(names)))


def by_ranges(tree: Any) -> Any:
    """``tree`` with each leaf where :func:`as_ranges` says; what lies elsewhere is moved on the devices."""
    leaves, structure = jax.tree.flatten(tree)
    where = [as_ranges(leaf.sharding, leaf.shape) if isinstance(leaf, jax.Array) else None for leaf in leaves]
    moved = [i for i, there in enumerate(where) if there is not None and there != leaves[i].sharding]
    if moved:
        # One program for all: several may wait for one another for ever, see sharding.in_turn.
        found = jax.block_until_ready(_move(tuple(where[i] for i in moved))([leaves[i] for i in moved]))
        for i, leaf in zip(moved, found, strict=True):
            leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


@functools.lru_cache(maxsize=16)
def _move(where: tuple[NamedSharding, ...]) -> Any:
    return jax.jit(lambda leaves: leaves, out_shardings=list(where))
