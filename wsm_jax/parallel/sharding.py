"""Where arrays live: a mesh of devices, and rules that map the logical axes of a leaf to axes of the mesh.

A model family names the axes of every leaf (``embed``, ``heads``, ...); a rules table says over which axes of the mesh
each of these names is spread, as the ShardingRules of jax-llm-examples. A dimension that no rule names is whole on
every device; a leaf that no family declares is an error.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wsm_jax.core.trees import named_leaves, path_name
from wsm_jax.errors import UsageError

AXES = DATA, FSDP, EXPERT, TENSOR = ("data", "fsdp", "expert", "tensor")
BATCH = "batch"  # the logical axis of the rows of a batch
_COUNTERS = 64  # elements, at most, of what an optimizer keeps beside the moments: counts, coefficients
_LARGE = 10**6  # bytes, at least, of a leaf that is worth cutting
_SHARE = 1000  # and it is at least one of so many parts of the parameters: the biases of a large model are not

# Logical axis -> one axis of the mesh, or several.
Rules = Mapping[str, str | tuple[str, ...]]
# Path of a leaf -> its logical axes, one for each dimension.
LeafAxes = Mapping[str, tuple[str, ...]]

# Layers, positions and the features of one head are whole: they are few, or looked at one after the other.
RULES: Rules = {
    BATCH: (DATA, FSDP, EXPERT),
    "embed": FSDP,
    "heads": TENSOR,
    "kv": TENSOR,
    "ff": TENSOR,
    "vocab": TENSOR,
    "expert": EXPERT,
}


def make_mesh(devices: Sequence[Any] | None = None, axes: Mapping[str, int] | None = None) -> Mesh:
    """A mesh over ``devices`` (default: all devices of all processes).

    Args:
      devices: as JAX lists them.
      axes: name -> number of devices along it; default: AXES, all devices along ``data``.

    Raises:
      UsageError: axes that do not make up the devices.
    """
    devices = jax.devices() if devices is None else devices
    axes = {**dict.fromkeys(AXES, 1), DATA: len(devices)} if axes is None else axes
    if math.prod(axes.values()) != len(devices):
        sizes = " x ".join(f"{name}={size}" for name, size in axes.items())
        raise UsageError(f"a mesh of {sizes} takes {math.prod(axes.values())} devices, but there are {len(devices)}")
    # jax.make_mesh's default axes are Explicit; Auto leaves the inner shardings to the compiler.
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=devices)


def tree_shardings(mesh: Mesh, abstract: Any, leaves: LeafAxes | None = None, rules: Rules = RULES) -> Any:
    """A tree of NamedSharding for a tree of arrays or shapes.

    A leaf of ``abstract`` is one of ``leaves`` where its path ends with that one's and has its number of dimensions;
    so the moments of an optimizer lie where their parameters do. Its counters are whole on every device.

    Args:
      mesh: the devices.
      abstract: parameters, or a tree that holds trees like them.
      leaves: what the model's family declares; None where nothing is known, so that all leaves are whole.
      rules: logical axis -> axes of the mesh.

    Raises:
      UsageError: a leaf that is not declared; rules that do not fit the mesh or a leaf, naming it.
    """
    declared = {tuple(path.split("/")): (path, axes) for path, axes in (leaves or {}).items()}

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        keys = tuple(path_name(path).split("/"))
        for start in range(len(keys)):  # the longest first
            name, axes = declared.get(keys[start:], ("", ()))
            if name and len(axes) == len(leaf.shape):
                return NamedSharding(mesh, _partition(mesh, name, axes, leaf.shape, rules))
        if leaves is not None and math.prod(leaf.shape) > _COUNTERS:
            raise UsageError(
                f"leaf {path_name(path)} of shape {tuple(leaf.shape)} is none that the model family declares, so no "
                "rule says where it lies"
            )
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, abstract)


def check_spread(params: Any) -> str:
    """A line about the large leaves of ``params`` that every device holds although an axis of the mesh could cut them.

    Batches alone are spread over ``data``, so there it is as it should be. ``tensor`` and ``expert`` cut what bears
    their names, and the rest of a model stays whole; ``fsdp`` cuts everything.

    Args:
      params: arrays or shapes, with shardings.

    Returns:
      what to print; empty where there is nothing to say.

    Raises:
      UsageError: a leaf that ``fsdp`` does not cut.
    """
    leaves = named_leaves(params)
    mesh: Any = next(iter(leaves.values())).sharding.mesh
    cutting = [f"mesh.{name}={mesh.shape[name]}" for name in (FSDP, EXPERT, TENSOR) if mesh.shape.get(name, 1) > 1]
    nbytes = {path: math.prod(leaf.shape) * leaf.dtype.itemsize for path, leaf in leaves.items()}
    least = max(_LARGE, sum(nbytes.values()) // _SHARE)
    whole = [path for path, leaf in leaves.items() if leaf.sharding.is_fully_replicated and nbytes[path] > least]
    if not whole or not cutting:
        return ""
    if mesh.shape.get(FSDP, 1) > 1:
        raise UsageError(
            f"leaf {whole[0]} of {nbytes[whole[0]] / 1e6:.1f} MB would be whole on every device in spite of "
            f"{' and '.join(cutting)}; its family declares no axis of it that the rules spread"
        )
    total = sum(nbytes[path] for path in whole)
    return (
        f"note: {len(whole)} leaves, {total / 1e6:.1f} MB, are whole on every device, e.g. {whole[0]}: "
        f"{' and '.join(cutting)} cuts none of their axes; mesh.fsdp would"
    )


def _partition(mesh: Mesh, name: str, axes: tuple[str, ...], shape: Sequence[int], rules: Rules) -> P:
    found = [_mesh_axes(mesh, axis, rules) for axis in axes]
    used = names(P(*found))
    if len(set(used)) < len(used):
        raise UsageError(f"the rules spread two dimensions of leaf {name} {axes} over one axis of the mesh")
    for place, (axis, part, size) in enumerate(zip(axes, found, shape, strict=True)):
        if size % count(mesh, part):
            sizes = " x ".join(f"mesh.{name}={mesh.shape[name]}" for name in part)
            raise UsageError(
                f"leaf {name} of shape {tuple(shape)}: dimension {place}, {axis}, is no multiple of {sizes}; choose a "
                f"divisor of {size}, or another size of the model"
            )
    return spec(*found)


def spec(*parts: tuple[str, ...]) -> P:
    """Axes of the mesh for each dimension, in the form that JAX itself gives it."""
    used = max((i + 1 for i, part in enumerate(parts) if part), default=0)
    return P(*(part[0] if len(part) == 1 else part or None for part in parts[:used]))


def names(partition: P) -> list[str]:
    """The axes of the mesh that a partition uses."""
    return [name for part in partition for name in ((part,) if isinstance(part, str) else part or ())]


def _mesh_axes(mesh: Mesh, axis: str, rules: Rules) -> tuple[str, ...]:
    """The axes of the mesh that cut ``axis``; along one of a single device nothing is cut."""
    part = rules.get(axis, ())
    part = (part,) if isinstance(part, str) else tuple(part)
    for name in part:
        if name not in mesh.axis_names:
            raise UsageError(f"the rules spread {axis} over {name}, but the mesh has {', '.join(mesh.axis_names)}")
    return tuple(name for name in part if mesh.shape[name] > 1)


def count(mesh: Any, axes: Sequence[str]) -> int:
    """Devices along some axes of a mesh together."""
    return math.prod(mesh.shape[axis] for axis in axes)


def batch_sharding(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
    """Rows of a batch over the axes of the mesh that carry it."""
    return NamedSharding(mesh, spec(_mesh_axes(mesh, BATCH, rules)))


def batch_parts(mesh: Mesh, rules: Rules = RULES) -> int:
    """Into how many parts the devices cut the rows of a batch; a batch must be a multiple of it."""
    return count(mesh, _mesh_axes(mesh, BATCH, rules))


def rows_sharding(mesh: Mesh, rows: int, rules: Rules = RULES) -> NamedSharding:
    """As :func:`batch_sharding` where the devices can share so many rows equally; else every device has all of them."""
    return replicated(mesh) if rows % batch_parts(mesh, rules) else batch_sharding(mesh, rules)


def array_sharding(mesh: Mesh, shape: Sequence[int], axes: Sequence[str | None], rules: Rules = RULES) -> NamedSharding:
    """Of an array whose first dimensions are the logical ``axes``; one that cannot be shared equally is whole."""
    found = [_mesh_axes(mesh, axis, rules) if axis else () for axis in axes]
    return NamedSharding(
        mesh, spec(*(part if size % count(mesh, part) == 0 else () for size, part in zip(shape, found, strict=False)))
    )


def is_data_alone(mesh: Mesh) -> bool:
    """Whether the mesh shares out nothing but batches."""
    return all(size == 1 for name, size in mesh.shape.items() if name != DATA)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def placed(mesh: Mesh, tree: Any, leaves: LeafAxes | None = None, rules: Rules = RULES) -> Any:
    """``tree`` on the devices of the mesh: what is there as it lies, all else as :func:`tree_shardings` says."""
    devices = set(mesh.devices.flat)

    def one(leaf: Any, where: NamedSharding) -> Any:
        there = isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices
        return leaf if there else jax.device_put(leaf, where)

    return jax.tree.map(one, tree, tree_shardings(mesh, tree, leaves, rules))


def device_bytes(tree: Any, shardings: Any = None) -> int:
    """Bytes that each device holds of arrays or shapes; what is kept on the host does not count.

    Args:
      tree: arrays or shapes.
      shardings: of its leaves; default: their own.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, tree) if shardings is None else shardings
    held = jax.tree.map(lambda leaf, at: math.prod(at.shard_shape(leaf.shape)) * leaf.dtype.itemsize, tree, shardings)
    on_host = jax.tree.map(lambda at: at.memory_kind == "pinned_host", shardings)
    return sum(n for n, host in zip(jax.tree.leaves(held), jax.tree.leaves(on_host), strict=True) if not host)


