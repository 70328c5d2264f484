"""Which checkpoints of a run a merge takes, and with which weights."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from wsm_jax import checkpoints, coefficients, schedules
from wsm_jax.errors import UsageError
from wsm_jax.run import Run


@dataclasses.dataclass(frozen=True)
class Window:
    """Equally spaced checkpoints of one run, oldest first.

    Attributes:
      paths: their folders.
      steps: their steps.
      interval: steps between neighbours.
    """

    paths: tuple[Path, ...]
    steps: tuple[int, ...]
    interval: int

    @property
    def count(self) -> int:
        return len(self.steps)


def select(run: Run, count: int, *, last_step: int | None = None, interval: int | None = None) -> Window:
    """The ``count`` checkpoints of the run's merge stream that end at ``last_step``, every ``interval`` steps.

    The window is count x interval steps long (the paper's Table 4 counts so); its oldest checkpoint lies
    (count - 1) x interval before the newest. Only complete checkpoints are seen, so a run may still be writing.

    Args:
      run: the run.
      count: number of checkpoints, at least 1.
      last_step: default: the newest.
      interval: default: the stream's own.

    Raises:
      UsageError: an empty stream, count below 1, or a checkpoint that is missing, naming its step.
    """
    there = checkpoints.complete_steps(run.merge_stream)
    if not there:
        raise UsageError(f"{run.merge_stream} holds no complete checkpoint")
    own = run.plan.merge_interval
    interval = own if interval is None else interval
    last_step = there[-1] if last_step is None else last_step
    if count < 1 or interval < 1:
        raise UsageError(f"count={count} and interval={interval} must be at least 1")
    steps = [last_step - i * interval for i in reversed(range(count))]
    missing = [step for step in steps if step not in there]
    if missing:
        raise UsageError(
            f"{run.merge_stream} has no checkpoint at step {missing[0]} (needed: {count} every {interval} steps up to "
            f"{last_step}); it has {len(there)}, from {there[0]} to {there[-1]}, saved every {own} steps"
        )
    return Window(tuple(run.merge_stream / str(step) for step in steps), tuple(steps), interval)


def default_name(curve: str, window: Window) -> str:
    """``<curve>-<count>x<interval>-at-<step>``, where a merge of a run is written unless named."""
    return f"{curve}-{window.count}x{window.interval}-at-{window.steps[-1]}"


def curve_weights(run: Run, window: Window, curve: str, *, weight_decay_aware: bool = False) -> Any:
    """Merge weights of ``curve`` over ``window``: one vector, or with ``weight_decay_aware`` one for each leaf.

    The aware form (ours, not the paper's) goes to the leaves that the run's optimizer shrinks; the others take the
    plain map.

    Raises:
      UsageError: unknown curve; a run that saves interval means only; with ``weight_decay_aware`` a rate that is not
        constant over the window.
    """
    if run.config.checkpoint.snapshot == "mean":
        raise UsageError(f"{run.path} keeps interval means (checkpoint.snapshot=mean), which these weights do not fit")
    plain = coefficients.merge_weights(curve, window.count)
    decay = run.config.optimizer.weight_decay
    if not weight_decay_aware or window.count == 1 or not decay:
        return plain
    schedule = schedules.from_config(run.config, run.facts.get("branch_step"))
    rates = np.asarray([float(schedule(step)) for step in range(window.steps[0], window.steps[-1])])
    if np.ptp(rates) > 1e-6 * rates.max():
        raise UsageError(
            f"weight-decay-aware weights need a constant rate, but between steps {window.steps[0]} and "
            f"{window.steps[-1]} it goes from {rates.max():.3g} to {rates.min():.3g}"
        )
    aware = coefficients.merge_weights(
        curve,
        window.count,
        learning_rate=float(rates[0]),
        weight_decay=decay,
        steps_per_interval=window.interval,
    )
    return {path: aware if decayed else plain for path, decayed in run.facts["decay_mask"].items()}
