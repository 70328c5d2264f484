"""Which checkpoints of a run a merge takes: one window, or a window that slides along the run."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints.run import Run
from wsm_jax.errors import UsageError

# What a merge takes: the parameters at the end of each interval, or their means over it. MEAN is the item's name too.
POINT, MEAN = SNAPSHOTS = ("point", "mean")


@dataclasses.dataclass(frozen=True)
class Window:
    """Equally spaced checkpoints of one run, oldest first.

    Attributes:
      paths: their folders.
      steps: their steps.
      interval: steps between neighbours.
      snapshot: ``point``: the checkpoints are merged; ``mean``: the means over the intervals that end at them.
    """

    paths: tuple[Path, ...]
    steps: tuple[int, ...]
    interval: int
    snapshot: str = POINT

    @property
    def count(self) -> int:
        """How many checkpoints."""
        return len(self.steps)

    @property
    def start(self) -> int:
        """The step after which the updates come that a merge can scale."""
        return self.steps[0] - (self.interval if self.snapshot == MEAN else 0)


def choose_snapshot(run: Run, asked: str | None = None) -> str:
    """What a merge of ``run`` takes: ``asked``, else ``mean`` where the run keeps nothing else, else ``point``.

    Raises:
      UsageError: the run does not keep what is asked for.
    """
    kept = run.config.checkpoint.snapshot
    if asked is None:
        return MEAN if kept == MEAN else POINT
    if asked not in SNAPSHOTS:
        raise UsageError(f"snapshot {asked!r}: choose {' or '.join(SNAPSHOTS)}")
    if asked == MEAN and kept == POINT:
        raise UsageError(
            f"{run.path} keeps no interval means (checkpoint.snapshot=point); merge with --snapshot=point, or train "
            "with checkpoint.snapshot=mean or both"
        )
    if asked == POINT and kept == MEAN:
        raise UsageError(
            f"{run.path} keeps interval means (checkpoint.snapshot=mean) and no points; merge with --snapshot=mean"
        )
    return asked


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
    if "imported" in run.facts and window.strip().endswith("tok"):
        raise UsageError(f"window={window!r}: nobody knows how many tokens a step of {run.path} was; give steps")
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


def select(
    run: Run, count: int, *, last_step: int | None = None, interval: int | None = None, snapshot: str = POINT
) -> Window:
    """The ``count`` checkpoints of the run's merge stream that end at ``last_step``, every ``interval`` steps.

    The window is count x interval steps long; its oldest checkpoint lies (count - 1) x interval before the newest.
    Only complete checkpoints are seen, so a run may still be writing.

    Args:
      run: the run.
      count: number of checkpoints, or of intervals whose means are merged, at least 1.
      last_step: default: the newest.
      interval: default: the stream's own.
      snapshot: ``point`` or ``mean``; means need every checkpoint inside their intervals, too.

    Raises:
      UsageError: an empty stream, count below 1, a checkpoint that is missing, naming its step; for means also an
        interval that is no multiple of the stream's, or one of which the run, a branch, saw a part only.
    """
    there = _complete_steps(run)
    own = run.plan.merge_interval
    count, interval = _shape(run, count, interval, snapshot)
    last_step = there[-1] if last_step is None else last_step
    first, every = _reads(count, interval, own, last_step, snapshot)
    missing = _missing(there, first, last_step, every)
    if missing is not None:
        needs = f"{(last_step - first) // every + 1} every {every} steps up to {last_step}"
        has = f"it has {len(there)}, from {there[0]} to {there[-1]}, saved every {own} steps"
        if missing <= 0:
            raise UsageError(f"{run.merge_stream}: {needs} begin at step {missing}, before there are any; {has}")
        raise UsageError(f"{run.merge_stream} has no checkpoint at step {missing} (needed: {needs}); {has}")
    window = _window(run, count, interval, last_step, snapshot)
    if window.start < _first_mean(run, snapshot):
        raise UsageError(
            f"{run.merge_stream}: the mean at step {first} covers the updates since the branch at step "
            f"{run.facts['branch_step']} only, not all of its {own}; take a shorter window"
        )
    return window


def series(
    run: Run,
    count: int,
    every: int,
    *,
    first_step: int = 0,
    last_step: int | None = None,
    interval: int | None = None,
    snapshot: str = POINT,
) -> list[Window]:
    """The window of ``count`` checkpoints at every step of the run that is a multiple of ``every`` and where it fits.

    It fits where all its checkpoints are there: not at the start, nor where retention has removed one.

    Args:
      run: the run; it may still be writing.
      count: number of checkpoints in each window, at least 1.
      every: steps between the newest checkpoints of neighbouring windows, a multiple of the stream's interval.
      first_step: windows that start before it are left out, e.g. those that reach into the warm-up.
      last_step: windows whose newest checkpoint lies after it are left out.
      interval: default: the stream's own.
      snapshot: as for :func:`select`.

    Returns:
      windows, in the order of their newest checkpoints; at least one.

    Raises:
      UsageError: an empty stream, count, interval or every out of range, or no step where the window fits.
    """
    there, own = _complete_steps(run), run.plan.merge_interval
    bounds = {"first_step": first_step, "last_step": last_step, "interval": interval, "snapshot": snapshot}
    fitting = windows_over(run, there, count, every, **bounds)
    if not fitting:
        raise UsageError(
            f"{run.merge_stream}: no step that is a multiple of {every} ends a window of {count} checkpoints every "
            f"{interval or own} steps; it has {len(there)}, from {there[0]} to {there[-1]}, saved every {own} steps"
        )
    return fitting


def windows_over(
    run: Run,
    there: Sequence[int],
    count: int,
    every: int,
    *,
    first_step: int = 0,
    last_step: int | None = None,
    interval: int | None = None,
    snapshot: str = POINT,
) -> list[Window]:
    """As :func:`series`, of a merge stream with the steps ``there``, those of today or of the whole plan; maybe none.

    Raises:
      UsageError: count, interval or every out of range.
    """
    own = run.plan.merge_interval
    count, interval = _shape(run, count, interval, snapshot)
    if every < 1 or every % own:
        raise UsageError(
            f"every={every} is no multiple of the stream's interval of {own} steps; {_nearest(every, own)} is"
        )
    known, first_step = set(there), max(first_step, _first_mean(run, snapshot))
    fitting = []
    for end in there:
        if end % every == 0 and (last_step is None or end <= last_step):
            first, apart = _reads(count, interval, own, end, snapshot)
            if first - (own if snapshot == MEAN else 0) >= first_step and _missing(known, first, end, apart) is None:
                fitting.append(_window(run, count, interval, end, snapshot))
    return fitting


def _reads(count: int, interval: int, own: int, last_step: int, snapshot: str) -> tuple[int, int]:
    """The first step that a window ending at ``last_step`` reads, and how far apart what it reads lies."""
    if snapshot == MEAN:
        return last_step - count * interval + own, own
    return last_step - (count - 1) * interval, interval


def _missing(there: Collection[int], first: int, last: int, apart: int) -> int | None:
    """The first step of a window that is not there. A range, so however long it is, one is found soon."""
    return next((step for step in range(first, last + 1, apart) if step not in there), None)


def saved_steps(window: Window, own: int) -> Sequence[int]:
    """Steps of the checkpoints that a merge of ``window`` reads.

    The mean over a long interval is the plain mean of the means over its parts, so all inside the intervals are read.

    Args:
      window: the window.
      own: interval of the stream, which divides that of a window of means.
    """
    return range(window.start + own, window.steps[-1] + 1, own) if window.snapshot == MEAN else window.steps


def default_name(rule: str, window: Window) -> str:
    """``<rule>-<count>x<interval>-at-<step>``, where a merge of a run is written unless named (``ema:0.9``: ema0.9).

    Of means it is ``<rule>-mean-<count>x<interval>-at-<step>``.
    """
    mark = f"-{MEAN}" if window.snapshot == MEAN else ""
    return f"{rule.replace(':', '')}{mark}-{window.count}x{window.interval}-at-{window.steps[-1]}"


def _complete_steps(run: Run) -> list[int]:
    there = orbax.complete_steps(run.merge_stream)
    if not there:
        raise UsageError(f"{run.merge_stream} holds no complete checkpoint")
    return there


def _shape(run: Run, count: int, interval: int | None, snapshot: str) -> tuple[int, int]:
    count, interval = window_shape(run, count=count, interval=interval)
    own = run.plan.merge_interval
    if snapshot == MEAN and interval % own:
        raise UsageError(
            f"interval={interval} is no multiple of the {own} steps that each mean of {run.merge_stream} is taken "
            f"over; {_nearest(interval, own)} is"
        )
    return count, interval


def _first_mean(run: Run, snapshot: str) -> int:
    """Where a window may start: means begin anew in a branch, so the first one may lack updates of its interval."""
    return (run.facts.get("branch_step") or 0) if snapshot == MEAN else 0


def _window(run: Run, count: int, interval: int, last_step: int, snapshot: str) -> Window:
    steps = tuple(last_step - i * interval for i in reversed(range(count)))
    return Window(tuple(run.merge_stream / str(step) for step in steps), steps, interval, snapshot)
