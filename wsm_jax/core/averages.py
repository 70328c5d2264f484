"""Averages along a run as ``init``, ``update`` and ``read``, pure functions on pytrees in the manner of optax.

They work inside anyone's jitted step; :func:`update_all` takes several of them at once. A state is a dictionary of
arrays, to be saved, sharded and resumed with the rest of the train state. Accumulators are float32 whatever the
parameters are (float64 for float64 parameters). Parameters are floating arrays; of a Flax NNX model they are
``nnx.state(model, nnx.Param)``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsm_jax.errors import UsageError

Params = Any
State = dict[str, Any]


class Average(NamedTuple):
    """An average of the parameters.

    Attributes:
      init: params -> state, before anything is averaged.
      update: (state, params, step) -> state; ``step`` is an int32 scalar, updates done so far, and ``params`` those
        after them.
      read: (state, params, step) -> the average, float32, in the structure of ``params``; the parameters themselves
        where nothing has been averaged yet. ``params`` and ``step`` as in the last ``update``.
      every: ``update`` is to be called at the steps that are multiples of it and at no others.
    """

    init: Callable[[Params], State]
    update: Callable[[State, Params, Any], State]
    read: Callable[[State, Params, Any], Params]
    every: int = 1


def init_all(averages: Mapping[str, Average], params: Params) -> dict[str, State]:
    """name -> state before anything is averaged."""
    return {name: average.init(params) for name, average in averages.items()}


def update_all(averages: Mapping[str, Average], states: Mapping[str, State], params: Params, step: Any) -> dict:
    """The states after ``step``, for use inside a jitted step; those that are not due stay as they are."""

    def one(average: Average, state: State) -> State:
        if average.every == 1:
            return average.update(state, params, step)
        due = step % average.every == 0
        return jax.lax.cond(due, lambda s: average.update(s, params, step), lambda s: s, state)

    return {name: one(average, states[name]) for name, average in averages.items()}


def read_all(averages: Mapping[str, Average], states: Mapping[str, State], params: Params, step: Any) -> dict:
    """name -> average."""
    return {name: average.read(states[name], params, step) for name, average in averages.items()}


def accumulator_dtype(leaf: Any) -> Any:
    """float32, or float64 for a float64 leaf."""
    return jnp.promote_types(leaf.dtype, jnp.float32)


def accumulators(params: Params) -> Params:
    """``params`` in the dtype of their accumulators."""
    return jax.tree.map(lambda leaf: leaf.astype(accumulator_dtype(leaf)), params)


def zeros(params: Params, *leading: int) -> Params:
    """Accumulators of zeros, with axes before those of each leaf."""
    return jax.tree.map(lambda leaf: jnp.zeros((*leading, *leaf.shape), accumulator_dtype(leaf)), params)


def _moving(gain: Callable[[Any], Any], count: Callable[[Any, Any], Any], every: int) -> Average:
    """mean <- mean + gain(n) (theta - mean), where n = count(previous n, step) counts the samples; 0 takes none.

    The first sample replaces what is there, so that no value of the start or of an earlier interval is left in it.
    """

    def init(params: Params) -> State:
        return {"mean": zeros(params), "count": jnp.zeros((), jnp.int32)}

    def update(state: State, params: Params, step: Any) -> State:
        n = count(state["count"], step)
        share = jnp.where(n > 0, gain(jnp.maximum(n, 1)), 0.0)

        def one(mean: Any, leaf: Any) -> Any:
            leaf = leaf.astype(mean.dtype)
            return jnp.where(n == 1, leaf, mean + share.astype(mean.dtype) * (leaf - mean))

        return {"mean": jax.tree.map(one, state["mean"], params), "count": n}

    def read(state: State, params: Params, step: Any) -> Params:
        del step
        return jax.tree.map(lambda mean, leaf: jnp.where(state["count"] > 0, mean, leaf), state["mean"], params)

    return Average(init, update, read, _at_least_one("every", every))


def _from(start: int) -> Callable[[Any, Any], Any]:
    """Counts the samples from step ``start`` on."""
    return lambda count, step: count + jnp.asarray(step >= start, jnp.int32)


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise UsageError(f"{name} is {value}; it must be at least 1")
    return value


def ema(decay: float, *, start: int = 0, every: int = 1) -> Average:
    """Exponential moving average, mean <- decay mean + (1 - decay) theta, with Adam's bias correction.

    Args:
      decay: share of the old mean that one step keeps, in (0, 1); :func:`half_life_decay` makes one of a half-life.
      start: first step that is averaged.
      every: steps between updates; the mean then keeps decay^every at each.

    Raises:
      UsageError: a decay outside (0, 1) or ``every`` below 1.
    """
    if not 0.0 < decay < 1.0:
        raise UsageError(f"the decay of an EMA is {decay}; it must lie between 0 and 1")
    rate = every * math.log(decay)
    # (1 - d) / (1 - d^n): sample n enters with it, so that the weights of n samples sum to 1.
    return _moving(lambda n: jnp.expm1(rate) / jnp.expm1(rate * n), _from(start), every)


def half_life_decay(steps: float) -> float:
    """Decay a step of the EMA in which a sample's weight halves in ``steps`` steps."""
    return 0.5 ** (1.0 / steps)


