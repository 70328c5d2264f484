"""From decay curves to merge weights and back (WSM, Theorem 3.1), and the weight-decay-aware form.

Notation, oldest first. A window holds ``count`` checkpoints theta_0 .. theta_k, k = count - 1, saved every interval;
w_i (i = 1..k) scales the updates of interval i, as a learning rate would; c_j (j = 0..k) weighs checkpoint j:

    sum_j c_j theta_j = theta_0 + sum_i w_i (theta_i - theta_{i-1}),    w_i = sum_{j >= i} c_j.

Everything is float64 numpy: vectors of at most some thousand numbers that must be exact to rounding.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from wsm_jax.decay import Curve, get_decay
from wsm_jax.errors import UsageError

Vector = np.ndarray


def _vector(name: str, values: Any) -> Vector:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise UsageError(f"{name} must be a non-empty vector, got shape {vector.shape}")
    bad = np.flatnonzero(~np.isfinite(vector))
    if bad.size:
        raise UsageError(f"{name}[{bad[0]}] is {vector[bad[0]]}; every weight must be a finite number")
    return vector


def checkpoint_weights(update_weights: Any) -> Vector:
    """Weights of the checkpoints that scale the updates by ``update_weights`` (Theorem 3.1).

    c_k = w_k;  c_j = w_j - w_{j+1};  c_0 = 1 - w_1.

    Args:
      update_weights: w_1 .. w_k, oldest first, 1 >= w_1 >= ... >= w_k >= 0.

    Returns:
      float64 [k + 1], oldest first, non-negative, summing to 1.

    Raises:
      UsageError: empty, not finite, outside [0, 1], or increasing somewhere.
    """
    w = _vector("update_weights", update_weights)
    outside = np.flatnonzero((w < 0) | (w > 1))
    if outside.size:
        raise UsageError(f"update_weights[{outside[0]}] is {w[outside[0]]}; it must lie in [0, 1]")
    rises = np.flatnonzero(np.diff(w) > 0)
    if rises.size:
        i = int(rises[0])
        raise UsageError(
            f"update_weights must not increase, but [{i + 1}] = {w[i + 1]} follows [{i}] = {w[i]}: "
            "that would need a negative checkpoint weight"
        )
    # The falls of (1, w_1, ..., w_k, 0); differences of neighbours sum to 1 by telescoping.
    whole = np.concatenate(([1.0], w, [0.0]))
    return whole[:-1] - whole[1:]


def update_weights(checkpoint_weights: Any) -> Vector:
    """The inverse of :func:`checkpoint_weights`: w_i = sum of c_j over j >= i.

    Args:
      checkpoint_weights: c_0 .. c_k, oldest first, non-negative, summing to 1 within 1e-6.

    Returns:
      float64 [k]; empty for a single checkpoint.

    Raises:
      UsageError: empty, not finite, negative, or not summing to 1.
    """
    c = _vector("checkpoint_weights", checkpoint_weights)
    negative = np.flatnonzero(c < 0)
    if negative.size:
        raise UsageError(f"checkpoint_weights[{negative[0]}] is {c[negative[0]]}; it must not be negative")
    if abs(c.sum() - 1.0) > 1e-6:
        raise UsageError(f"checkpoint_weights sum to {c.sum():.9g}, not to 1")
    return np.cumsum(c[:0:-1])[::-1]


def curve_update_weights(curve: str | Curve, count: int) -> Vector:
    """w_i = f(i / count), i = 1 .. count - 1: the paper's grid over a window of ``count`` intervals.

    Raises:
      UsageError: unknown curve; count below 1; a curve that leaves [0, 1] or increases on the grid.
    """
    _check_count(count)
    f = get_decay(curve)
    w = np.asarray([float(f(i / count)) for i in range(1, count)], dtype=np.float64)
    if count > 1:
        checkpoint_weights(w)  # for its errors
    return w


def _check_count(count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise UsageError(f"count must be a whole number of at least 1, got {count!r}")


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
    _check_count(count)
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


def wma_weights(count: int) -> Vector:
    """The weighted moving average over checkpoints: weights proportional to the index, the oldest counting 1.

    With n = count: c_j = 2 (j + 1) / (n (n + 1)), so w_i = 1 - i (i + 1) / (n (n + 1)), which tends to the curve
    ``square`` as n grows. Source: WMA of PMA, "Model Merging in Pre-training of LLMs" (arXiv 2505.12082).

    Returns:
      float64 [count], oldest first, non-negative, summing to 1.

    Raises:
      UsageError: count below 1.
    """
    _check_count(count)
    return np.arange(1, count + 1, dtype=np.float64) / (count * (count + 1) / 2)


def ema_weights(count: int, decay: float) -> Vector:
    """The recursive average over checkpoints, m_0 = theta_0 and m_j = decay m_{j-1} + (1 - decay) theta_j.

    With k = count - 1: c_0 = decay^k and c_j = (1 - decay) decay^(k - j) for j >= 1, so w_i = 1 - decay^(k - i + 1).
    Source: EMA of PMA (arXiv 2505.12082). It is not the curve ``ema`` of DECAYS: that one, of WSM's Figure 2, is the
    case decay = 0.1^(1 / count), where the oldest checkpoint has about a tenth however long the window is.

    Args:
      count: number of checkpoints, at least 1.
      decay: what is kept of the average when a checkpoint is added, 0 <= decay < 1; 0 is the newest alone.

    Returns:
      float64 [count], oldest first, non-negative, summing to 1.

    Raises:
      UsageError: count below 1, decay outside [0, 1).
    """
    _check_count(count)
    if not 0.0 <= decay < 1.0:
        raise UsageError(f"the decay of an EMA over checkpoints must lie in [0, 1), got {decay}")
    kept = float(decay) ** np.arange(count - 1, -1, -1)  # decay^(k - j)
    return np.concatenate((kept[:1], (1.0 - decay) * kept[1:]))


def decayed_checkpoint_weights(
    update_weights: Any, *, learning_rate: float, weight_decay: float, steps_per_interval: int | Sequence[int]
) -> Vector:
    """Theorem 3.1 for an optimizer with decoupled weight decay (ours; the paper ignores weight decay).

    AdamW multiplies the weights by 1 - lr * wd at every step, so old updates fade inside every checkpoint. With T
    steps an interval, rho = (1 - lr wd)^T and rho_i = (1 - w_i lr wd)^T for the emulated run,
    s_i = (1 - rho_i) / (1 - rho) and target_i = s_i * prod_{j > i} rho_j:

        c_k = target_k,   c_i = target_i - rho target_{i+1}  (k > i >= 1),   c_0 = prod_j rho_j - rho target_1.

    Exact where the update direction is constant within each interval. On directions of pure noise (1-sqrt, lr 4.78e-4,
    wd 0.1, 16 intervals of 1,490 steps) it misses the really decayed run's displacement by 0.08% from a N(0, 1) start,
    where the decay of the start dominates, and by 1.06% from the origin; the plain map misses it by 13.4% from both.

    Args:
      update_weights: w_1 .. w_k as for :func:`checkpoint_weights`.
      learning_rate: the constant rate of the run.
      weight_decay: decay per unit of learning rate.
      steps_per_interval: T, or one T for each interval.

    Returns:
      float64 [k + 1], non-negative, summing to 1.

    Raises:
      UsageError: weights that :func:`checkpoint_weights` refuses; lr * wd outside (0, 1); T below 1, or not one
        for each interval.
    """
    checkpoint_weights(update_weights)  # the same conditions hold
    w = _vector("update_weights", update_weights)
    shrink = _shrink(learning_rate, weight_decay)
    steps = np.asarray(steps_per_interval, dtype=np.float64)
    if not np.all(steps >= 1):
        raise UsageError(f"steps_per_interval must be at least 1, got {steps_per_interval!r}")
    if steps.shape not in ((), w.shape):
        raise UsageError(f"steps_per_interval has {steps.size} values for {w.size} intervals")
    steps = np.broadcast_to(steps, w.shape)
    rho = np.exp(steps * np.log1p(-shrink))
    # expm1/log1p keep s_i -> w_i accurate to rounding as lr * wd -> 0.
    one_minus_rho_i = -np.expm1(steps * np.log1p(-w * shrink))
    s = one_minus_rho_i / -np.expm1(steps * np.log1p(-shrink))
    rho_i = 1.0 - one_minus_rho_i
    after = np.concatenate((np.cumprod(rho_i[::-1])[::-1], [1.0]))  # after[i]: product over the intervals from i on
    target = s * after[1:]
    c = np.empty(w.size + 1)
    c[1:-1] = target[:-1] - rho[1:] * target[1:]
    c[-1] = target[-1]
    c[0] = after[0] - rho[0] * target[0]
    return np.maximum(c, 0.0)  # where w_i = w_{i+1} = 1 the difference may round to -1e-16


def decayed_mean_weights(
    update_weights: Any, *, learning_rate: float, weight_decay: float, steps_per_interval: int
) -> Vector:
    """The weights of interval means and end point for an optimizer with decoupled weight decay (ours).

    In a run that keeps q = 1 - l of its weights at a step, l = lr wd, an update is present in the merge with a share
    that is a constant plus an exponential within each interval of T steps. The share that the emulated run, at rate
    a(t), has of update t is h(t) = a(t) prod_{s > t} (1 - a(s) l). The two are made equal at the first update of every
    interval, h_1 = h(0), ..., h_K, and at the one after the window, h_{K+1} = a_K / (1 - a_K l):

        c_j = (h_j - q^T h_{j+1}) T l / (1 - q^T),   c_end = q h_{K+1},   divided by their sum.

    Without the division the start of the window has its share exactly, as a_0 = 1; with it a parameter at rest stays
    where it is. On directions of pure noise (linear, lr 4.78e-4, wd 0.1, 16 intervals of 1,490 steps) it misses the
    really decayed run's displacement by 0.06% from the origin, for 1-sqrt, steep where it starts, by 0.15%; the plain
    weights miss them by 8.3% and 11.9%.

    Args:
      update_weights: a_1 .. a_K, K the number of means, as for :func:`checkpoint_weights`; a_0 is 1.
      learning_rate: the constant rate of the run.
      weight_decay: decay per unit of learning rate.
      steps_per_interval: T.

    Returns:
      float64 [K + 1], the means oldest first, then the end point; non-negative, summing to 1.

    Raises:
      UsageError: weights that :func:`checkpoint_weights` refuses; lr * wd outside (0, 1); T below 1, or so long that
        the sum before the division is off by more than a tenth.
    """
    checkpoint_weights(update_weights)  # the same conditions hold
    a = np.concatenate(([1.0], _vector("update_weights", update_weights)))
    shrink, steps = _shrink(learning_rate, weight_decay), steps_per_interval
    if np.ndim(steps) or not steps >= 1:
        raise UsageError(f"steps_per_interval must be one number of at least 1, got {steps_per_interval!r}")
    inside = np.arange(steps) / steps
    # log of what the emulated run keeps of its weights over each interval, then from each interval to the end
    kept = [np.log1p(-shrink * (left + (right - left) * inside)).sum() for left, right in itertools.pairwise(a)]
    to_the_end = np.append(np.cumsum(kept[::-1])[::-1], 0.0)
    h = a * np.exp(to_the_end - np.log1p(-shrink * a))
    rho = np.exp(steps * np.log1p(-shrink))
    c = (h[:-1] - rho * h[1:]) * steps * shrink / -np.expm1(steps * np.log1p(-shrink))
    c = np.maximum(np.append(c, (1.0 - shrink) * h[-1]), 0.0)  # where a is 1 the difference may round to -1e-16
    if abs(c.sum() - 1.0) > 0.1:
        raise UsageError(
            f"intervals of {steps} steps are too long for a decay of {shrink:.3g} a step: means over them do not show "
            "the start of each; take shorter ones"
        )
    return c / c.sum()


def _shrink(learning_rate: float, weight_decay: float) -> float:
    shrink = float(learning_rate) * float(weight_decay)
    if not 0.0 < shrink < 1.0:
        raise UsageError(f"learning_rate * weight_decay is {shrink}; it must lie between 0 and 1")
    return shrink
