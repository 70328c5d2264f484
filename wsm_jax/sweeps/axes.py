"""Axes of a sweep, combined by product, zip and chain, and the experiment that they make."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from wsm_jax.errors import UsageError
from wsm_jax.sweeps.experiment import Arm, Experiment, Measure, RunSpec

Point = Mapping[str, Any]
Points = Sequence[Point]
SEED = "config.seed"
RUN, MERGE = "config.", "merge."


def axis(field: str, values: Sequence[Any]) -> Points:
    """One axis: a field of the configuration, ``config.FIELD``, or of the merges, ``merge.FIELD``, over some values.

    Raises:
      UsageError: another field, or no values.
    """
    if not field.startswith((RUN, MERGE)):
        raise UsageError(f"axis {field!r}: write config.FIELD or merge.FIELD")
    if isinstance(values, str) or not values:
        raise UsageError(f"axis {field!r} has no values; write a list, e.g. axis({field!r}, [1, 2])")
    return [{field: value} for value in values]


def product(*axes: Points) -> Points:
    """Every combination; the last axis varies fastest.

    Raises:
      UsageError: two axes have a field in common.
    """
    return [_joined(points) for points in itertools.product(*axes)]


def zipped(*axes: Points) -> Points:
    """The first of each, the second of each, and so on.

    Raises:
      UsageError: axes of different lengths, or with a field in common.
    """
    if len(lengths := {len(points) for points in axes}) > 1:
        raise UsageError(f"zipped axes must be equally long, not {', '.join(map(str, sorted(lengths)))}")
    return [_joined(points) for points in zip(*axes, strict=True)]


def chain(*axes: Points) -> Points:
    """All of the first, then all of the second, and so on."""
    return list(itertools.chain(*axes))


def _joined(points: Sequence[Point]) -> Point:
    fields = [field for point in points for field in point]
    if twice := next((field for field in fields if fields.count(field) > 1), None):
        raise UsageError(f"two axes of {twice!r} are combined; chain them, or leave one out")
    return {field: value for point in points for field, value in point.items()}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs and merges at points: each set of ``config.FIELD`` is a run, each of ``merge.FIELD`` a merge of it.

    Attributes:
      name: of its folders.
      config: the configuration of all runs, ``configs/FILE.py[:ARGUMENT]``.
      points: what the axes make; ``config.seed`` repeats a point, all others tell arms apart.
      settings: fields of the configuration for all runs.
      merge: fields of all merges.
      title: of its page.
      measure: what merges are measured on.
    """

    name: str
    config: str
    points: Points
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    merge: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    title: str = ""
    measure: Measure = dataclasses.field(default_factory=Measure)

    def experiment(self) -> Experiment:
        """The experiment that these points are: each run, its last checkpoint, and its merges as arms.

        Raises:
          UsageError: no points; a point that is there twice; seeds that have different points.
        """
        if not self.points:
            raise UsageError(f"{self.name}: there are no points")
        seeds = list(dict.fromkeys(point[SEED] for point in self.points if SEED in point)) or [0]
        by_seed = {seed: [_without_seed(p) for p in self.points if p.get(SEED, seeds[0]) == seed] for seed in seeds}
        for seed, points in by_seed.items():
            if (twice := next((p for n, p in enumerate(points) if p in points[:n]), None)) is not None:
                raise UsageError(f"{self.name}: {_name(twice) or 'a point'} is there twice at seed {seed}")
            if points != by_seed[seeds[0]]:
                raise UsageError(f"{self.name}: seed {seed} has other points than seed {seeds[0]}")
        runs: dict[str, RunSpec] = {}
        arms: dict[str, Arm] = {}
        for point in by_seed[seeds[0]]:
            settings = {f.removeprefix(RUN): v for f, v in point.items() if f.startswith(RUN)}
            merge = {f.removeprefix(MERGE): v for f, v in point.items() if f.startswith(MERGE)}
            of_run = {f: v for f, v in point.items() if f.startswith(RUN)}
            run = _name(of_run) or "run"
            runs.setdefault(run, RunSpec(settings))
            arms.setdefault(f"{run} last" if of_run else "last", Arm(run, axes=of_run))
            if merge or self.merge:
                arms[_name(point) or "merge"] = Arm(run, {**self.merge, **merge}, axes=point)
        return Experiment(
            self.name,
            self.title or self.name,
            self.config,
            runs,
            arms,
            seeds=seeds,
            settings=self.settings,
            measure=self.measure,
        )


def _without_seed(point: Point) -> Point:
    return {field: value for field, value in point.items() if field != SEED}


def _name(point: Point) -> str:
    """The values of a point as the name of an arm or a folder: ``peak_lr=0.001,window=0.1run``."""
    return ",".join(f"{field.rpartition('.')[2]}={value}" for field, value in point.items())
