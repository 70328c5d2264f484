"""What helps a run that does not fit: every knob tried by the estimator, the best first."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from wsm_jax import config as config_lib
from wsm_jax.errors import UsageError
from wsm_jax.parallel import sharding
from wsm_jax.planning.fast import Estimator
from wsm_jax.planning.needs import HEADROOM
from wsm_jax.planning.planned import Planned, planned

_LOSS_BLOCKS = 16


@dataclasses.dataclass(frozen=True)
class Knob:
    """A change of the configuration.

    Attributes:
      flags: as the command line takes it.
      saved: bytes that it takes off each chip, estimated; negative where it adds some.
      fits: whether it is enough.
    """

    flags: str
    saved: int
    fits: bool


def tried(run: Planned, total: int, estimator: Estimator) -> list[Knob]:
    """All knobs that the run's family and chips allow, and last the best ones together where none is enough alone.

    Args:
      run: what does not fit.
      total: bytes that it takes of each chip, as the plan tells them.
      estimator: what the others are estimated with.
    """
    before, room = estimator(run).total, HEADROOM * run.topology.chip.hbm

    def turned(changes: dict[str, Any]) -> Knob | None:
        try:
            other = planned(config_lib.with_fields(run.config, **changes), run.topology)
        except UsageError:
            return None  # it does not divide, or the family has no such field
        saved = before - estimator(other).total
        return Knob(_flags(changes), saved, total - saved <= room)

    found = [(knob, changes) for changes in _changes(run) if (knob := turned(changes))]
    found.sort(key=lambda one: -one[0].saved)
    together: dict[str, Any] = {}
    helpful = [] if any(knob.fits for knob, _ in found) else [changes for knob, changes in found if knob.saved > 0]
    best: Knob | None = None
    for changes in helpful:
        if {*changes} & {*together}:
            continue
        if (knob := turned({**together, **changes})) and (best is None or knob.saved > best.saved):
            best, together = knob, {**together, **changes}
        if best and best.fits:
            break
    return [knob for knob, _ in found] + ([best] if best and len(together) > 1 else [])


def _changes(run: Planned) -> Iterator[dict[str, Any]]:
    config, axes = run.config, run.axes
    if getattr(config.model, "remat", "full") != "full":
        yield {"model__remat": "full"}
    if config.model.context % _LOSS_BLOCKS == 0 and run.model.config.loss_blocks < _LOSS_BLOCKS:
        yield {"model__loss_blocks": _LOSS_BLOCKS}
    if axes[sharding.DATA] > 1:
        yield {"mesh__data": 1, "mesh__fsdp": axes[sharding.FSDP] * axes[sharding.DATA]}
    for axis in (sharding.FSDP, sharding.DATA):
        if axes[axis] > 1 and axes[axis] % 2 == 0:
            yield {f"mesh__{axis}": axes[axis] // 2, "mesh__tensor": axes[sharding.TENSOR] * 2}
            break
    yield {"accumulate": config.accumulate * 2}
    yield {"batch_size": config.batch_size // 2}


def _flags(changes: dict[str, Any]) -> str:
    return " ".join(f"--config.{name.replace('__', '.')}={value}" for name, value in changes.items())
