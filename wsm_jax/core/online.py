"""Online WSM: the end of a decay that was never run, kept up to date update by update, exact with weight decay."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsm_jax.core.averages import Average, Params, State, accumulator_dtype, zeros
from wsm_jax.core.coefficients import curve_update_weights
from wsm_jax.core.decay import Curve
from wsm_jax.errors import UsageError


def online_wsm(
    curve: str | Curve,
    window: int,
    *,
    spacing: int | None = None,
    learning_rate: float | Callable[[Any], Any] = 0.0,
    weight_decay: float = 0.0,
    mask: Callable[[Params], Any] | None = None,
    every: int = 1,
) -> Average:
    """What a run whose rate had decayed along ``curve`` over the last ``window`` updates would hold now (ours).

    The update number i of a window, from 0, is scaled by w_i = f(i / window), w_0 = 1, as ``schedules.cooldown`` does
    from the window's start. With l = learning_rate * weight_decay, the share that decoupled weight decay takes at an
    update, the emulated parameters follow

        dec <- (1 - w l) dec + w (theta_{t+1} - (1 - l) theta_t)
             = dec + w (theta_{t+1} - theta_t) - w l (dec - theta_t),

    exact to rounding where the direction of the updates does not depend on the parameters; with ``every`` above 1,
    where it is constant over so many. A window is of use when it is complete, so several are kept at once, one more
    every ``spacing`` steps: ``window / spacing`` copies of the parameters. Windows end at the multiples of ``spacing``,
    where ``read`` gives the one that is complete; elsewhere it gives the one that is furthest. Windows under way at the
    first update begin there, in the middle of the curve.

    Args:
      curve: a name in DECAYS or a callable on (0, 1].
      window: updates in the emulated decay.
      spacing: steps from the end of one window to that of the next; default ``window``, a single copy.
      learning_rate: of the run, a number or update count -> rate; only matters with ``weight_decay``.
      weight_decay: decay per unit of learning rate; 0 gives the plain form.
      mask: params -> tree of booleans: leaves that the optimizer decays; default all of them.
      every: steps between updates; w is then the mean over so many updates of the decay, and 1 for the first so many.

    Raises:
      UsageError: ``spacing`` does not divide ``window``, ``every`` does not divide ``spacing``, or a curve that is
        unknown, leaves [0, 1] or increases.
    """
    spacing = window if spacing is None else spacing
    _check(window, spacing, every)
    rate = learning_rate if callable(learning_rate) else lambda step: learning_rate
    offsets = np.arange(window // spacing, dtype=np.int32) * spacing
    windows = _Windows(_scales(curve, window // every, every), offsets, every, rate, weight_decay)

    def leafwise(function: Callable[..., Any], params: Params, state: State) -> Params:
        decayed = jax.tree.map(lambda _: True, params) if mask is None else mask(params)
        return jax.tree.map(function, state["pending"], params, decayed)

    def init(params: Params) -> State:
        return {"pending": zeros(params, len(windows.offsets)), "count": jnp.zeros((), jnp.int32)}

    # Kept is ``pending`` = dec - s theta - b (dec - theta), to which s theta_{t+1} is added when it is there: so an
    # update needs no parameters but the newest.
    def update(state: State, params: Params, step: Any) -> State:
        begins = (windows.age(step) == 1) | (state["count"] == 0)

        def one(pending: Any, leaf: Any, decayed: bool) -> Any:
            arrived, _ = windows.motion(step - every, decayed)
            s, b = windows.motion(step, decayed)
            leaf = leaf.astype(pending.dtype)[None]
            dec = jnp.where(_column(begins, leaf), leaf, pending + _column(arrived, leaf) * leaf)
            return dec - _column(s, leaf) * leaf - _column(b, leaf) * (dec - leaf)

        return {"pending": leafwise(one, params, state), "count": state["count"] + 1}

    def read(state: State, params: Params, step: Any) -> Params:
        furthest = jnp.argmax(windows.age(step))

        def one(pending: Any, leaf: Any, decayed: bool) -> Any:
            s, b = (x[furthest].astype(pending.dtype) for x in windows.motion(step, decayed))
            leaf = leaf.astype(accumulator_dtype(leaf))
            dec = (pending[furthest] + (s - b) * leaf) / (1.0 - b)
            return jnp.where(state["count"] > 0, dec, leaf)

        return leafwise(one, params, state)

    return Average(init, update, read, every)


def _check(window: int, spacing: int, every: int) -> None:
    if min(window, spacing, every) < 1 or window % spacing or spacing % every:
        raise UsageError(
            f"an online window of {window} steps needs a spacing that divides it, got {spacing}, "
            f"and updates every so many steps that divide the spacing, got {every}"
        )


class _Windows(NamedTuple):
    """The emulated decays under way: how old each is, and how its parameters follow those of the run.

    Attributes:
      scales: w of each age, then 0: a complete window stays as it is until the next one begins.
      offsets: steps by which the windows lie apart, int32 [copies].
      every: steps between updates.
      rate: update count -> learning rate.
      weight_decay: decay per unit of learning rate.
    """

    scales: np.ndarray
    offsets: np.ndarray
    every: int
    rate: Callable[[Any], Any]
    weight_decay: float

    def age(self, step: Any) -> Any:
        """Updates of each window so far, 1 .. ages, int32 [copies]."""
        length = (len(self.scales) - 1) * self.every
        return (step - self.offsets - self.every) % length // self.every + 1

    def motion(self, step: Any, decayed: bool) -> tuple[Any, Any]:
        """s and b, [copies]: over the next ``every`` updates dec moves by s (change of theta) - b (dec - theta)."""
        w = jnp.asarray(self.scales)[self.age(step)]
        if not (decayed and self.weight_decay):
            return w, jnp.zeros_like(w)
        shrink = jnp.asarray(self.rate(step) * self.weight_decay, w.dtype)
        b = -jnp.expm1(self.every * jnp.log1p(-w * shrink))
        a = -jnp.expm1(self.every * jnp.log1p(-shrink))
        return jnp.where(a > 0, b / jnp.where(a > 0, a, 1.0), w), b


def _scales(curve: str | Curve, ages: int, every: int) -> np.ndarray:
    """w at each age of a window, the mean over ``every`` updates; [ages + 1], the last one 0."""
    scales = np.concatenate(([1.0], curve_update_weights(curve, ages * every))).reshape(ages, every).mean(axis=1)
    scales[0] = 1.0  # where a window begins, the parameters are not known any more but those after ``every`` updates
    return np.append(scales, 0.0)


def _column(vector: Any, leaf: Any) -> Any:
    """``vector`` [copies] as [copies, 1, ...], to be combined with ``leaf`` [1, ...]."""
    vector = vector if vector.dtype == bool else vector.astype(leaf.dtype)
    return vector.reshape(-1, *[1] * (leaf.ndim - 1))
