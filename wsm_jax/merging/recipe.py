"""What a merge of a run reads: checkpoints, the item of each, and their weights."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints.orbax import PARAMS
from wsm_jax.checkpoints.run import Run
from wsm_jax.core.coefficients import Vector
from wsm_jax.core.decay import DECAYS
from wsm_jax.core.leaf_weights import Weights
from wsm_jax.errors import UsageError
from wsm_jax.merging import selection, steps, weighting
from wsm_jax.merging.selection import MEAN, POINT, Window
from wsm_jax.merging.spec import Input, MergeSpec
from wsm_jax.merging.weighting import Rule


def make_recipe(
    run: Run,
    rule: Rule | str,
    count: int,
    *,
    snapshot: str | None = None,
    interval: int | None = None,
    last_step: int | None = None,
    weight_decay_aware: bool = False,
) -> MergeSpec:
    """The recipe of ``wsm merge --run=RUN --curve=RULE --count=COUNT``.

    Args:
      run: the run.
      rule: one of :data:`wsm_jax.merging.weighting.NAMES`, or a rule.
      count: checkpoints in the window, or intervals whose means are merged.
      snapshot: ``point`` or ``mean``; default: ``mean`` where the run keeps nothing else.
      interval: steps between the checkpoints, or of each mean; default: the merge stream's own.
      last_step: end of the window; default: the newest checkpoint.
      weight_decay_aware: see :func:`wsm_jax.merging.weighting.window_weights`.

    Raises:
      UsageError: as the command: a bad value or a checkpoint that is missing, named.
    """
    rule = weighting.parse(rule) if isinstance(rule, str) else rule
    chosen = selection.choose_snapshot(run, snapshot)
    window = selection.select(run, count, last_step=last_step, interval=interval, snapshot=chosen)
    return window_recipe(rule, run, window, weight_decay_aware=weight_decay_aware)


def window_recipe(
    rule: Rule, run: Run, window: Window, *, item: str = PARAMS, weight_decay_aware: bool = False
) -> MergeSpec:
    """The recipe of a merge of ``window``.

    The mean over r intervals of the stream is the plain mean of their means, so each of those takes 1/r of its weight.
    The parameters at the end of the window come last, only where their weight is not zero.

    Args:
      rule: how the window is weighed.
      run: the run.
      window: of :func:`wsm_jax.merging.selection.select` or ``series``.
      item: what is read of point checkpoints.
      weight_decay_aware: see :func:`wsm_jax.merging.weighting.window_weights`.

    Raises:
      UsageError: as :func:`wsm_jax.merging.weighting.window_weights`; the parameters at the end are needed and nowhere.
    """
    weights = weighting.window_weights(rule, run, window, weight_decay_aware=weight_decay_aware)
    if window.snapshot == POINT:
        return of_steps(window.paths, (item,) * window.count, weights)
    paths = [run.merge_stream / str(step) for step in selection.saved_steps(window, run.plan.merge_interval)]
    items = [MEAN] * len(paths)
    parts = len(paths) // window.count
    last = max(vector[-1] for vector in (weights.values() if isinstance(weights, dict) else [weights]))
    if last:
        paths.append(_needed_end_point(run, window.steps[-1], rule.name, last))
        items.append(PARAMS)

    def layout(vector: Vector) -> Vector:
        return np.append(np.repeat(vector[:-1] / parts, parts), vector[-1])[: len(paths)]

    return of_steps(paths, items, weighting.each(layout, weights))


def of_steps(paths: Sequence[Path], items: Sequence[str], weights: Weights) -> MergeSpec:
    """The merge of ``paths``, whose names tell their steps, with the item of each."""
    read = zip(paths, items, strict=True)
    return MergeSpec(tuple(Input(path, item, steps.step_of(path)) for path, item in read), weights)


def end_point(run: Run, step: int) -> Path | None:
    """The checkpoint that holds the parameters at ``step``: of the merge stream, else a full state, else None."""
    for stream in (run.merge_stream, run.resume_stream):
        if orbax.is_checkpoint(stream / str(step)) and PARAMS in orbax.item_names(stream / str(step)):
            return stream / str(step)
    return None


def _needed_end_point(run: Run, step: int, rule: str, weight: float) -> Path:
    if there := end_point(run, step):
        return there
    ending = ", ".join(name for name, curve in DECAYS.items() if curve(1.0) == 0)
    states = ", ".join(map(str, orbax.complete_steps(run.resume_stream))) or "none"
    raise UsageError(
        f"{rule} gives the parameters at step {step} a weight of {weight:.3g}, but {run.path} has none there (full "
        f"states: {states}); take a curve that ends at 0 ({ending}), a window that ends at a full state, or train with "
        "checkpoint.snapshot=both"
    )