def part_shape(shape: Sequence[int], where: NamedSharding, axes: Sequence[str]) -> tuple[int, ...]:
    """The part of an array on a device where, of those that cut it at ``where``, only some axes of the mesh did."""
    parts = [*where.spec, *[None] * (len(shape) - len(where.spec))]
    cuts = [[name for name in names(P(part)) if name in axes] for part in parts]
    return tuple(size // count(where.mesh, cut) for size, cut in zip(shape, cuts, strict=True))


def stacked(where: NamedSharding, count: int) -> NamedSharding:
    """Of ``count`` arrays that lie at ``where`` each, one after the other in one array, over ``data`` if it can be."""
    size = where.mesh.shape.get(DATA, 1)
    shared = size > 1 and count % size == 0 and DATA not in names(where.spec)
    return NamedSharding(where.mesh, P(DATA if shared else None, *where.spec))


def in_turn(mesh: Mesh) -> bool:
    """Whether a program has to end before the next one begins that does not depend on it.

    Several CPU devices share the threads of the process: programs whose devices exchange data may wait for one another
    for ever.
    """
    return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"


def batch_share(mesh: Mesh, rules: Rules = RULES) -> tuple[int, int]:
    """Which of how many equal parts of a batch this process reads: (number, count).

    Processes whose devices hold the same rows read the same part.

    Raises:
      UsageError: a mesh whose order gives this process rows that are no such part.
    """
    parts = batch_parts(mesh, rules)
    places = batch_sharding(mesh, rules).addressable_devices_indices_map((parts,)).values()
    rows = sorted({index[0].indices(parts)[0] for index in places if index is not None})
    if rows != list(range(rows[0], rows[0] + len(rows))) or rows[0] % len(rows) or parts % len(rows):
        raise UsageError(
            f"process {jax.process_index()} would hold the parts {rows} of {parts} of a batch, which do not follow one "
            "another; lay out the mesh such that the devices of a process lie side by side"
        )
    return rows[0] // len(rows), parts // len(rows)


def global_batch(mesh: Mesh, local: dict[str, Any], rules: Rules = RULES) -> dict[str, jax.Array]:
    """This process's rows as part of the global batch, on the devices.

    Args:
      mesh: where to.
      local: name -> array [rows of this process, ...].
      rules: which axes of the mesh carry the batch.
    """
    sharding = batch_sharding(mesh, rules)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in local.items()}
