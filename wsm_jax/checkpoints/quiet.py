"""Orbax kept quiet while we call it, and nobody else: it warns of what this package does on purpose."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

_LOGGERS = ("absl", "")  # it logs through both
_lock = threading.Lock()
_held = 0


_waiting: list[Callable[[], None]] = []


def when_used(function: Callable[[], None]) -> None:
    """Has ``function`` called once, before Orbax is first used: importing absl, whose logger it has, takes a while."""
    _waiting.append(function)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what Orbax logs below an error, also in its threads, until the block ends; the loggers are left as found.

    And the traceback of what one of its threads raised: who waits for the save gets the error itself.

    It doubts every checkpoint in plain files of zarr3, which a merge reads: it looks for OCDBT and zarr2 only.
    """
    _hold(1)
    try:
        yield
    finally:
        _hold(-1)


def _hold(change: int) -> None:
    global _held
    # A logger of that name which is made before absl is no logger of absl's, and does not know who called it.
    from absl import logging as _  # noqa: F401

    with _lock:
        while _waiting:
            _waiting.pop()()
        before, _held = _held, _held + change
        for name in _LOGGERS:
            if not before:
                logging.getLogger(name).addFilter(_not_orbax)
            elif not _held:
                logging.getLogger(name).removeFilter(_not_orbax)


def _not_orbax(record: logging.LogRecord) -> bool:
    if "/orbax/" not in record.pathname:
        return True
    return record.levelno >= logging.ERROR and "_SignalingThread.run() raised" not in record.getMessage()
