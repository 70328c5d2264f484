"""Where arrays live: one mesh, and rules that map a leaf's path to its partition."""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wsm_jax.core.trees import path_name
from wsm_jax.errors import UsageError

DATA = "data"

# First match wins; the path is the leaf's keys joined by "/". Parameters are replicated while data is the only axis.
RULES: tuple[tuple[str, P], ...] = ((r".*", P()),)


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """One-axis mesh ``("data",)`` over ``devices`` (default: all devices of all processes)."""
    devices = jax.devices() if devices is None else devices
    # jax.make_mesh's default axes are Explicit; Auto leaves the inner shardings to the compiler.
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def tree_shardings(mesh: Mesh, abstract: Any, rules: Sequence[tuple[str, P]] = RULES) -> Any:
    """A tree of NamedSharding for a tree of arrays or shapes.

    Raises:
      UsageError: a leaf that no rule matches.
    """

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, spec in rules:
            if re.fullmatch(pattern, name):
                return NamedSharding(mesh, spec)
        raise UsageError(f"no sharding rule matches {name}")

    return jax.tree_util.tree_map_with_path(one, abstract)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the data axis."""
    return NamedSharding(mesh, P(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def global_batch(mesh: Mesh, local: dict[str, Any]) -> dict[str, jax.Array]:
    """This process's rows as part of the global batch, on the devices.

    Args:
      local: name -> array [rows of this process, ...].
    """
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in local.items()}
