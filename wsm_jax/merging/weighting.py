"""How the checkpoints of a window are weighed: the rules, their names, and the weights they give.

A rule is a decay curve to emulate, an average over checkpoints, or a whole learning-rate schedule to emulate:

    linear cosine minus_sqrt square exponential inverse_sqrt ema    curves of DECAYS
    mean, lawa   uniform; LAWA's is that of the latest checkpoints (arXiv 2306.03241)
    wma          proportional to the index, the oldest counting 1
    ema:DECAY    recursive average over checkpoints; the curve ``ema`` is another rule
    best:N       uniform over the N checkpoints of lowest validation loss, zero for the others (Ling 2.0)

Interval means (ours) take the curves of DECAYS and the uniform rules; the others weigh checkpoints.
"""

import dataclasses
import functools
import re
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsm_jax.checkpoints import run_schedule
from wsm_jax.checkpoints.run import Run
from wsm_jax.core import coefficients, schedules
from wsm_jax.core.coefficients import Vector
from wsm_jax.core.decay import DECAYS, ELSEWHERE, Curve
from wsm_jax.core.leaf_weights import Weights
from wsm_jax.core.merge_weights import altered, merge_weights
from wsm_jax.core.schedules import Schedule
from wsm_jax.core.weight_decay import decayed_checkpoint_weights
from wsm_jax.errors import UsageError, meant
from wsm_jax.merging.selection import MEAN, Window, choose_snapshot

UNIFORM = ("mean", "lawa")
_CURVES = {**{curve: curve for curve in DECAYS}, **dict.fromkeys(UNIFORM, "linear")}
NAMES = (*_CURVES, "wma", "ema:DECAY", "best:N")
FITTED = ("learned", "search")  # no rules: their weights depend on a loss, see wsm_jax/evaluation/tuning.py


@dataclasses.dataclass(frozen=True)
class Rule:
    """A way to weigh the checkpoints of a window; exactly one of ``by_count``, ``best`` and ``schedule`` is set.

    Attributes:
      name: what it is called in records and file names.
      by_count: number of checkpoints -> weights, for rules that need to know nothing else.
      curve: the decay that ``by_count`` emulates, which interval means emulate too; None: they cannot.
      best: how many checkpoints of lowest validation loss to average.
      schedule: the schedule to emulate, update count -> learning rate.
      source: where the schedule comes from.
      extrapolate: how far past the merge to go, see :func:`wsm_jax.merge_weights`.
      order: in which the checkpoints get the weights, see there.
    """

    name: str
    by_count: Callable[[int], Vector] | None = None
    curve: str | Curve | None = None
    best: int | None = None
    schedule: Schedule | None = None
    source: str | None = None
    extrapolate: float | None = None
    order: str | None = None

    @property
    def label(self) -> str:
        """What its merges are called in file names."""
        farther = "" if self.extrapolate is None else f"-extrapolate{self.extrapolate:g}"
        return self.name + farther + (f"-{self.order}" if self.order else "")

    @property
    def is_uniform(self) -> bool:
        """Whether it is a plain average, whatever the spacing of the checkpoints."""
        return self.name in UNIFORM

    @property
    def changes(self) -> dict[str, Any]:
        """``extrapolate`` and ``order``, those that are set, as records hold them."""
        both = {"extrapolate": self.extrapolate, "order": self.order}
        return {name: value for name, value in both.items() if value is not None}


def parse(text: str) -> Rule:
    """The rule called ``text``, one of NAMES.

    Raises:
      UsageError: no such rule, or a number that is missing or out of range.
    """
    if text in _CURVES:
        return emulating(text, _CURVES[text])
    if text == "wma":
        return Rule(text, by_count=coefficients.wma_weights)
    if match := re.fullmatch(r"best:([0-9]{1,18})", text):
        if int(match[1]) < 1:
            raise UsageError(f"curve {text!r}: the number of best checkpoints must be at least 1")
        return Rule(text, best=int(match[1]))
    if match := re.fullmatch(r"ema:(\d*\.?\d+(?:[eE][+-]?\d+)?)", text):
        rule = Rule(text, by_count=functools.partial(coefficients.ema_weights, decay=float(match[1])))
        count_weights(rule, 1)  # complains about the decay
        return rule
    if text in FITTED:
        raise UsageError(f"curve {text!r} needs the held-out data of a run: wsm merge --run=DIR --curve={text}")
    known = (*NAMES, *FITTED)
    hint = meant(ELSEWHERE.get(text, text), known)
    raise UsageError(f"unknown curve {text!r}; known: {', '.join(known)}{hint}")


def emulating(name: str, curve: str | Curve) -> Rule:
    """The rule that emulates a decay along ``curve``, a name in DECAYS or any function as for ``merge_weights``."""
    return Rule(name, by_count=functools.partial(merge_weights, curve), curve=curve)


