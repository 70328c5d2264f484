"""Dispatch by sorting: which assignment of a token to an expert lies in which slot, and the rows in their slots.

Shapes in names: M assignments, S slots, N rows, D features. Shapes depend on how many there are of each, never on who
goes where.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Layout(NamedTuple):
    """Assignments in slots, those of a group side by side.

    Attributes:
      source: int32 [S], the assignment in each slot; M in an empty one.
      slot: int32 [M], the slot of each assignment; S for one that has none.
      sizes: int32 [groups], assignments of each group.
      owner: int32 [S / block], the group of each block.
    """

    source: jax.Array
    slot: jax.Array
    sizes: jax.Array
    owner: jax.Array


def layout(group: jax.Array, count: int, *, block: int = 1, capacity: int = 0) -> Layout:
    """Assignments sorted by their groups, every group in its own slots; shapes do not depend on ``group``.

    Args:
      group: int [M], of each assignment, 0 ... ``count`` - 1; ``count`` for one that is to have no slot.
      count: number of groups.
      block: a group takes the least multiple of it.
      capacity: slots that each group has instead; assignments beyond them have none.
    """
    M = group.shape[0]
    order = jnp.argsort(group, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(M), unique_indices=True)
    bounds = (group[None] < jnp.arange(count + 1)[:, None]).sum(axis=1)
    start, sizes = bounds[:-1], jnp.diff(bounds)
    room = jnp.full_like(sizes, capacity) if capacity else -(-sizes // block) * block
    held, end = jnp.minimum(sizes, room), jnp.cumsum(room)
    first = end - room
    step = capacity or block
    S = count * capacity if capacity else (M + count * (block - 1)) // block * block
    owner = jnp.minimum((jnp.arange(0, S, step)[:, None] >= end[None]).sum(axis=1), count - 1)
    row = jnp.arange(S).reshape(-1, step) - first[owner][:, None]
    at = jnp.minimum(start[owner][:, None] + row, M - 1)
    source = jnp.where(row < held[owner][:, None], order[at], M).reshape(S)
    start, held, first = (jnp.append(array, 0) for array in (start, held, first))  # of group `count`
    rank = place - start[group]
    return Layout(source, jnp.where(rank < held[group], first[group] + rank, S), sizes, owner)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def moved(x: jax.Array, source: jax.Array, target: jax.Array, each: int = 1) -> jax.Array:
    """Rows of ``x`` elsewhere; both directions are gathers, where JAX's own gradient is a slow scatter.

    Args:
      x: [N, D].
      source: int [S]; row ``source // each`` of x goes there, zeros where it is ``N * each``.
      target: int [N * each], its inverse: where in S each of them went; S for one that went nowhere.
      each: how often a row of x is used.

    Returns:
      [S, D].
    """
    del target
    return x.at[source // each].get(mode="fill", fill_value=0)


def _moved_forward(x: jax.Array, source: jax.Array, target: jax.Array, each: int):
    return moved(x, source, target, each), target


def _moved_backward(each: int, target: jax.Array, g: jax.Array) -> tuple[jax.Array, None, None]:
    rows = g.at[target].get(mode="fill", fill_value=0)
    return rows.reshape(-1, each, g.shape[-1]).sum(axis=1) if each > 1 else rows, None, None


moved.defvjp(_moved_forward, _moved_backward)
