"""Where the activations of a step lie, told to layers that know nothing of a mesh.

Parameters alone do not decide it: cut along ``embed`` they would draw the residual stream with them, every device would
have all rows of the batch and exchange activations where it should fetch parameters. So a layer says which logical axes
its activations have, and a step says, while it is traced, on which mesh they are.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from wsm_jax.parallel import sharding
from wsm_jax.parallel.sharding import LeafAxes, Rules

Array = TypeVar("Array", bound=jax.Array)

_traced: contextvars.ContextVar[tuple[Mesh, Rules] | None] = contextvars.ContextVar("traced", default=None)


@contextlib.contextmanager
def on(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """While a step for this mesh is traced."""
    token = _traced.set((mesh, rules))
    try:
        yield
    finally:
        _traced.reset(token)


def spread(x: Array, *axes: str | None) -> Array:
    """``x`` with its dimensions spread as the rules say; as it is where none but the batch is spread over anything.

    Args:
      x: an activation, or a parameter as a layer wants it.
      axes: logical axes of its first dimensions, e.g. BATCH, None for one that is whole; the rest are whole. One that
        the devices cannot share equally is whole, too.
    """
    traced = _traced.get()
    if traced is None or sharding.is_data_alone(traced[0]):
        return x
    mesh, rules = traced
    return jax.lax.with_sharding_constraint(x, sharding.array_sharding(mesh, x.shape, axes, rules))


def spread_as_leaves(tree: Any, leaves: LeafAxes | None) -> Any:
    """A tree like the parameters, e.g. their gradients, spread as these are; see :func:`spread` for when.

    Args:
      tree: of arrays.
      leaves: path -> logical axes of a leaf, as the model's family declares them.
    """
    traced = _traced.get()
    if traced is None or leaves is None or sharding.is_data_alone(traced[0]):
        return tree
    mesh, rules = traced
    return jax.lax.with_sharding_constraint(tree, sharding.tree_shardings(mesh, tree, leaves, rules))


def by_device(f: Callable[..., Any], *arrays: Any, like: jax.Array, axes: Sequence[str | None]) -> Any:
    """``f`` of the parts of ``arrays`` that each device holds, for kernels that the compiler cannot partition.

    Args:
      f: (*arrays) -> array; it treats indices of the dimensions that are cut alike.
      arrays: of at most the dimensions of ``axes`` and more, or None.
      like: the one of them with the fewest indices along what may be cut: what its shape allows is cut in all.
      axes: logical axes of the first dimensions.
    """
    traced = _traced.get()
    if traced is None or traced[0].size == 1:
        return f(*arrays)
    mesh, rules = traced
    where = sharding.array_sharding(mesh, like.shape, axes, rules).spec
    specs = tuple(None if array is None else P(*where[: array.ndim]) for array in arrays)
    return jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=where, check_vma=False)(*arrays)
