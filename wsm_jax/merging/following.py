"""Windows of a run that is being trained, as it writes them (WSM merges asynchronously, beside the trainer)."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.checkpoints.run import Run
from wsm_jax.errors import Preempted, UsageError
from wsm_jax.merging import selection
from wsm_jax.merging.selection import Window

POLL = 2.0  # seconds between two looks at the stream
PATIENCE = 60.0  # seconds that a run may be without a trainer, which may just be starting
PATIENCE_BLIND = 3600.0  # seconds without a new checkpoint where the file system cannot tell whether there is one


def follow(
    run: Run,
    count: int,
    every: int,
    *,
    last_step: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    **bounds: Any,
) -> Iterator[list[Window]]:
    """The windows of :func:`wsm_jax.merging.selection.series`, each as soon as its newest checkpoint is complete.

    It ends when the last window that the run's plan has is there. A window of which retention takes a checkpoint before
    it was looked at is told of and left out.

    Args:
      run: the run, before, while or after it is trained.
      count, every, last_step, bounds: as for ``series``.
      say: told what is waited for, and what was missed.

    Yields:
      the windows that are new, in order.

    Raises:
      UsageError: values that ``series`` refuses; a window that fits nowhere in the run's plan.
      Preempted: no process trains the run and its end is not there, so that nothing new can come.
    """
    began = run.facts.get("branch_step") or 0
    steps = [step for step in run.plan.merge_steps() if step > began]
    planned = selection.windows_over(run, steps, count, every, last_step=last_step, **bounds)
    if not planned:
        raise UsageError(
            f"{run.path}: no step of its {run.plan.steps} that is a multiple of {every} ends such a window"
        )
    coming = {window.steps[-1] for window in planned}
    newest, since, told = -1, time.monotonic(), False
    while coming:
        training = run_lib.is_claimed(run.path)  # before the look: what an ended trainer wrote is all there then
        there = orbax.complete_steps(run.merge_stream)
        found = selection.windows_over(run, there, count, every, last_step=last_step, **bounds)
        if fresh := [window for window in found if window.steps[-1] in coming]:
            coming -= {window.steps[-1] for window in fresh}
            yield fresh
        passed = {end for end in coming if there and end <= there[-1]}
        if missed := sorted(passed - {window.steps[-1] for window in found}):
            say(f"note: of the window at step {', '.join(map(str, missed))} a checkpoint is gone; it is left out")
            coming -= set(missed)
        if (there and there[-1] != newest) or training:
            newest, since = there[-1] if there else -1, time.monotonic()
        elif time.monotonic() - since > (PATIENCE_BLIND if training is None else PATIENCE):
            at = f"step {newest}" if newest > 0 else "its start"
            raise Preempted(
                f"no process trains {run.path}, which is at {at} of {run.plan.steps}; {len(coming)} windows are still "
                "to come. The same command goes on when it is trained further"
            )
        if coming and not told:
            alone = ", which no process trains now" if training is False else ""
            say(f"waiting for step {min(coming)} of {run.path}{alone}")
            told = True
        if coming and not fresh:
            time.sleep(POLL)
