"""Parts of an experiment on runs of configs/standard.py: runs, arms and choices that belong together."""

from typing import Any, NamedTuple

from configs.standard import Size
from wsm_jax.sweeps import Arm, Choice, RunSpec

MOST = 32  # checkpoints in a merge, so that long windows cost no more than short ones


class Part(NamedTuple):
    """Some runs, arms and choices, by name."""

    runs: dict[str, RunSpec]
    arms: dict[str, Arm]
    choices: dict[str, Choice]


def joined(*parts: Part) -> Part:
    """All of them as one."""
    return Part(
        *({name: value for each in kinds for name, value in each.items()} for kinds in zip(*parts, strict=True))
    )


def window(
    share: float, size: Size, curve: str, *, count: int = MOST, length: float = 1.0, **more: Any
) -> dict[str, Any]:
    """A merge of the last ``share`` of a run of ``length`` times the size's steps, of at most ``count`` checkpoints.

    The checkpoints are those of every n-th interval, for the smallest n that divides the window.
    """
    intervals = round(share * length * size.steps / size.interval)
    apart = next(n for n in range(-(-intervals // count), intervals + 1) if intervals % n == 0)
    return {"curve": curve, "count": intervals // apart, "interval": apart * size.interval, **more}


def branch(
    parent: str, share: float, settings: dict[str, Any], size: Size, *, length: float = 1.0, **changed: Any
) -> RunSpec:
    """A run that leaves ``parent`` a ``share`` of its length before its end, with some settings changed."""
    at = round((1 - share) * length * size.steps)
    return RunSpec({**settings, **changed}, branch_from=f"{parent}@{at}steps")


def decay(
    parent: str,
    share: float,
    curve: str,
    settings: dict[str, Any],
    size: Size,
    *,
    length: float = 1.0,
    end: float = 0.0,
) -> RunSpec:
    """A real decay over the last ``share`` of a run, to ``end`` times its peak rate."""
    cooldown = {"schedule.name": "cooldown", "schedule.curve": curve, **({"schedule.decay_end": end} if end else {})}
    return branch(parent, share, {**settings, **cooldown}, size, length=length)
