"""The weights of a merge that emulates a decay along a curve: Theorem 3.1 on the curve's grid."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from wsm_jax.core import coefficients
from wsm_jax.core.coefficients import Vector, check_count, checkpoint_weights, curve_update_weights, vector
from wsm_jax.core.decay import Curve, get_decay
from wsm_jax.core.weight_decay import decayed_checkpoint_weights, decayed_mean_weights
from wsm_jax.errors import UsageError


def merge_weights(
    curve: str | Curve,
    count: int,
    *,
    snapshot: str = "point",
    learning_rate: float | None = None,
    weight_decay: float = 0.0,
    steps_per_interval: int | None = None,
    steps: Sequence[int] | None = None,
    extrapolate: float | None = None,
    order: str | None = None,
) -> Vector:
    """Weights that make a merge of checkpoints, equally spaced unless ``steps`` says where, emulate a decay.

    ``snapshot="point"``: ``count`` weights for the checkpoints at the interval ends, oldest first, from
    w_i = f(i / count) (WSM, section 3 and Figure 2). The window is count x interval long, as the paper's Table 4 counts
    it; the oldest checkpoint lies count - 1 intervals before the newest, so the emulated decay stops one interval
    before f(1).

    ``snapshot="mean"`` (ours): count + 1 weights for ``count`` interval means, oldest first, and the end point:
    a_j - a_{j+1} for mean j and a_count for the end point, with a_0 = 1, a_j = f(j / count). It emulates a rate that
    is piecewise linear inside the intervals.

    With ``weight_decay`` the map accounts for AdamW's decoupled decay (ours, not the paper's; see
    :func:`decayed_checkpoint_weights` and :func:`decayed_mean_weights`). Apply it only to leaves that the optimizer
    decays.

    Args:
      curve: a name in DECAYS or a callable on (0, 1].
      count: number of checkpoints (point) or interval means (mean), at least 1.
      snapshot: "point" or "mean".
      learning_rate: the constant rate, needed with ``weight_decay``.
      weight_decay: decoupled decay per unit of learning rate; 0 gives the plain map.
      steps_per_interval: updates between checkpoints, needed with ``weight_decay`` unless ``steps`` tell.
      steps: of point checkpoints that are not equally spaced, oldest first, increasing: the curve is taken at
        t_i = (s_i - s_0) / L with L = (s_k - s_0) count / (count - 1), the length of a window of ``count`` intervals of
        the same mean, so that equal spacing gives the weights above.
      extrapolate: go past the merge by this factor, see :func:`wsm_jax.core.coefficients.extrapolated`; of interval
        means the first takes the place of the oldest checkpoint.
      order: ``reverse`` or ``scramble:SEED``, see :func:`wsm_jax.core.coefficients.reordered`; the end point keeps its
        weight. It comes last.

    Returns:
      float64, summing to 1; non-negative unless extrapolated.

    Raises:
      UsageError: a bad value, named.
    """
    check_count(count)
    if snapshot not in ("point", "mean"):
        raise UsageError(f"snapshot must be 'point' or 'mean', got {snapshot!r}")
    f = get_decay(curve)
    if snapshot == "mean":
        if steps is not None:
            raise UsageError("steps go with point checkpoints; interval means are equally spaced")
        w = np.asarray([float(f(j / count)) for j in range(1, count + 1)])
    elif count == 1:
        return np.ones(1)
    else:
        w = curve_update_weights(curve, count) if steps is None else _at(curve, count, steps)
    if not weight_decay:
        c = checkpoint_weights(w)
    else:
        intervals: Any = steps_per_interval if steps is None else np.diff(steps).tolist()
        if learning_rate is None or intervals is None:
            raise UsageError("weight_decay needs learning_rate and steps_per_interval beside it")
        aware = decayed_checkpoint_weights if snapshot == "point" else decayed_mean_weights
        c = aware(w, learning_rate=learning_rate, weight_decay=weight_decay, steps_per_interval=intervals)
    return altered(c, extrapolate=extrapolate, order=order, ends=int(snapshot == "mean"))


def _at(curve: str | Curve, count: int, steps: Sequence[int]) -> Vector:
    """The update weights w_1 .. w_k of checkpoints at ``steps``."""
    at = vector("steps", steps)
    if at.size != count or (np.diff(at) <= 0).any():
        raise UsageError(f"{count} checkpoints need {count} increasing steps, got {list(steps)}")
    f, shares = get_decay(curve), (at[1:] - at[0]) / (at[-1] - at[0]) * (count - 1) / count
    return np.asarray([float(f(share)) for share in shares])


def altered(weights: Vector, *, extrapolate: float | None = None, order: str | None = None, ends: int = 0) -> Vector:
    """``weights`` extrapolated and in another order, as :func:`merge_weights` says; the last ``ends`` keep their place.

    Raises:
      UsageError: a factor or an order that there is not.
    """
    if extrapolate is not None:
        weights = coefficients.extrapolated(weights, extrapolate)
    if order is not None:
        inner = weights.size - ends
        weights = np.concatenate((coefficients.reordered(weights[:inner], order), weights[inner:]))
    return weights
