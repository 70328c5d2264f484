"""Which checkpoints of a run a merge takes: one window, or a window that slides along the run."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

from wsm_jax import checkpoints
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


def window_shape(
    run: Run, *, window: str | None = None, count: int | None = None, interval: int | None = None
) -> tuple[int, int]:
    """(count, interval) of a window that is count x interval long (the paper's Table 4 counts so).

    Two of the three decide the third; where only one is given, ``interval`` is the merge stream's own.

    Args:
      run: the run; its configuration turns tokens and shares of the run into steps.
      window: a duration: ``400steps``, ``2Mtok`` (rounded up to whole steps) or ``0.1run`` (of the whole run as it is
        configured, also while it is under way).
      count: number of checkpoints.
      interval: steps between them.

    Raises:
      UsageError: neither window nor count; a value below 1; a window that is no multiple of the interval, or of
        ``count`` intervals of the stream, naming the nearest that is; three values that contradict each other.
    """
    for name, value in (("count", count), ("interval", interval)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be a whole number of at least 1, got {value}")
    own = run.plan.merge_interval
    if window is None:
        if count is None:
            raise UsageError("a window needs its count or its length: --count=N or --window=W, e.g. --window=0.1run")
        return count, interval or own
    steps = run.config.duration_steps("window", window)
    if interval is not None and count is not None and steps != count * interval:
        raise UsageError(
            f"window={window!r} is {steps} steps, but count={count} x interval={interval} is {count * interval}; "
            "give two of the three"
        )
    # A window of so many checkpoints can grow only by one interval of the stream for each of them.
    unit = interval or (count or 1) * own
    if steps < 1 or steps % unit:
        what = f"the interval of {unit} steps" if count is None else f"{count} x the stream's interval of {own} steps"
        raise UsageError(f"window={window!r} is {steps} steps, no multiple of {what}; {_nearest(steps, unit)}steps is")
    return (count, steps // count) if count else (steps // unit, unit)


def _nearest(steps: int, unit: int) -> int:
    return max(round(steps / unit), 1) * unit


def select(run: Run, count: int, *, last_step: int | None = None, interval: int | None = None) -> Window:
    """The ``count`` checkpoints of the run's merge stream that end at ``last_step``, every ``interval`` steps.

    The window is count x interval steps long; its oldest checkpoint lies (count - 1) x interval before the newest.
    Only complete checkpoints are seen, so a run may still be writing.

    Args:
      run: the run.
      count: number of checkpoints, at least 1.
      last_step: default: the newest.
      interval: default: the stream's own.

    Raises:
      UsageError: an empty stream, count below 1, or a checkpoint that is missing, naming its step.
    """
    there = _complete_steps(run)
    own = run.plan.merge_interval
    count, interval = window_shape(run, count=count, interval=interval)
    last_step = there[-1] if last_step is None else last_step
    steps = _steps(count, interval, last_step)
    missing = [step for step in steps if step not in there]
    if missing:
        raise UsageError(
            f"{run.merge_stream} has no checkpoint at step {missing[0]} (needed: {count} every {interval} steps up to "
            f"{last_step}); it has {len(there)}, from {there[0]} to {there[-1]}, saved every {own} steps"
        )
    return _window(run, steps, interval)


def series(
    run: Run,
    count: int,
    every: int,
    *,
    first_step: int = 0,
    last_step: int | None = None,
    interval: int | None = None,
) -> list[Window]:
    """The window of ``count`` checkpoints at every step of the run that is a multiple of ``every`` and where it fits.

    It fits where all its checkpoints are there: not at the start, nor where retention has removed one.

    Args:
      run: the run; it may still be writing.
      count: number of checkpoints in each window, at least 1.
      every: steps between the newest checkpoints of neighbouring windows, a multiple of the stream's interval.
      first_step: windows whose oldest checkpoint lies before it are left out, e.g. those that reach into the warm-up.
      last_step: windows whose newest checkpoint lies after it are left out.
      interval: default: the stream's own.

    Returns:
      windows, in the order of their newest checkpoints; at least one.

    Raises:
      UsageError: an empty stream, count or every out of range, or no step where the window fits.
    """
    there = _complete_steps(run)
    own = run.plan.merge_interval
    count, interval = window_shape(run, count=count, interval=interval)
    if every < 1 or every % own:
        raise UsageError(
            f"every={every} is no multiple of the stream's interval of {own} steps; {_nearest(every, own)} is"
        )
    known = set(there)
    ends = [step for step in there if step % every == 0 and (last_step is None or step <= last_step)]
    fitting = [steps for end in ends if known >= set(steps := _steps(count, interval, end)) and steps[0] >= first_step]
    if not fitting:
        raise UsageError(
            f"{run.merge_stream}: no step that is a multiple of {every} ends a window of {count} checkpoints every "
            f"{interval} steps; it has {len(there)}, from {there[0]} to {there[-1]}, saved every {own} steps"
        )
    return [_window(run, steps, interval) for steps in fitting]


def union(windows: Collection[Window]) -> tuple[tuple[int, ...], tuple[Path, ...]]:
    """Steps and folders of all checkpoints that occur in ``windows``, oldest first, each once."""
    paths = {step: path for window in windows for step, path in zip(window.steps, window.paths, strict=True)}
    steps = tuple(sorted(paths))
    return steps, tuple(paths[step] for step in steps)


def default_name(rule: str, window: Window) -> str:
    """``<rule>-<count>x<interval>-at-<step>``, where a merge of a run is written unless named (``ema:0.9``: ema0.9)."""
    return f"{rule.replace(':', '')}-{window.count}x{window.interval}-at-{window.steps[-1]}"


def _complete_steps(run: Run) -> list[int]:
    there = checkpoints.complete_steps(run.merge_stream)
    if not there:
        raise UsageError(f"{run.merge_stream} holds no complete checkpoint")
    return there


def _steps(count: int, interval: int, last_step: int) -> list[int]:
    return [last_step - i * interval for i in reversed(range(count))]


def _window(run: Run, steps: Sequence[int], interval: int) -> Window:
    return Window(tuple(run.merge_stream / str(step) for step in steps), tuple(steps), interval)
