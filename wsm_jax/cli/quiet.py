"""What libraries say, in threads of their own, of an error that they raise too: thousands of lines for a full disk."""

import logging
import sys
from typing import Any

from wsm_jax.checkpoints.quiet import when_used
from wsm_jax.io.disk import says_full

_CLOSED = "Event loop is closed"  # what TensorStore meets where it would report to a save that has failed
_before = sys.unraisablehook


def quiet() -> None:
    """Leaves out messages on a full disk; the error itself becomes one line where it ends the command."""
    when_used(_filter)
    sys.unraisablehook = _hook


def _filter() -> None:
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_wanted)


def _hook(unraisable: Any) -> None:
    if _CLOSED not in str(unraisable.exc_value):
        _before(unraisable)


def _wanted(record: logging.LogRecord) -> bool:
    text = f"{record.getMessage()} {record.exc_info[1] if record.exc_info else ''}"
    return not (says_full(text) or _CLOSED in text)
