"""A request to stop as a flag that the training loop asks for, agreed on by all processes."""

import signal
import threading
from types import FrameType
from typing import Any

import jax


class StopSignals:
    """Context manager: while open, the first SIGINT or SIGTERM asks for a stop; a second SIGINT interrupts at once.

    On several processes a SIGTERM to any of them asks all for a stop; there SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        # Python allows handlers in no other thread. On several processes JAX has a handler of its own for SIGTERM,
        # which one of Python's would replace.
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def stopping(self, step: int) -> bool:
        """Whether to save and stop after update ``step``; the same answer on every process."""
        if jax.process_count() == 1:
            return self._asked
        from jax.experimental import multihost_utils

        # JAX's service sees a SIGTERM on any host and makes all hosts agree on the step to stop at.
        return multihost_utils.reached_preemption_sync_point(step)
