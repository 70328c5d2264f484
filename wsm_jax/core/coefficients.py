"""From decay curves to merge weights and back (WSM, Theorem 3.1), and the weight-decay-aware form.

Notation, oldest first. A window holds ``count`` checkpoints theta_0 .. theta_k, k = count - 1, saved every interval;
w_i (i = 1..k) scales the updates of interval i, as a learning rate would; c_j (j = 0..k) weighs checkpoint j:

    sum_j c_j theta_j = theta_0 + sum_i w_i (theta_i - theta_{i-1}),    w_i = sum_{j >= i} c_j.

Everything is float64 numpy: vectors of at most some thousand numbers that must be exact to rounding.
"""

import re
from typing import Any

import numpy as np

from wsm_jax.core.decay import Curve, get_decay
from wsm_jax.errors import UsageError

Vector = np.ndarray

MOST = 10**6  # checkpoints; a count beyond it is a slip of the finger


def vector(name: str, values: Any) -> Vector:
    """``values`` as float64 [n]; raises UsageError, naming ``name``, where they are empty or not finite."""
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
    w = vector("update_weights", update_weights)
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
    c = vector("checkpoint_weights", checkpoint_weights)
    negative = np.flatnonzero(c < 0)
    if negative.size:
        raise UsageError(f"checkpoint_weights[{negative[0]}] is {c[negative[0]]}; it must not be negative")
    if abs(c.sum() - 1.0) > 1e-6:
        raise UsageError(f"checkpoint_weights sum to {c.sum():.9g}, not to 1")
    return tail_sums(c)


def tail_sums(checkpoint_weights: Vector) -> Vector:
    """w_i = sum of c_j over j >= i of any weights: what :func:`update_weights` is without its checks. float64 [k]."""
    return np.cumsum(checkpoint_weights[:0:-1])[::-1]


def extrapolated(weights: Vector, factor: float) -> Vector:
    """Weights of the point that lies ``factor`` times as far from the oldest checkpoint as the merge of ``weights``.

    theta_0 + a (merge - theta_0), so c'_j = a c_j and c'_0 = 1 - a (1 - c_0): every update weight w_i becomes a w_i.
    a = 1 is the merge; past it the oldest checkpoint weighs less than nothing as soon as a (1 - c_0) > 1. Extra-Merge
    (arXiv 2605.26484) finds that consecutive merges move along nearly one line and goes on along it; the way from where
    the window begins to its merge is that direction here, within the checkpoints of one window. Along the line through
    two merges A and B, made before, it is a merge of both with the weights 1 - a and a.

    Args:
      weights: c_0 .. c_k, oldest first, float64.
      factor: a, at least 1.

    Returns:
      float64 of the same length; it sums to 1 where ``weights`` do.

    Raises:
      UsageError: a factor that is below 1 or not finite.
    """
    if not 1.0 <= factor < np.inf:
        raise UsageError(f"extrapolate={factor} must be a finite number of at least 1, where 1 is the merge itself")
    farther = factor * weights
    farther[0] += 1.0 - factor
    return farther


def reordered(weights: Vector, order: str) -> Vector:
    """The same weights for other checkpoints: control arms that tell whether it matters which one has which.

    Args:
      weights: oldest first.
      order: ``reverse`` (the newest gets the oldest's) or ``scramble:SEED`` (at random, the same for a seed).

    Raises:
      UsageError: another order.
    """
    if order == "reverse":
        return weights[::-1].copy()
    if seed := re.fullmatch(r"scramble:([0-9]{1,18})", order):
        return np.random.default_rng(int(seed[1])).permutation(weights)
    raise UsageError(f"order={order!r}: choose reverse or scramble:SEED, e.g. scramble:0")


def curve_update_weights(curve: str | Curve, count: int) -> Vector:
    """w_i = f(i / count), i = 1 .. count - 1: the paper's grid over a window of ``count`` intervals.

    Raises:
      UsageError: unknown curve; count below 1; a curve that leaves [0, 1] or increases on the grid.
    """
    check_count(count)
    f = get_decay(curve)
    w = np.asarray([float(f(i / count)) for i in range(1, count)], dtype=np.float64)
    if count > 1:
        checkpoint_weights(w)  # for its errors
    return w


def check_count(count: Any) -> None:
    """Raises UsageError for a number of checkpoints that is no whole number from 1 to MOST."""
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise UsageError(f"count must be a whole number of at least 1, got {count!r}")
    if count > MOST:
        raise UsageError(f"count must be at most {MOST:,}, got {count}")


def wma_weights(count: int) -> Vector:
    """The weighted moving average over checkpoints: weights proportional to the index, the oldest counting 1.

    With n = count: c_j = 2 (j + 1) / (n (n + 1)), so w_i = 1 - i (i + 1) / (n (n + 1)), which tends to the curve
    ``square`` as n grows. Source: WMA of PMA, "Model Merging in Pre-training of LLMs" (arXiv 2505.12082).

    Returns:
      float64 [count], oldest first, non-negative, summing to 1.

    Raises:
      UsageError: count below 1.
    """
    check_count(count)
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
    check_count(count)
    if not 0.0 <= decay < 1.0:
        raise UsageError(f"the decay of an EMA over checkpoints must lie in [0, 1), got {decay}")
    kept = float(decay) ** np.arange(count - 1, -1, -1)  # decay^(k - j)
    return np.concatenate((kept[:1], (1.0 - decay) * kept[1:]))
