"""What a merge of a run reads: checkpoints, the item of each, and their weights; several recipes read in one pass."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints.orbax import PARAMS
from wsm_jax.checkpoints.run import Run
from wsm_jax.core.coefficients import Vector
from wsm_jax.core.decay import DECAYS
from wsm_jax.core.leaves import Weights
from wsm_jax.errors import UsageError
from wsm_jax.merging import selection, steps, weighting
from wsm_jax.merging.selection import MEAN, POINT, Window
from wsm_jax.merging.weighting import Rule


class Input(NamedTuple):
    """A checkpoint to read: its folder, the item (None: `params`, else the only one), its step if its name tells."""

    path: Path
    item: str | None
    step: int | None


class Recipe(NamedTuple):
    """What one merge reads and how it weighs it: of windows of a run, of a folder of steps, of inputs given one by one.

    Attributes:
      paths: folders of checkpoints, oldest first; one that two items are read of comes twice.
      items: the item to read of each.
      weights: as for :func:`wsm_jax.merge`: float64 [inputs], or a mapping from each leaf's path to that.
    """

    paths: tuple[Path, ...]
    items: tuple[str | None, ...]
    weights: Weights

    @property
    def steps(self) -> tuple[int | None, ...]:
        """The step of each input."""
        return tuple(steps.step_of(path) for path in self.paths)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Path, item and step of each input."""
        return tuple(map(Input, self.paths, self.items, self.steps))


def make_recipe(
    run: Run,
    rule: Rule | str,
    count: int,
    *,
    snapshot: str | None = None,
    interval: int | None = None,
    last_step: int | None = None,
    weight_decay_aware: bool = False,
) -> Recipe:
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
) -> Recipe:
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
        return Recipe(window.paths, (item,) * window.count, weights)
    paths = [run.merge_stream / str(step) for step in selection.saved_steps(window, run.plan.merge_interval)]
    items = [MEAN] * len(paths)
    parts = len(paths) // window.count
    last = max(vector[-1] for vector in (weights.values() if isinstance(weights, dict) else [weights]))
    if last:
        paths.append(_needed_end_point(run, window.steps[-1], rule.name, last))
        items.append(PARAMS)

    def layout(vector: Vector) -> Vector:
        return np.append(np.repeat(vector[:-1] / parts, parts), vector[-1])[: len(paths)]

    return Recipe(tuple(paths), tuple(items), weighting.each(layout, weights))


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


def union(recipes: Mapping[str, Recipe]) -> tuple[tuple[Path, ...], tuple[str | None, ...], dict[str, Weights]]:
    """Everything that recipes of one run read, each once, for :func:`wsm_jax.merge_many` to read in one pass.

    Args:
      recipes: name -> recipe.

    Returns:
      the paths, oldest first; the item of each; and name -> weights over them, zero where a recipe leaves one out.
    """
    inputs = {
        (step or 0, item == PARAMS, path, item)  # the end point after the mean that ends there
        for recipe in recipes.values()
        for step, path, item in zip(recipe.steps, recipe.paths, recipe.items, strict=True)
    }
    keys = [(path, item) for *_, path, item in sorted(inputs)]
    places = {key: place for place, key in enumerate(keys)}
    weights = {
        name: spread(
            recipe.weights,
            np.asarray([places[key] for key in zip(recipe.paths, recipe.items, strict=True)]),
            len(keys),
        )
        for name, recipe in recipes.items()
    }
    return tuple(path for path, _ in keys), tuple(item for _, item in keys), weights


def spread(weights: Weights, places: np.ndarray, length: int) -> Weights:
    """The weights at ``places`` of vectors of ``length``, zero elsewhere."""

    def one(vector: Vector) -> Vector:
        wide = np.zeros(length)
        wide[places] = vector
        return wide

    return weighting.each(one, weights)
