"""What an arm reads: a checkpoint of its run, or a window of them that may reach back into the run's parents."""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from wsm_jax.checkpoints import run_schedule
from wsm_jax.checkpoints.orbax import PARAMS
from wsm_jax.checkpoints.run import Run
from wsm_jax.errors import UsageError
from wsm_jax.evaluation import evaluate
from wsm_jax.merging import recipe, selection, weighting
from wsm_jax.merging.selection import MEAN, Window
from wsm_jax.merging.spec import Input, MergeSpec
from wsm_jax.merging.weighting import Rule
from wsm_jax.sweeps.experiment import Arm
from wsm_jax.sweeps.runs import PlannedRun
from wsm_jax.training import averaging
from wsm_jax.training.optimizer import SCHEDULE_FREE

# Fields of a merge -> the types they may have; all but the first as the flags of `wsm merge`.
FIELDS: Mapping[str, tuple[type, ...]] = {
    "curve": (str,),
    "count": (int,),
    "interval": (int, str),  # a duration, too
    "window": (str,),
    "snapshot": (str,),
    "weight_decay_aware": (bool,),
    "extrapolate": (int, float),
    "order": (str,),
}
CURVE = "linear"  # the plain mean, where a merge names none


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an arm reads, in steps.

    Attributes:
      run: the arm's.
      step: of the checkpoint, or of the newest one in the window.
      item: what is read of each.
      window: the checkpoints of a merge; None: no merge.
      rule: how they are weighed.
      aware: whether by the weight-decay-aware form.
    """

    run: PlannedRun
    step: int
    item: str = PARAMS
    window: Window | None = None
    rule: Rule | None = None
    aware: bool = False

    @property
    def record(self) -> dict[str, Any]:
        """The merge as records hold it, empty where there is none."""
        if self.window is None or self.rule is None:
            return {}
        shape = {name: getattr(self.window, name) for name in ("count", "interval", "snapshot")}
        aware = {"weight_decay_aware": True} if self.aware else {}
        return {"curve": self.rule.name, **shape, **aware, **self.rule.changes}

    @property
    def in_warmup(self) -> bool:
        """Whether the window reaches into the warm-up of the run that it begins in."""
        if self.window is None:
            return False
        first = self.run.lineage[0]
        return self.window.steps[0] < run_schedule.warmup_end(first.config, first.branch_step)


def reading(run: PlannedRun, arm: Arm) -> Reading:
    """What ``arm`` will read once its run, and those that it was branched from, are trained.

    Raises:
      UsageError: a field or value that there is not; checkpoints that the runs will not save.
    """
    return _merge(run, arm) if arm.merge else _checkpoint(run, arm)


def _checkpoint(run: PlannedRun, arm: Arm) -> Reading:
    plan, kept = run.plan, run.config.checkpoint.snapshot
    step = _end(run, arm, plan.steps)
    averages = averaging.from_config(run.config, run_schedule.from_config(run.config, run.branch_step))
    free = [SCHEDULE_FREE] if run.config.optimizer.name == SCHEDULE_FREE else []
    items = {PARAMS: kept != MEAN, **dict.fromkeys([*averages, *free], True)}
    if arm.item not in items:
        raise UsageError(f"item={arm.item!r} is not kept by run {run.name!r}; it keeps {', '.join(items)}")
    full = {*plan.branch_points, plan.steps} if arm.item == PARAMS else set()
    if step not in full and not (items[arm.item] and step in plan.merge_steps()):
        raise UsageError(
            f"run {run.name!r} saves no {arm.item} at step {step}; its checkpoints come every {plan.merge_interval} "
            "steps (checkpoint.branch_points names further ones)"
        )
    return Reading(run, step, arm.item)


def _merge(run: PlannedRun, arm: Arm) -> Reading:
    merge = _fields(arm.merge)
    rule = weighting.parse(merge.get("curve", CURVE))
    rule = weighting.changed(rule, extrapolate=merge.get("extrapolate"), order=merge.get("order"))
    interval = merge.get("interval")
    if isinstance(interval, str):
        interval = run.config.duration_steps("interval", interval)
    asked = _along(run)
    count, interval = selection.window_shape(
        asked, window=merge.get("window"), count=merge.get("count"), interval=interval
    )
    snapshot = selection.choose_snapshot(asked, merge.get("snapshot"))
    path, own = paths(run), run.plan.merge_interval
    end = _end(run, arm, (run.plan.merge_steps() or [0])[-1])
    bounds = {"interval": interval, "snapshot": snapshot, "last_step": end}
    windows = selection.windows_over(asked, list(path), count, own, **bounds)
    if not windows or windows[-1].steps[-1] != end:
        raise UsageError(
            f"there are no {count} checkpoints every {interval} steps up to step {end}; there are "
            f"{', '.join(map(str, path)) if len(path) < 9 else f'{len(path)}, from {min(path)} to {max(path)}'}"
        )
    found = Reading(run, end, arm.item, windows[-1], rule, bool(merge.get("weight_decay_aware")))
    _check_parents(found, path)
    if snapshot == MEAN and (rule.curve is None or arm.item != PARAMS):
        raise UsageError(f"interval means take a decay curve, mean or lawa, and no item; not {rule.name}, {arm.item}")
    if found.aware and count > 1:
        weighting.constant_rate(run, windows[-1])  # pyrefly: ignore  # complains
    return found


def _fields(merge: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in merge.items():
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(FIELDS)}"
            raise UsageError(f"{name!r} is no field of a merge; {hint}")
        kinds = FIELDS[name]
        if not isinstance(value, kinds) or isinstance(value, bool) != (kinds == (bool,)):
            kind = " or ".join({int: "a whole number", str: "a text"}.get(k, f"a {k.__name__}") for k in kinds)
            raise UsageError(f"merge.{name} is {value!r}; it must be {kind}")
    return dict(merge)


def _end(run: PlannedRun, arm: Arm, default: int) -> int:
    if not arm.at:
        return default
    step, start = run.config.duration_steps("at", arm.at), run.branch_step or 0
    if not start < step <= run.plan.steps:
        raise UsageError(
            f"at={arm.at!r} is step {step}, but run {run.name!r} goes from step {start} to {run.plan.steps}"
        )
    return step


def paths(run: PlannedRun) -> dict[int, PlannedRun]:
    """Step -> the run whose merge stream holds that checkpoint, along a run and its parents; oldest first."""
    found: dict[int, PlannedRun] = {}
    for each in run.lineage:
        start = each.branch_step or 0
        own = [step for step in each.plan.merge_steps() if step > start][-each.config.checkpoint.merge_keep :]
        found = {step: other for step, other in found.items() if step <= start} | dict.fromkeys(own, each)
    return found


def _along(run: PlannedRun) -> Any:
    """A run as selection and weighting ask for it, whose means begin where the first of its parents does.

    A branch between two checkpoints cuts a mean in two, so there they begin anew.
    """
    interval = run.plan.merge_interval
    cuts = [each.branch_step for each in run.lineage[1:] if (each.branch_step or 0) % interval]
    first = cuts[-1] if cuts else run.lineage[0].branch_step
    return SimpleNamespace(
        path=run.path, config=run.config, plan=run.plan, merge_stream=run.merge_stream, facts={"branch_step": first}
    )


def _check_parents(found: Reading, path: Mapping[int, PlannedRun]) -> None:
    """Raises UsageError where a window reaches into parents that keep something else than it takes."""
    assert found.window is not None and found.rule is not None
    own = found.run.plan.merge_interval
    for step in selection.saved_steps(found.window, own):
        parent = path[step]
        if parent is found.run:
            continue
        if found.rule.best:
            raise UsageError(f"{found.rule.name} reaches into run {parent.name!r}, whose losses it does not see")
        selection.choose_snapshot(_along(parent), found.window.snapshot)  # complains
        if found.window.snapshot == MEAN and parent.plan.merge_interval != own:
            raise UsageError(f"its means reach into run {parent.name!r}, which has another checkpoint.merge_interval")


def spec(found: Reading) -> MergeSpec:
    """The merge, or the one checkpoint, of runs that are trained.

    Raises:
      UsageError: a checkpoint that is not there, losses that :func:`reading` could not know of.
    """
    run = Run(found.run.path)
    if found.window is None or found.rule is None:
        path = evaluate.checkpoint_path(run, step=found.step, item=found.item)
        return recipe.of_steps((path,), (found.item,), np.ones(1))
    made = recipe.window_recipe(found.rule, run, found.window, item=found.item, weight_decay_aware=found.aware)
    owners = {step: owner.merge_stream for step, owner in paths(found.run).items()}
    return dataclasses.replace(made, inputs=tuple(_of_parent(one, run.merge_stream, owners) for one in made.inputs))


def _of_parent(one: Input, stream: Path, owners: Mapping[int, Path]) -> Input:
    """An input of a run's merge stream where it is: maybe in that of a parent."""
    if one.path.parent != stream or one.step is None:  # a full state at the end of a window
        return one
    return dataclasses.replace(one, path=owners[one.step] / str(one.step))
