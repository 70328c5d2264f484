"""Where arrays live: a mesh of devices, and rules that map the logical axes of a leaf to axes of the mesh.

A model family names the axes of every leaf (``embed``, ``heads``, ...); a rules table says over which axes of the mesh
each of these names is spread, as the ShardingRules of jax-llm-examples. What no rule names is whole on every device.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wsm_jax.core.trees import path_name
from wsm_jax.errors import UsageError

DATA = "data"
BATCH = "batch"  # the logical axis of the rows of a batch

# Logical axis -> one axis of the mesh, or several.
Rules = Mapping[str, str | tuple[str, ...]]
# Path of a leaf -> its logical axes, one for each dimension.
LeafAxes = Mapping[str, tuple[str, ...]]

RULES: Rules = {BATCH: DATA}  # parameters are replicated while data is the only axis


def make_mesh(devices: Sequence[Any] | None = None, axes: Mapping[str, int] | None = None) -> Mesh:
    """A mesh over ``devices`` (default: all devices of all processes).

    Args:
      devices: as JAX lists them.
      axes: name -> number of devices along it; default: one axis, ``data``.

    Raises:
      UsageError: axes that do not make up the devices.
    """
    devices = jax.devices() if devices is None else devices
    axes = {DATA: len(devices)} if axes is None else axes
    if math.prod(axes.values()) != len(devices):
        sizes = " x ".join(f"{name}={size}" for name, size in axes.items())
        raise UsageError(f"a mesh of {sizes} takes {math.prod(axes.values())} devices, but there are {len(devices)}")
    # jax.make_mesh's default axes are Explicit; Auto leaves the inner shardings to the compiler.
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=devices)


def tree_shardings(mesh: Mesh, abstract: Any, leaves: LeafAxes | None = None, rules: Rules = RULES) -> Any:
    """A tree of NamedSharding for a tree of arrays or shapes.

    A leaf of ``abstract`` is one of ``leaves`` where its path ends with that one's and has its number of dimensions;
    so the moments of an optimizer lie where their parameters do. All other leaves are replicated.

    Raises:
      UsageError: rules that do not fit the mesh or a leaf, naming it.
    """
    declared = {tuple(path.split("/")): (path, axes) for path, axes in (leaves or {}).items()}

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        keys = tuple(path_name(path).split("/"))
        for start in range(len(keys)):  # the longest first
            name, axes = declared.get(keys[start:], ("", ()))
            if name and len(axes) == len(leaf.shape):
                return NamedSharding(mesh, _partition(mesh, name, axes, leaf.shape, rules))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, abstract)


def _partition(mesh: Mesh, name: str, axes: tuple[str, ...], shape: Sequence[int], rules: Rules) -> P:
    found = [_mesh_axes(mesh, axis, rules) for axis in axes]
    used = [axis for part in found for axis in part]
    if len(set(used)) < len(used):
        raise UsageError(f"the rules spread two dimensions of leaf {name} {axes} over one axis of the mesh")
    for axis, part, size in zip(axes, found, shape, strict=True):
        if size % _count(mesh, part):
            raise UsageError(
                f"leaf {name}: {size} along {axis} is not a multiple of the {_count(mesh, part)} devices that the "
                f"rules spread it over"
            )
    return _spec(*found)


def _spec(*parts: tuple[str, ...]) -> P:
    """Axes of the mesh for each dimension, in the form that JAX itself gives it."""
    used = max((i + 1 for i, part in enumerate(parts) if part), default=0)
    return P(*(part[0] if len(part) == 1 else part or None for part in parts[:used]))


def _mesh_axes(mesh: Mesh, axis: str, rules: Rules) -> tuple[str, ...]:
    part = rules.get(axis, ())
    part = (part,) if isinstance(part, str) else tuple(part)
    for name in part:
        if name not in mesh.axis_names:
            raise UsageError(f"the rules spread {axis} over {name}, but the mesh has {', '.join(mesh.axis_names)}")
    return part


def _count(mesh: Mesh, axes: Sequence[str]) -> int:
    return math.prod(mesh.shape[name] for name in axes)


def batch_sharding(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
    """Rows of a batch over the axes of the mesh that carry it."""
    return NamedSharding(mesh, _spec(_mesh_axes(mesh, BATCH, rules)))


def batch_parts(mesh: Mesh, rules: Rules = RULES) -> int:
    """Into how many parts the devices cut the rows of a batch; a batch must be a multiple of it."""
    return _count(mesh, _mesh_axes(mesh, BATCH, rules))


def rows_sharding(mesh: Mesh, rows: int, rules: Rules = RULES) -> NamedSharding:
    """As :func:`batch_sharding` where the devices can share so many rows equally; else every device has all of them."""
    return replicated(mesh) if rows % batch_parts(mesh, rules) else batch_sharding(mesh, rules)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def placed(mesh: Mesh, tree: Any) -> Any:
    """``tree`` on the devices of the mesh: what is there already as it lies, all else whole on every device."""
    devices = set(mesh.devices.flat)

    def one(leaf: Any) -> Any:
        there = isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices
        return leaf if there else jax.device_put(leaf, replicated(mesh))

    return jax.tree.map(one, tree)


def in_turn(mesh: Mesh) -> bool:
    """Whether a program has to end before the next one begins that does not depend on it.

    Several CPU devices share the threads of the process: programs whose devices exchange data may wait for one another
    for ever.
    """
    return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"


def by_rows(tree: Any) -> Any:
    """``tree`` with no leaf cut along another dimension than its first: what each device holds is then a range of it.

    A leaf that is cut otherwise is moved on the devices: its rows go to those that share it now, as far as they can be
    shared equally.
    """

    def one(leaf: Any) -> Any:
        where: Any = leaf.sharding if isinstance(leaf, jax.Array) else None
        if not isinstance(where, NamedSharding) or not any(where.spec[1:]):
            return leaf
        names = [name for part in where.spec for name in ((part,) if isinstance(part, str) else part or ())]
        while leaf.shape[0] % _count(where.mesh, names):  # pyright: ignore[reportArgumentType]
            names.pop()
        return jax.device_put(leaf, NamedSharding(where.mesh, _spec(tuple(names))))

    return jax.tree.map(one, tree)


def global_batch(mesh: Mesh, local: dict[str, Any], rules: Rules = RULES) -> dict[str, jax.Array]:
    """This process's rows as part of the global batch, on the devices.

    Args:
      mesh: where to.
      local: name -> array [rows of this process, ...].
      rules: which axes of the mesh carry the batch.
    """
    sharding = batch_sharding(mesh, rules)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in local.items()}