def running_mean(*, start: int = 0, every: int = 1) -> Average:
    """Plain mean of the parameters from step ``start`` on (Polyak and Juditsky 1992).

    Raises:
      UsageError: ``every`` below 1.
    """
    return _moving(lambda n: 1.0 / n, _from(start), every)


def swa(start: int, cycle: int) -> Average:
    """Stochastic weight averaging (arXiv 1803.05407): plain mean of the parameters at the ends of cycles.

    Under the rate ``schedules.cyclic`` these are the points of the lowest rate; under a constant rate ``cycle`` is the
    spacing of the samples.

    Args:
      start: first step that is averaged.
      cycle: steps between samples.

    Raises:
      UsageError: a cycle below 1, or a start that is not a multiple of it.
    """
    if cycle > 0 and start % cycle:
        raise UsageError(f"SWA starts at step {start}, which must be a multiple of its cycle of {cycle} steps")
    return running_mean(start=start, every=cycle)


def interval_mean(interval: int, *, every: int = 1) -> Average:
    """Mean of the parameters after each update of an interval, its start excluded; begins anew with each interval.

    Intervals end at the multiples of ``interval``, where ``read`` gives what ``merge_weights(..., snapshot="mean")``
    weighs. An average that begins inside an interval has the mean of the rest of it.

    Args:
      interval: updates in an interval.
      every: take only steps that are multiples of it, a divisor of ``interval``; the emulated rate is then constant
        over so many updates.

    Raises:
      UsageError: ``every`` does not divide ``interval``.
    """
    if _at_least_one("interval", interval) % _at_least_one("every", every):
        raise UsageError(f"interval means of {interval} steps cannot be taken every {every} steps: it must divide them")

    def count(previous: Any, step: Any) -> Any:
        return jnp.where((step - 1) % interval < every, 1, previous + 1)

    return _moving(lambda n: 1.0 / n, count, every)


def power_ema(width: float, *, every: int = 1) -> Average:
    """EMA with a power-function profile (EDM2, arXiv 2312.02696, section 3.1): theta(t) has weight ~ t^gamma.

    mean <- b mean + (1 - b) theta with b = (1 - 1/n)^(gamma + 1) at sample n: its length grows with the run, and it
    forgets the initialisation. Two of them suffice for :func:`wsm_jax.core.posthoc.weights`.

    Args:
      width: sigma_rel, the standard deviation of the profile over the run's length, in (0, 1/sqrt(12)).
      every: steps between updates.

    Raises:
      UsageError: a width out of range or ``every`` below 1.
    """
    exponent = power(width) + 1.0
    return _moving(lambda n: -jnp.expm1(exponent * jnp.log1p(-1.0 / n)), _from(0), every)


def power(width: float) -> float:
    """gamma of the profile t^gamma with relative standard deviation ``width`` (EDM2, equation 126 and algorithm 2).

    The largest root of gamma^3 + 7 gamma^2 + (16 - width^-2) gamma + 12 - width^-2.

    Raises:
      UsageError: a width outside (0, 1/sqrt(12)); at its end gamma is 0, the plain mean.
    """
    if not 0.0 < width < 12**-0.5:
        raise UsageError(f"the width of a power-function EMA is {width}; it must lie between 0 and 0.288")
    return float(np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2]).real.max())


def lawa(count: int, spacing: int) -> Average:
    """Latest weight averaging (arXiv 2209.14981, 2306.03241): mean of the last ``count`` samples, ``spacing`` apart.

    Holds a ring of ``count`` copies; with fewer samples so far, their mean.

    Raises:
      UsageError: a count or spacing below 1.
    """
    _at_least_one("count", count)

    def init(params: Params) -> State:
        return {"ring": zeros(params, count), "count": jnp.zeros((), jnp.int32)}

    def update(state: State, params: Params, step: Any) -> State:
        del step
        place = state["count"] % count

        def one(ring: Any, leaf: Any) -> Any:
            return jax.lax.dynamic_update_index_in_dim(ring, leaf.astype(ring.dtype), place, axis=0)

        return {"ring": jax.tree.map(one, state["ring"], params), "count": state["count"] + 1}

    def read(state: State, params: Params, step: Any) -> Params:
        del step
        held = jnp.minimum(state["count"], count)
        # Empty places hold zeros and add nothing.
        return jax.tree.map(
            lambda ring, leaf: jnp.where(held > 0, ring.sum(axis=0) / jnp.maximum(held, 1).astype(ring.dtype), leaf),
            state["ring"],
            params,
        )

    return Average(init, update, read, _at_least_one("spacing", spacing))
