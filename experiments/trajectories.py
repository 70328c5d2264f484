"""Checkpoints along one path of the parameters, also from a run on into its branch, and merges of them."""

from collections.abc import Mapping
from pathlib import Path

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints.run import Run
from wsm_jax.core.coefficients import Vector
from wsm_jax.core.merge_weights import merge_weights
from wsm_jax.errors import UsageError
from wsm_jax.merging.recipe import of_steps
from wsm_jax.merging.spec import MergeSpec

Trajectory = Mapping[int, Path]  # step -> checkpoint, oldest first


def along(*runs: Run) -> Trajectory:
    """The merge streams of a run and of its branches in turn, each up to where the next one starts."""
    found: dict[int, Path] = {}
    for run in runs:
        start = run.facts["branch_step"] or 0
        steps = orbax.complete_steps(run.merge_stream)
        found = {step: path for step, path in found.items() if step <= start}
        found |= {step: run.merge_stream / str(step) for step in steps if step > start}
    return found


def window(path: Trajectory, rule: str | Vector, count: int, end: int, apart: int = 1) -> MergeSpec:
    """The merge of ``count`` checkpoints that ends at step ``end``.

    Args:
      path: where they lie.
      rule: a decay curve, or the weights themselves.
      count: checkpoints.
      end: the newest one's step.
      apart: take every so many.

    Raises:
      UsageError: there are not so many before ``end``.
    """
    steps = [step for step in path if step <= end]
    chosen = steps[::-1][::apart][:count][::-1]
    if len(chosen) < count or chosen[-1] != end:
        raise UsageError(f"there are no {count} checkpoints, {apart} apart, up to step {end}: {steps}")
    weights = merge_weights(rule, count) if isinstance(rule, str) else rule
    return of_steps(tuple(path[step] for step in chosen), (orbax.PARAMS,) * count, weights)
