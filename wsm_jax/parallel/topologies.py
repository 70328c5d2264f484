"""A slice of chips by name, ``v5p:4x4x8`` or ``h100:8``, and a mesh over it although it is not here."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from wsm_jax.errors import UsageError
from wsm_jax.parallel import sharding
from wsm_jax.parallel.chips import CHIPS, Chip

LEAST_JAX = (0, 12)
# What libtpu would ask a machine with TPUs for, and complain about here; and several processes may load it.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that are joined.

    Attributes:
      name: ``CHIP:SHAPE``.
      chip: which.
      shape: chips along each dimension.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Chips in all; each is one device."""
        return math.prod(self.shape)

    @property
    def link(self) -> float:
        """Bytes/s that a chip sends to the others: within what its links join, or through the network."""
        return self.chip.link if math.prod(self.chip.shape) >= self.count else self.chip.network


def known() -> str:
    """The names that :func:`parse` takes, for help and errors."""
    return ", ".join(f"{name}:{_most(chip)}" for name, chip in CHIPS.items())


def parse(name: str) -> Topology:
    """The topology of that name.

    Raises:
      UsageError: an unknown chip, a shape that its slices do not have; with the known names.
    """
    kind, _, text = name.partition(":")
    if kind not in CHIPS:
        raise UsageError(f"unknown topology {name!r}; known, with the largest shape: {known()}")
    chip = CHIPS[kind]
    example = _most(chip)
    if not re.fullmatch(r"[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})*", text):
        raise UsageError(f"unknown topology {name!r}; write {kind}:SHAPE, at most {kind}:{example}")
    shape = tuple(int(size) for size in text.split("x"))
    if len(shape) != len(chip.shape):
        raise UsageError(f"topology {name!r} has {len(shape)} dimensions, not {len(chip.shape)} as {kind}:{example}")
    if chip.network and (shape[0] <= chip.shape[0] or shape[0] % chip.shape[0] == 0):
        return Topology(name, chip, shape)
    if any(size > most for size, most in zip(sorted(shape), sorted(chip.shape), strict=True)):
        parts = f"; more than {example} come in multiples of it" if chip.network else ""
        raise UsageError(f"topology {name!r} is no slice; the largest is {kind}:{example}{parts}")
    return Topology(name, chip, shape)


def _most(chip: Chip) -> str:
    return "x".join(map(str, chip.shape))


def abstract_mesh(axes: Mapping[str, int]) -> Any:
    """A mesh of devices that nobody has: shapes and shardings can be made for it, and nothing can be put on it."""
    return AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def mesh(topology: Topology, axes: Mapping[str, int]) -> Mesh:
    """A mesh over the devices of a TPU topology, for which programs can be compiled on a machine without one.

    Raises:
      UsageError: a chip, a JAX or an installation that cannot compile ahead of time; or a shape that libtpu refuses.
    """
    check_can_compile(topology)
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if topology.count == 1 else {}
    try:
        devices = topologies.get_topology_desc(topology.name, platform=topology.chip.platform, **options).devices
    except Exception as error:  # XLA raises its own errors, of no common type
        raise UsageError(f"topology {topology.name!r}: {str(error).splitlines()[0]}") from error
    return sharding.make_mesh(devices, axes)


def check_can_compile(topology: Topology) -> None:
    """Raises UsageError where the train step cannot be compiled for ``topology`` here, with what to install."""
    if topology.chip.platform != "tpu":
        raise UsageError(f"{topology.name}: only for TPUs can be compiled without one; plan it with --fast")
    version = tuple(int(part) for part in jax.__version__.split(".")[:2])
    if version < LEAST_JAX or not _has_libtpu():
        found = f"jax {jax.__version__}" + ("" if _has_libtpu() else " without libtpu")
        raise UsageError(
            f"compiling for {topology.name} needs jax 0.12 and libtpu, here is {found}: in an environment of Python "
            '3.12 or newer pip install "wsm-jax[train,tpu]", or estimate with --fast'
        )


def _has_libtpu() -> bool:
    import importlib.util

    return importlib.util.find_spec("libtpu") is not None