def like(directory: str | Path) -> Rule:
    """The rule that emulates the schedule of another run, as its configuration describes it, at the same steps.

    Raises:
      UsageError: no run there.
    """
    other = Run(directory)
    schedule = run_schedule.from_config(other.config, other.facts.get("branch_step"))
    return Rule(f"like-{other.path.resolve().name}", schedule=schedule, source=str(directory))


def from_file(text: str) -> Rule:
    """The rule that emulates the schedule NAME of ``FILE.py:NAME``: a function step -> learning rate, e.g. of optax.

    The file is run. The function is called with one step, traced by JAX where that works.

    Raises:
      UsageError: another form, no such file or name, a file that fails.
    """
    path, _, name = text.rpartition(":")
    if not path or not name.isidentifier():
        raise UsageError(f"schedule={text!r} is not of the form FILE.py:NAME")
    if not Path(path).is_file():
        raise UsageError(f"schedule={text!r}: no file {path}")
    try:
        function = runpy.run_path(path).get(name)
    except Exception as error:
        raise UsageError(f"schedule={text!r}: {path} fails ({_one_line(error)})") from error
    if not callable(function):
        raise UsageError(f"schedule={text!r}: {path} defines no function {name}")
    return Rule(f"schedule-{name}", schedule=functools.partial(_rate, function, text), source=text)


