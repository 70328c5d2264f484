"""Decay curves: one table that serves as learning-rate schedule (real decay) and as merge weights (emulated decay).

A curve ``f`` maps the elapsed share ``t`` of the decay, in (0, 1], to the rate over its peak, in [0, 1], and never
increases. It takes Python floats, numpy arrays (float64 stays float64) and jax arrays, traced or not.

Sources: linear, cosine, 1-sqrt and ema from WSM (arXiv 2507.17634, Figure 2). ``square`` and ``exponential`` are the
usual alternatives for the cooldown of WSD. The paper's abstract also names inverse-square-root decay, which may be
its name for 1-sqrt; both are here. ``end = 0.1`` of exponential, inverse_sqrt and ema is the value of ``f(1)``
(for ema: of 1 - f(0+)).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from wsm_jax.errors import UsageError, meant

Curve = Callable[[Any], Any]

END = 0.1


def _xp(t: Any) -> Any:
    """numpy for Python numbers and numpy arrays, jax.numpy for everything else."""
    if isinstance(t, (int, float, np.ndarray, np.generic)):
        return np
    import jax.numpy as jnp  # only reached with a jax array in hand, so jax is imported already

    return jnp


def linear(t: Any) -> Any:
    """1 - t. As merge weights: the plain mean."""
    return 1.0 - t


def cosine(t: Any) -> Any:
    """(1 + cos(pi t)) / 2."""
    xp = _xp(t)
    # The maximum guards t = 1 in float32, where the sum may round below zero.
    return xp.maximum(0.5 * (1.0 + xp.cos(np.pi * t)), 0.0)


def minus_sqrt(t: Any) -> Any:
    """1 - sqrt(t), "1-sqrt" in the papers. As merge weights the oldest checkpoint is the heaviest."""
    return 1.0 - _xp(t).sqrt(t)


def square(t: Any) -> Any:
    """1 - t^2."""
    return 1.0 - t * t


def exponential(t: Any) -> Any:
    """0.1^t; ends at 0.1, so the newest checkpoint keeps that share and more."""
    return END**t


def inverse_sqrt(t: Any) -> Any:
    """1 / sqrt(1 + 99 t): inverse square root scaled to end at 0.1, so the newest checkpoint keeps a large weight."""
    return 1.0 / _xp(t).sqrt(1.0 + (END**-2 - 1.0) * t)


def ema(t: Any) -> Any:
    """1 - 0.1^(1-t), the paper's exponential moving average; jumps from 1 to 0.9 where the window starts."""
    return 1.0 - END ** (1.0 - t)


DECAYS: dict[str, Curve] = {
    "linear": linear,
    "cosine": cosine,
    "minus_sqrt": minus_sqrt,
    "square": square,
    "exponential": exponential,
    "inverse_sqrt": inverse_sqrt,
    "ema": ema,
}


# What papers and other code call them, for the hint in an error.
ELSEWHERE = {"1-sqrt": "minus_sqrt", "1_sqrt": "minus_sqrt", "sqrt": "minus_sqrt", "uniform": "mean", "average": "mean"}


def get_decay(curve: str | Curve) -> Curve:
    """The curve of that name in :data:`DECAYS`; a callable is returned as it is.

    Raises:
      UsageError: no curve of that name.
    """
    if callable(curve):
        return curve
    if curve not in DECAYS:
        hint = meant(ELSEWHERE.get(curve, curve), DECAYS)
        raise UsageError(f"unknown curve {curve!r}; known: {', '.join(DECAYS)}{hint}")
    return DECAYS[curve]
