"""Learning rates as optax schedules: update count -> rate, built on the curves of ``wsm_jax.core.decay``.

The update that takes theta_s to theta_{s+1} has count s. A schedule holds the peak up to and including the update
at which a decay starts, follows peak * f(t) after it, and holds its last value past its end. Rates are never negative.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsm_jax.core.coefficients import checkpoint_weights
from wsm_jax.core.decay import Curve, get_decay
from wsm_jax.errors import UsageError

# An optax schedule; optax's own type promises too little of what is returned to compute with it.
Schedule = Callable[[Any], Any]


def warmup_then(schedule: Schedule, peak: float, warmup_steps: int) -> Schedule:
    """Linear warm-up over ``warmup_steps`` updates, then ``schedule`` (which sees the whole run's count).

    Update s of the warm-up has the rate peak * (s + 1) / (warmup_steps + 1), so the first update already moves.
    """
    if warmup_steps <= 0:
        return schedule

    def rate(count: Any) -> Any:
        warm = peak * (count + 1) / (warmup_steps + 1)
        return jnp.where(count < warmup_steps, warm, schedule(count))

    return rate


def constant(peak: float, warmup_steps: int = 0) -> Schedule:
    """WSM: linear warm-up, then ``peak`` for ever."""
    return warmup_then(lambda _: peak, peak, warmup_steps)


def cooldown(base: Schedule, curve: str | Curve, start: int, steps: int, end_fraction: float = 0.0) -> Schedule:
    """``base`` up to and including update ``start``, then base(start) * (e + (1 - e) f((count - start) / steps)).

    Args:
      base: the schedule that is left.
      curve: a name in DECAYS or a callable on (0, 1].
      start: count of the last update at the full rate, the step of the checkpoint branched from.
      steps: updates after which f(1) is reached and held.
      end_fraction: e, 0 for the curve itself; a partial decay ends so much higher.

    Raises:
      UsageError: unknown curve, negative start, steps below 1, ``end_fraction`` outside [0, 1].
    """
    f = get_decay(curve)
    _check_end(end_fraction, "decay_end")
    if start < 0 or steps < 1:
        raise UsageError(f"a cooldown needs start >= 0 and at least 1 step, got start {start} and {steps} steps")

    def rate(count: Any) -> Any:
        # t is kept positive because a curve is only defined on (0, 1]; where() hides that branch before the start.
        t = jnp.clip((count - start) / steps, 1.0 / steps, 1.0)
        share = jnp.maximum(f(t), 0.0)
        share = end_fraction + (1.0 - end_fraction) * share if end_fraction else share
        return jnp.where(count <= start, base(jnp.minimum(count, start)), base(start) * share)

    return rate


def wsd(
    peak: float,
    curve: str | Curve,
    total_steps: int,
    decay_steps: int,
    warmup_steps: int = 0,
    end_fraction: float = 0.0,
) -> Schedule:
    """Warmup-Stable-Decay: constant, then ``curve`` over the last ``decay_steps`` of ``total_steps`` updates.

    Raises:
      UsageError: the decay and the warm-up do not both fit in.
    """
    if decay_steps > total_steps - warmup_steps:
        raise UsageError(
            f"a decay of {decay_steps} steps does not fit after a warm-up of {warmup_steps} in {total_steps} steps"
        )
    return cooldown(constant(peak, warmup_steps), curve, total_steps - decay_steps, decay_steps, end_fraction)


def cosine(peak: float, total_steps: int, warmup_steps: int = 0, end_fraction: float = 0.0) -> Schedule:
    """Cosine from the end of the warm-up to ``end_fraction * peak`` at ``total_steps``.

    Raises:
      UsageError: ``end_fraction`` outside [0, 1].
    """
    import optax  # only here: importing it takes longer than a small merge

    _check_end(end_fraction)
    decay_steps = max(total_steps - warmup_steps, 1)
    base = optax.cosine_decay_schedule(peak, decay_steps, alpha=end_fraction)
    return warmup_then(lambda count: base(jnp.maximum(count - warmup_steps, 0)), peak, warmup_steps)


def inverse_sqrt(peak: float, warmup_steps: int) -> Schedule:
    """peak * sqrt(warmup / count) after the warm-up: the Transformer's schedule, without an end.

    Raises:
      UsageError: no warm-up, which sets its time scale.
    """
    if warmup_steps < 1:
        raise UsageError("schedule inverse_sqrt needs a warm-up of at least 1 step: it sets its time scale")
    return warmup_then(
        lambda count: peak * jnp.sqrt(warmup_steps / jnp.maximum(count, warmup_steps)), peak, warmup_steps
    )


def rewarm(peak: float, start: int, warmup_steps: int) -> Schedule:
    """Linear warm-up to ``peak`` from update ``start`` on, then constant; before it, the rate of that update.

    What a run needs that goes on from a decayed one, whose rate has ended near zero.
    """
    begun = constant(peak, warmup_steps)
    return lambda count: begun(jnp.maximum(count - start, 0))


def cyclic(base: Schedule, start: int, cycle: int, end_fraction: float = 0.0) -> Schedule:
    """``base`` before update ``start``, then falling linearly again and again: the cycles of SWA.

    Update i of a cycle, from 0, has the rate base(start) (1 - t + t end_fraction), t = (i + 1) / cycle (arXiv
    1803.05407, section 3.1), so the last update before step start + k cycle has the lowest.

    Args:
      base: the schedule that is left.
      start: count of the first update of the first cycle.
      cycle: updates in a cycle.
      end_fraction: lowest rate over base(start).

    Raises:
      UsageError: negative start, a cycle below 1, ``end_fraction`` outside [0, 1].
    """
    _check_end(end_fraction)
    if start < 0 or cycle < 1:
        raise UsageError(f"cycles need a start >= 0 and at least 1 step, got start {start} and {cycle} steps")

    def rate(count: Any) -> Any:
        t = ((count - start) % cycle + 1) / cycle
        return jnp.where(count < start, base(jnp.minimum(count, start)), base(start) * (1.0 - t + t * end_fraction))

    return rate


def _check_end(fraction: float, field: str = "end_fraction") -> None:
    if not 0.0 <= fraction <= 1.0:
        raise UsageError(f"schedule.{field} is {fraction}; it must lie in [0, 1]")


def rates_at(schedule: Schedule, counts: np.ndarray) -> np.ndarray:
    """The rates at update counts: float64 of their shape [n].

    A schedule is a function of one count: some of optax's fail for an array of them, or give other values. So it is
    mapped by JAX, or, where JAX cannot trace it (an ``if`` about the count), called for one after the other.

    Raises:
      UsageError: what it returns is no number.
    """
    try:
        rates = jax.vmap(lambda count: jnp.asarray(schedule(count), jnp.float32))(jnp.asarray(counts))
    except Exception:
        rates = [schedule(int(count)) for count in counts]
    try:
        found = np.asarray(rates, np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the schedule returns no number ({type(error).__name__}: {error})") from error
    if found.shape != np.shape(counts):
        raise UsageError(f"the schedule returns shape {found.shape[1:]} for one update; it must return one number")
    return found


def schedule_weights(schedule: Schedule, steps: Sequence[int], peak: float) -> np.ndarray:
    """Merge weights of the checkpoints saved at ``steps`` that emulate any optax schedule.

    w_i is the mean of the schedule over the updates of interval i, over the peak: the updates counted
    steps[i-1] .. steps[i] - 1, since a checkpoint at step s holds the parameters after s updates. (Against a real
    linear decay over the same 8 intervals this has 6.2% error, the paper's grid 8.4%, the value at the interval's
    end 12.8%.)

    Args:
      schedule: update count -> learning rate, on the count of the whole run that ``steps`` are on too. A decay that the
        run would have begun at its update 16,000 is ``optax.linear_schedule(peak, 0, 4000, transition_begin=16000)``.
      steps: increasing steps of the saved checkpoints, in optimizer updates, oldest first; they need not be evenly
        spaced.
      peak: the constant rate with which the checkpoints were trained, > 0.

    Returns:
      float64 [len(steps)], oldest first.

    Raises:
      UsageError: steps not increasing, peak not positive, interval means that leave [0, peak] or increase, or no
        schedule.
    """
    if not len(steps) or any(b <= a for a, b in itertools.pairwise(steps)):
        raise UsageError(f"steps must be increasing and not empty, got {list(steps)}")
    if not peak > 0:
        raise UsageError(f"peak must be positive, got {peak}")
    if len(steps) == 1:
        return np.ones(1)
    rates = rates_at(schedule, np.arange(steps[0], steps[-1])) / peak
    means = np.asarray([rates[a - steps[0] : b - steps[0]].mean() for a, b in itertools.pairwise(steps)])
    # optax computes in float32: a mean one rounding above its neighbour or above the peak is not an increase.
    means = np.where(np.abs(means - 1.0) < 1e-6, 1.0, means)
    running = np.minimum.accumulate(means)
    means = np.where(means - running < 1e-6, running, means)
    outside = np.flatnonzero((means < 0) | (means > 1))
    if outside.size:
        i = outside[0]
        raise UsageError(
            f"from update {steps[i]} to {steps[i + 1]} the schedule is {means[i] * peak:g} on average, but the "
            f"checkpoints were trained at peak={peak:g}; a merge emulates rates from 0 to that"
        )
    return checkpoint_weights(means)
