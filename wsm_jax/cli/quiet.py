"""What libraries say, in threads of their own, of an error that they raise too: thousands of lines for a full disk."""

import logging
import sys
from typing import Any

from wsm_jax.io.disk import says_full

_CLOSED = "Event loop is closed"  # what TensorStore meets that would report to a save which has failed


def quiet() -> None:
    """Leaves out messages on a full disk; the error itself becomes one line where it ends the command."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_wanted)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if _CLOSED not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook


def _wanted(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    text = f"{record.getMessage()} {error}"
    return not (says_full(text) or _CLOSED in text)
