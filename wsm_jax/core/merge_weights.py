"""The weights of a merge that emulates a decay along a curve: Theorem 3.1 on the curve's grid."""

import numpy as np

from wsm_jax.core.coefficients import Vector, check_count, checkpoint_weights, curve_update_weights
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
) -> Vector:
    """Weights that make a merge of equally spaced checkpoints emulate a decay along ``curve``.

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
      steps_per_interval: updates between checkpoints, needed with ``weight_decay``.

    Returns:
      float64, non-negative, summing to 1.

    Raises:
      UsageError: a bad value, named.
    """
    check_count(count)
    if snapshot not in ("point", "mean"):
        raise UsageError(f"snapshot must be 'point' or 'mean', got {snapshot!r}")
    f = get_decay(curve)
    if snapshot == "mean":
        w = np.asarray([float(f(j / count)) for j in range(1, count + 1)])
    elif count == 1:
        return np.ones(1)
    else:
        w = curve_update_weights(curve, count)
    if not weight_decay:
        return checkpoint_weights(w)
    if learning_rate is None or steps_per_interval is None:
        raise UsageError("weight_decay needs learning_rate and steps_per_interval beside it")
    aware = decayed_checkpoint_weights if snapshot == "point" else decayed_mean_weights
    return aware(w, learning_rate=learning_rate, weight_decay=weight_decay, steps_per_interval=steps_per_interval)
