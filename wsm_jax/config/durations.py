"""Durations and lists as texts, because a union-typed field rejects every override on the command line."""

import math
import re

from wsm_jax.errors import UsageError

MOST_STEPS = 2**31 - 1  # a run counts its updates in an int32
_DURATION = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(steps?|[kMBT]?tok|run)\s*$")
_SCALE = {"tok": 1.0, "ktok": 1e3, "Mtok": 1e6, "Btok": 1e9, "Ttok": 1e12}


def parse_duration(text: str, *, tokens_per_step: int, run_steps: int | None, field: str = "duration") -> int:
    """Updates in a duration: ``100steps``, ``2Btok`` (rounded up to whole updates) or ``0.1run`` (rounded to nearest).

    Args:
      text: number and unit.
      tokens_per_step: tokens in one update.
      run_steps: updates in the whole run, or None where a share of the run makes no sense.
      field: config field named in the error.

    Raises:
      UsageError: another form, or a share of the run where ``run_steps`` is None.
    """
    match = _DURATION.match(text) if isinstance(text, str) else None
    number, unit = (float(match[1]), match[2]) if match else (math.nan, "")
    if unit == "run" and run_steps is None:
        raise UsageError(f"{field}={text!r} cannot be a share of the run; write steps or tokens")
    if unit.startswith("step"):
        steps = number
    elif unit == "run":
        steps = number * (run_steps or 0)
    else:  # the small slack keeps 1.024ktok at 1,024 tokens a step from becoming two steps through rounding
        steps = number * _SCALE.get(unit, 1.0) / tokens_per_step - 1e-9
    if not math.isfinite(steps):
        raise UsageError(f"{field}={text!r} is not a duration; write e.g. 100steps, 2Mtok or 0.1run")
    if unit.startswith("step") and steps != int(steps):
        raise UsageError(f"{field}={text!r}: steps must be a whole number")
    return round(steps) if unit == "run" else math.ceil(steps)


def parse_list(text: str) -> list[str]:
    """The items of a comma-separated list; an empty text gives an empty list."""
    return [item.strip() for item in text.split(",") if item.strip()]


def split_commas(text: str) -> list[str]:
    """The items of a comma-separated list; a comma inside braces or brackets belongs to a glob."""
    items, depth = [""], 0
    for letter in text:
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    return [item.strip() for item in items if item.strip()]
