"""The meshes that a run's batch, model and chips allow, by the estimator."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

from wsm_jax import config as config_lib
from wsm_jax.config import Config
from wsm_jax.errors import UsageError
from wsm_jax.models import family
from wsm_jax.parallel import sharding
from wsm_jax.parallel.topologies import Topology
from wsm_jax.planning.fast import Estimator
from wsm_jax.planning.figures import figures
from wsm_jax.planning.planned import planned

BEST = 3
_MOST_TENSOR = 16  # beyond it every chip has slivers of matrices


def best(config: Config, topology: Topology, disk_bandwidth: float) -> list[dict[str, Any]]:
    """Figures of the best meshes: of those that fit the fastest, or where none does those that lack least.

    Raises:
      UsageError: no mesh of these chips can train the run; with what the last one was refused for.
    """
    estimator, found, refused, run = Estimator(), [], "", None
    for mesh in meshes(config, topology):
        changes = {f"mesh__{axis}": size for axis, size in mesh.items()}
        try:
            run = planned(config_lib.with_fields(config, **changes), topology, like=run)
        except UsageError as error:
            refused = str(error)
            continue
        found.append(figures(run, estimator(run), disk_bandwidth))
    if not found:
        raise UsageError(f"no mesh of {topology.name} can train this run: {refused}")
    return sorted(found, key=_rank)[:BEST]


def meshes(config: Config, topology: Topology) -> Iterator[dict[str, int]]:
    """Axis -> size, of every mesh that makes up the chips; ``expert`` is 1 where the family has no experts."""
    leaves = family.of(config.model).leaves(config.model)
    has_experts = any("expert" in leaf.axes for leaf in leaves.values())
    divisors = [size for size in range(1, topology.count + 1) if topology.count % size == 0]
    for fsdp, expert, tensor in itertools.product(divisors, divisors if has_experts else [1], divisors):
        rest = topology.count // math.prod((fsdp, expert, tensor))
        if tensor <= _MOST_TENSOR and rest * fsdp * expert * tensor == topology.count:
            yield {sharding.DATA: rest, sharding.FSDP: fsdp, sharding.EXPERT: expert, sharding.TENSOR: tensor}


def _rank(found: dict[str, Any]) -> tuple[float, ...]:
    if not found["fits"]:
        return (1, found["over"])
    # Of equally fast ones that which sends least.
    return (0, found["roofline_step_seconds"], found["busy_seconds"]["links"])
