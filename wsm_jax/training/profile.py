"""A trace of a few updates of a run, to see where their time goes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from wsm_jax.errors import UsageError

UPDATES = 3
Say = Callable[[str], None]


class Profile:
    """Traces ``UPDATES`` updates from one on, or none.

    Args:
      folder: where the trace goes, made if missing.
      first: the first update traced; None: no trace.
      start: updates done before.
      steps: updates of the whole run.

    Raises:
      UsageError: an update that this run does not make, or makes no more.
    """

    def __init__(self, folder: Path, first: int | None, *, start: int, steps: int):
        if first is not None and not start < first <= steps:
            raise UsageError(f"--profile={first}: this run makes the updates {start + 1} to {steps}")
        self._folder, self._first = folder, first
        self._last = min((first or 0) + UPDATES - 1, steps)
        self._tracing = False

    def before(self, step: int, state: Any, say: Say) -> None:
        """Begins or ends the trace where update ``step``, which makes the next ``state``, is the one for it."""
        if step == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._tracing = True
        elif step == self._last + 1:
            jax.block_until_ready(state)
            self.close(say)

    def close(self, say: Say) -> None:
        """Ends the trace, if it is under way, and says how to open it."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            say(
                f"trace of the updates {self._first} to {self._last}: {self._folder}; open its perfetto_trace.json.gz "
                f"at https://ui.perfetto.dev, or pip install xprof and xprof --logdir={self._folder}"
            )