def _rate(function: Callable[[Any], Any], text: str, step: Any) -> Any:
    """What ``function`` gives at a step."""
    try:
        return function(step)
    except Exception as error:
        raise UsageError(f"schedule={text!r} is no function step -> learning rate ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def changed(rule: Rule, *, extrapolate: float | None = None, order: str | None = None) -> Rule:
    """The rule with these changes of its weights.

    Raises:
      UsageError: a factor or an order that there is not.
    """
    altered(np.ones(2) / 2, extrapolate=extrapolate, order=order)  # complains
    return dataclasses.replace(rule, extrapolate=extrapolate, order=order)


def count_weights(
    rule: Rule,
    count: int,
    *,
    steps: Sequence[int] | None = None,
    learning_rate: float | None = None,
    weight_decay: float = 0.0,
    steps_per_interval: int | None = None,
) -> Vector:
    """Weights of ``count`` checkpoints about which nothing else is known; with ``weight_decay`` the aware form.

    Args:
      rule: any but ``best`` and the schedules.
      count: number of checkpoints, at least 1.
      steps, learning_rate, weight_decay, steps_per_interval: as for :func:`wsm_jax.merge_weights`; ``steps`` go with
        the curves of DECAYS.

    Returns:
      float64 [count], oldest first, summing to 1; non-negative unless the rule extrapolates.

    Raises:
      UsageError: a rule that needs a run, a value out of range.
    """
    if rule.by_count is None:
        raise UsageError(f"{rule.name} needs a run, for its steps, rate and losses: wsm merge --run=DIR")
    if steps is not None:
        if rule.curve is None or rule.is_uniform:
            raise UsageError(f"{rule.name} goes by index; the true steps go with a decay curve: {', '.join(DECAYS)}")
        plain = merge_weights(rule.curve, count, steps=steps)
    else:
        plain = rule.by_count(count)
    if weight_decay:
        if learning_rate is None or steps_per_interval is None:
            raise UsageError("weight_decay needs learning_rate and steps_per_interval beside it")
        plain = _aware(plain, learning_rate, weight_decay, steps_per_interval)
    return altered(plain, **rule.changes)


def window_weights(rule: Rule, run: Run, window: Window, *, weight_decay_aware: bool = False) -> Weights:
    """Weights of ``window``: float64 [count], or with ``weight_decay_aware`` a mapping from each leaf's path to them.

    For interval means [count + 1]: the means over the intervals, oldest first, and the parameters at the end.

    A schedule is taken relative to the rate of the run, which must be constant over the window. The aware form (ours,
    not the papers') takes any weights as a decay, by their update weights, and goes to the leaves that the run's
    optimizer shrinks; the others take the plain weights.

    Raises:
      UsageError: a run that does not keep what the window takes; a rate that is not constant where it must be; a
        schedule that rises or exceeds it; ``best`` with ``weight_decay_aware``, or with too few validated checkpoints;
        interval means with a rule that weighs checkpoints.
    """
    choose_snapshot(run, window.snapshot)  # complains
    weights = _plain_or_aware(rule, run, window, weight_decay_aware)
    return each(functools.partial(altered, **rule.changes, ends=int(window.snapshot == MEAN)), weights)


def each(function: Callable[[Vector], Vector], weights: Weights) -> Weights:
    """``function`` of the one vector, or of every leaf's."""
    if isinstance(weights, Mapping):
        return {path: function(vector) for path, vector in weights.items()}
    return function(weights)


def _plain_or_aware(rule: Rule, run: Run, window: Window, weight_decay_aware: bool) -> Weights:
    if rule.best and weight_decay_aware:
        raise UsageError(f"{rule.name} selects checkpoints and emulates no decay, so it has no weight-decay-aware form")
    if weight_decay_aware and "imported" in run.facts:
        raise UsageError(f"--weight_decay_aware needs the rate and the decay that {run.path} was trained with")
    decay = run.config.optimizer.weight_decay if weight_decay_aware else 0.0
    if window.snapshot == MEAN:
        return _mean_weights(rule, run, window, decay)
    if rule.by_count:
        plain = rule.by_count(window.count)
    elif rule.schedule:
        plain = _schedule_weights(rule.schedule, f"{rule.name} ({rule.source})", run, window)
    else:
        plain = best_weights(run, window, rule.best or 1)
    if window.count == 1 or not decay:
        return plain
    return _masked(run, plain, _aware(plain, constant_rate(run, window), decay, window.interval))


def _mean_weights(rule: Rule, run: Run, window: Window, decay: float) -> Weights:
    if rule.curve is None:
        raise UsageError(
            f"{rule.name} weighs point checkpoints; interval means take a decay curve ({', '.join(DECAYS)}), mean or "
            "lawa, and --snapshot=point the points, where the run keeps them"
        )
    weigh = functools.partial(merge_weights, rule.curve, window.count, snapshot=MEAN)
    if not decay:
        return weigh()
    # As long as the whole interval, however many means lie in it: their plain mean is the mean over it.
    rate = constant_rate(run, window)
    return _masked(run, weigh(), weigh(learning_rate=rate, weight_decay=decay, steps_per_interval=window.interval))


def _masked(run: Run, plain: Vector, aware: Vector) -> dict[str, Vector]:
    """Each leaf's weights: ``aware`` where the run's optimizer decays it."""
    return {path: aware if decayed else plain for path, decayed in run.facts["decay_mask"].items()}


def _schedule_weights(schedule: Schedule, name: str, run: Run, window: Window) -> Vector:
    if window.count == 1:
        return np.ones(1)
    rate = constant_rate(run, window)
    try:
        return schedules.schedule_weights(schedule, window.steps, rate)
    except UsageError as error:
        raise UsageError(
            f"{name} over steps {window.steps[0]} to {window.steps[-1]}, relative to the run's rate {rate:.3g}: {error}"
        ) from error


def _aware(plain: Vector, learning_rate: float, weight_decay: float, steps_per_interval: int) -> Vector:
    if plain.size == 1:
        return plain
    scales = np.minimum(coefficients.update_weights(plain), 1.0)  # the sum may round to above 1
    return decayed_checkpoint_weights(
        scales, learning_rate=learning_rate, weight_decay=weight_decay, steps_per_interval=steps_per_interval
    )


def best_weights(run: Run, window: Window, best: int) -> Vector:
    """1 / best for the checkpoints of lowest validation loss in ``window``, 0 for the others (Ling 2.0's rule).

    The losses are those that training recorded (``validation`` in metrics.jsonl), so only checkpoints at whose step it
    validated can be chosen. Of equal losses the newer checkpoint is taken. Ling 2.0 ranks by its own validation score
    and takes the best 32; here the score is the loss in nats per token.

    Returns:
      float64 [count], oldest first.

    Raises:
      UsageError: fewer than ``best`` checkpoints of the window have a validation loss.
    """
    losses = {record["step"]: record["loss"] for record in run.metrics("validation") if record["loss"] is not None}
    ranked = sorted((losses[step], -step) for step in window.steps if step in losses)
    if len(ranked) < best:
        raise UsageError(
            f"best:{best} needs {best} checkpoints with a validation loss, but {len(ranked)} of the window's "
            f"{window.count}, steps {window.steps[0]} to {window.steps[-1]} of {run.path}, have one; "
            f"take a longer window, or train with evaluation.interval={window.interval}steps"
        )
    chosen = {-step for _, step in ranked[:best]}
    return np.asarray([step in chosen for step in window.steps]) / best


def constant_rate(run: Run, window: Window) -> float:
    """The learning rate of all updates that a merge of ``window`` can scale (of points two or more).

    Raises:
      UsageError: it is not constant there.
    """
    schedule = run_schedule.from_config(run.config, run.facts.get("branch_step"))
    updates = np.arange(window.start, window.steps[-1])  # a checkpoint at step s holds the updates 0 .. s - 1
    rates = schedules.rates_at(schedule, updates)
    if np.ptp(rates) > 1e-6 * rates.max():
        raise UsageError(
            f"these weights need a constant rate, but between steps {window.start} and {window.steps[-1]} of "
            f"{run.path} it goes from {rates[0]:.3g} to {rates[-1]:.3g}"
        )
    return float(rates[0])
