"""The averages that a configuration asks for."""

import functools
import math
import re
from collections.abc import Callable

from wsm_jax.config import Config, parse_list
from wsm_jax.core import averages, online
from wsm_jax.core.averages import Average
from wsm_jax.core.schedules import Schedule
from wsm_jax.errors import UsageError
from wsm_jax.models import family
from wsm_jax.training import optimizer

MEAN = "mean"  # the interval means of checkpoint.snapshot
SNAPSHOTS = ("point", "mean", "both")
_DECAY = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*/\s*(step|tok)\s*")


def from_config(config: Config, schedule: Schedule) -> dict[str, Average]:
    """name -> average: those of ``averaging.names``, and ``mean`` where ``checkpoint.snapshot`` stores interval means.

    ``power_ema`` becomes one average for each width, ``power_ema_0.05`` and so on.

    Args:
      config: the run's configuration.
      schedule: its rate; online WSM accounts for the weight decay with it.

    Raises:
      UsageError: an unknown or repeated name, or settings that do not fit the run, naming the field.
    """
    settings, snapshot = config.averaging, config.checkpoint.snapshot
    names = parse_list(settings.names)
    for name in names:
        if name not in _BUILDERS:
            raise UsageError(f"unknown average {name!r} in averaging.names; known: {', '.join(_BUILDERS)}")
    if len(set(names)) < len(names):
        raise UsageError(f"averaging.names={settings.names!r} names an average twice")
    if snapshot not in SNAPSHOTS:
        raise UsageError(f"checkpoint.snapshot={snapshot!r} is not one of {', '.join(SNAPSHOTS)}")
    interval = _steps(config, "checkpoint.merge_interval", config.checkpoint.merge_interval)
    if settings.every < 1 or interval % settings.every:
        raise UsageError(f"averaging.every={settings.every} does not divide the {interval} steps of a merge interval")
    for name in ("ema", "power_ema"):  # what they are given is looked at also where they are not asked for
        _BUILDERS[name](config, schedule)
    found = {MEAN: averages.interval_mean(interval, every=settings.every)} if snapshot != "point" else {}
    for name in names:
        found |= _BUILDERS[name](config, schedule)
    return found


def _ema(config: Config, _: Schedule) -> dict[str, Average]:
    text = config.averaging.ema_decay
    if match := _DECAY.fullmatch(text):
        decay = float(match[1]) if match[2] == "step" else _decay_of_tokens(float(match[1]), config.tokens_per_step)
    else:
        decay = averages.half_life_decay(_steps(config, "averaging.ema_decay", text))
    if not 0.0 < decay < 1.0:
        raise UsageError(f"averaging.ema_decay={text!r} is not a decay between 0 and 1")
    return {"ema": averages.ema(decay, every=config.averaging.every)}


def _decay_of_tokens(decay: float, tokens: int) -> float:
    return math.exp(tokens * math.log(decay)) if 0 < decay < 1 else decay  # the caller refuses the others


def _running_mean(config: Config, _: Schedule) -> dict[str, Average]:
    start = config.duration_steps("averaging.running_mean_start", config.averaging.running_mean_start)
    return {"running_mean": averages.running_mean(start=start, every=config.averaging.every)}


def _swa(config: Config, _: Schedule) -> dict[str, Average]:
    cycle = _steps(config, "averaging.swa_every", config.averaging.swa_every)
    if config.schedule.name == "cyclic" and cycle != _steps(config, "schedule.cycle", config.schedule.cycle):
        raise UsageError(
            f"averaging.swa_every={config.averaging.swa_every!r} must be schedule.cycle={config.schedule.cycle!r}: "
            "SWA averages the ends of the cycles"
        )
    start = config.duration_steps("averaging.swa_start", config.averaging.swa_start)
    if start % cycle:
        raise UsageError(
            f"averaging.swa_start={config.averaging.swa_start!r} ({start} steps) is not a multiple of "
            f"averaging.swa_every={config.averaging.swa_every!r} ({cycle} steps)"
        )
    first = config.duration_steps("schedule.cycle_start", config.schedule.cycle_start)
    if config.schedule.name == "cyclic" and first % cycle:
        raise UsageError(
            f"schedule.cycle_start={config.schedule.cycle_start!r} ({first} steps) is not a multiple of schedule.cycle="
            f"{config.schedule.cycle!r} ({cycle} steps), so SWA, which averages at such, would miss the cycles' ends"
        )
    return {"swa": averages.swa(start, cycle)}


def _lawa(config: Config, _: Schedule) -> dict[str, Average]:
    if config.averaging.lawa_count < 1:
        raise UsageError(f"averaging.lawa_count is {config.averaging.lawa_count}; it must be at least 1")
    spacing = _steps(config, "averaging.lawa_every", config.averaging.lawa_every)
    return {"lawa": averages.lawa(config.averaging.lawa_count, spacing)}


def _wsm(config: Config, schedule: Schedule) -> dict[str, Average]:
    settings = config.averaging
    if config.optimizer.name == optimizer.SCHEDULE_FREE:
        raise UsageError(
            "averaging.names=wsm emulates a decay of the rate, which optimizer.name=schedule_free does not have"
        )
    length = _steps(config, "averaging.wsm_window", settings.wsm_window)
    text = settings.wsm_every or config.checkpoint.merge_interval
    spacing = _steps(config, "averaging.wsm_every", text)
    if length % spacing or spacing % settings.every:
        raise UsageError(
            f"averaging.wsm_window={settings.wsm_window!r} ({length} steps) must be a multiple of "
            f"averaging.wsm_every={text!r} ({spacing} steps), and that one of averaging.every={settings.every}"
        )
    made = online.online_wsm(
        settings.wsm_curve,
        length,
        spacing=spacing,
        learning_rate=schedule,
        weight_decay=config.optimizer.weight_decay,
        mask=functools.partial(optimizer.decay_mask, leaves=family.of(config.model).leaves(config.model)),
        every=settings.every,
    )
    return {"wsm": made}


def _power_ema(config: Config, _: Schedule) -> dict[str, Average]:
    texts = parse_list(config.averaging.power_ema_widths)
    try:
        widths = [float(text) for text in texts]
    except ValueError as error:
        raise UsageError(
            f"averaging.power_ema_widths={config.averaging.power_ema_widths!r} is not a list of numbers"
        ) from error
    if not widths or len(set(widths)) < len(widths):
        raise UsageError("averaging.power_ema_widths needs one width or several different ones, e.g. 0.05,0.1")
    return {f"power_ema_{w:g}": averages.power_ema(w, every=config.averaging.every) for w in widths}


def _steps(config: Config, field: str, text: str) -> int:
    steps = config.duration_steps(field, text)
    if steps < 1:
        raise UsageError(f"{field}={text!r} is {steps} steps; it must be at least 1")
    return steps


_BUILDERS: dict[str, Callable[[Config, Schedule], dict[str, Average]]] = {
    "ema": _ema,
    "running_mean": _running_mean,
    "swa": _swa,
    "lawa": _lawa,
    "wsm": _wsm,
    "power_ema": _power_ema,
}
NAMES = tuple(_BUILDERS)
