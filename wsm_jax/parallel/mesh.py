"""The mesh that a configuration asks for, on the devices that there are."""

import dataclasses
import math

import jax
from jax.sharding import Mesh

from wsm_jax.config import MeshConfig
from wsm_jax.errors import UsageError
from wsm_jax.parallel import sharding
from wsm_jax.parallel.sharding import DATA

REST = -1


def from_config(config: MeshConfig) -> Mesh:
    """The mesh of ``config`` over all devices of all processes.

    Raises:
      UsageError: as :func:`axes`.
    """
    return sharding.make_mesh(axes=axes(config, len(jax.devices())))


def like(config: MeshConfig) -> Mesh:
    """A mesh as near to that of ``config`` as the devices here allow, for a run that was trained on others.

    What divided a leaf there divides it here: an axis keeps the greatest divisor of it that the devices have left.
    """
    count = len(jax.devices())
    try:
        return sharding.make_mesh(axes=axes(config, count))
    except UsageError:
        found = {}
        for name in ("tensor", "expert", "fsdp"):
            found[name] = math.gcd(max(getattr(config, name), 1), count)
            count //= found[name]
        return sharding.make_mesh(axes={name: found.get(name, count) for name in sharding.AXES})


def axes(config: MeshConfig, count: int) -> dict[str, int]:
    """Axis -> devices along it, of ``count`` in all.

    Raises:
      UsageError: two axes that take the rest, sizes below 1, or axes that do not multiply to the devices.
    """
    sizes = {name: getattr(config, name) for name in sharding.AXES}
    rest = [name for name, size in sizes.items() if size == REST]
    if len(rest) > 1 and DATA in rest:
        rest.remove(DATA)
        sizes[DATA] = 1
    if len(rest) > 1:
        raise UsageError(f"mesh.{rest[0]} and mesh.{rest[1]} are both -1; only one axis can take the rest")
    for name, size in sizes.items():
        if size < 1 and size != REST:
            raise UsageError(f"mesh.{name} is {size}; it must be at least 1, or -1 for the devices that are left")
    taken = math.prod(size for size in sizes.values() if size != REST)
    if rest:
        sizes[rest[0]] = count // taken
    if math.prod(sizes.values()) != count:
        given = " x ".join(
            f"mesh.{field.name}={sizes[field.name]}"
            for field in dataclasses.fields(config)
            if field.name not in rest and sizes[field.name] > 1
        )
        wanted = "a divisor of" if rest else "as many as"
        raise UsageError(f"{given or 'mesh.data=1'} takes {taken} devices, which is not {wanted} the {count} there are")
    return sizes
