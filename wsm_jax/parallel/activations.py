"""Where the activations of a step lie, told to layers that know nothing of a mesh.

Parameters alone do not decide it: cut along ``embed`` they would draw the residual stream with them, every device would
have all rows of the batch and exchange activations where it should fetch parameters. So a layer says which logical axes
its activations have, and a step says, while it is traced, on which mesh they are.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
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


Cut = Mapping[str, tuple[str, ...]]  # logical axis -> the axes of the mesh that cut it, for collectives


def by_part(
    f: Callable[..., Any], *arrays: jax.Array, axes: Sequence[Sequence[str | None]], out: Sequence[Sequence[str]]
) -> Any:
    """``f`` of the parts of ``arrays`` that each device holds, for layers that exchange data themselves.

    Args:
      f: (cut, *parts) -> as many arrays as ``out`` has; ``cut`` is empty outside of a mesh, where a part is the whole.
      arrays: the layer's input and its parameters, fetched where they lie otherwise.
      axes: of each array, logical axes of its first dimensions; the rest are whole.
      out: of each result, likewise; what is whole has to be the same on all devices.
    """
    traced = _traced.get()
    if traced is None or traced[0].size == 1:
        return f({}, *arrays)
    mesh, rules = traced
    specs = [sharding.array_sharding(mesh, x.shape, own, rules).spec for x, own in zip(arrays, axes, strict=True)]
    cut: dict[str, tuple[str, ...]] = {}
    for own, spec in zip(axes, specs, strict=True):
        cut |= {axis: tuple(sharding.names(P(part))) for axis, part in zip(own, spec, strict=False) if axis and part}
    results = tuple(sharding.spec(*(cut.get(axis, ()) for axis in own)) for own in out)
    f = functools.partial(f, cut)
    return jax.shard_map(f, mesh=mesh, in_specs=tuple(specs), out_specs=results, check_vma=False)(*arrays)
