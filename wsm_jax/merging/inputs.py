"""Checkpoints given one by one, or as a folder of steps: their order, their weights, what is unusual about them."""

import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from wsm_jax.core.coefficients import Vector
from wsm_jax.core.leaf_weights import Weights
from wsm_jax.core.merge_weights import altered
from wsm_jax.errors import UsageError
from wsm_jax.merging import steps as steps_lib
from wsm_jax.merging import weighting
from wsm_jax.merging.weighting import Rule

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)


def parse_input(text: str) -> tuple[str, float | None]:
    """``PATH[:WEIGHT]``, split at the last ``:`` only where a number follows and ``text`` is not itself a path.

    Raises:
      UsageError: a weight that is not finite.
    """
    path, colon, weight = text.rpartition(":")
    if not (colon and path and _NUMBER.fullmatch(weight)) or os.path.exists(text):
        return text, None
    if not math.isfinite(float(weight)):
        raise UsageError(f"the weight of {path} is {weight}; it must be a finite number")
    return path, float(weight)


def input_weights(
    inputs: Sequence[tuple[str, float | None]],
    rule: Rule,
    *,
    has_curve: bool = True,
    steps: Sequence[int] | None = None,
) -> Vector:
    """One weight for each input: as given, of a rule that needs no run, or uniform.

    Args:
      inputs: (path, weight).
      rule: how to weigh them; its ``extrapolate`` and ``order`` change given weights, too.
      has_curve: whether the rule was asked for.
      steps: where the curve of the rule is taken; default: by index.

    Raises:
      UsageError: weights and a curve together, weights for some inputs only, a rule that needs a run.
    """
    given = [weight for _, weight in inputs if weight is not None]
    if given and has_curve:
        raise UsageError("give weights after the inputs or --curve, not both")
    if given and len(given) != len(inputs):
        bare = next(path for path, weight in inputs if weight is None)
        raise UsageError(f"{bare} has no weight but other inputs do; give all of them one or none")
    if given:
        return altered(np.asarray(given), **rule.changes)
    return weighting.count_weights(rule, len(inputs), steps=steps)


def check_order(paths: Sequence[str]) -> None:
    """Raises UsageError where checkpoints of one series, told by the steps in their names, are not in order.

    A curve gives weights by age, and a shell sorts 1000 before 920.
    """
    ordered = steps_lib.sorted_series(paths)
    if ordered == list(paths):
        return
    wrong = next(path for path, right in zip(paths, ordered, strict=True) if path != right)
    raise UsageError(
        f"{wrong} is not in the order of the steps, but a curve takes the oldest first; give {shlex.join(ordered)}"
    )


def uneven(steps: Sequence[int] | None, rule: Rule) -> str | None:
    """What to say where a curve is taken by index over steps that are not evenly spaced."""
    if steps is None or rule.is_uniform or steps_lib.are_even(steps):
        return None
    return (
        f"the steps {', '.join(map(str, steps))} are not evenly spaced, and {rule.name} weighs them by index; "
        "--spacing=true takes a decay curve at the true steps"
    )


def negative(paths: Sequence[str | os.PathLike], weights: Weights) -> str | None:
    """What to say of weights below zero, in one line; None where there are none."""
    vectors = list(weights.values()) if isinstance(weights, Mapping) else [np.asarray(weights)]
    lowest = np.min(vectors, axis=0)
    if not (below := np.flatnonzero(lowest < 0)).size:
        return None
    least = int(lowest.argmin())
    if below.size == 1:
        return f"the weight of {paths[least]} is negative, {lowest[least]:g}"
    return f"{below.size} weights are negative; the least, {lowest[least]:g}, is that of {paths[least]}"


def odd_sum(given: Iterable[float]) -> str | None:
    """What to say of given weights that do not sum to 1, within 1e-6."""
    weights = list(given)
    total = math.fsum(weights)
    return (
        None
        if not weights or abs(total - 1.0) <= 1e-6
        else f"the weights sum to {total:.9g}, not to 1; they are used as given"
    )
