"""Post-hoc EMA: a power-function EMA of any length from stored ones of a few lengths (EDM2, arXiv 2312.02696)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from wsm_jax.core.averages import power
from wsm_jax.errors import UsageError


def weights(steps: Sequence[int], widths: Sequence[float], step: int, width: float) -> np.ndarray:
    """Weights of stored power-function EMAs whose sum is closest to the one of ``width`` at ``step``.

    Least squares between the profiles, section 3.2 and algorithm 3, then divided by their sum, as the authors' code
    ends; the sum of snapshots is a merge with these weights. Of widths 0.05 and 0.1 stored 16 times in a run, the
    profile of 0.07 at its end comes out with 0.4% error, of 0.15 with 0.9%, of 0.03 with 3.9%. Least squares alone is
    as close to the profiles, but its weights sum to 0.9995 for 0.15, to 0.997 for 0.2, and to 0.82 where little is
    stored, and every parameter would be scaled by that.

    Args:
      steps: step of each stored EMA (samples taken, if it is updated every so many steps).
      widths: sigma_rel of each.
      step: end of the wanted EMA, at most the newest of ``steps``; best one of them, since between two of them nothing
        stored ends with the steps that weigh most.
      width: sigma_rel of the wanted EMA.

    Returns:
      float64 [len(steps)], summing to 1; they may be negative.

    Raises:
      UsageError: nothing stored, two equal ones, lengths that differ, a step or a width out of range.
    """
    if not len(steps) or len(steps) != len(widths) or len(set(zip(steps, widths, strict=False))) < len(steps):
        raise UsageError(f"stored EMAs need a step and a width each, all different; got {list(steps)}, {list(widths)}")
    if not 0 < step <= max(steps) or min(steps) < 1:
        raise UsageError(f"the wanted EMA ends at step {step}; it must end at 1 to {max(steps)}, the newest stored one")
    at, powers = np.asarray(steps, np.float64), np.asarray([power(w) for w in widths])
    gram = _inner_product(at[:, None], powers[:, None], at[None, :], powers[None, :])
    wanted = _inner_product(at, powers, float(step), power(width))
    # The profiles of many snapshots are nearly dependent; the least-squares solution of least norm stays small.
    found = np.linalg.lstsq(gram, wanted, rcond=None)[0]
    return found / found.sum()


def _inner_product(t_a: Any, gamma_a: Any, t_b: Any, gamma_b: Any) -> Any:
    """Integral of the product of two profiles (gamma + 1) t^gamma / t_end^(gamma + 1) (EDM2, equation 151)."""
    exponent = np.where(t_a < t_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * (t_a / t_b) ** exponent / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
