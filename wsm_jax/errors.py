"""The one exception a user is meant to see, and the one warning: a line that names the culprit and what to do."""

import contextlib
import difflib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class UsageError(ValueError):
    """Bad input: an argument, a config field, a file or a step. The command line prints it and exits with status 2."""


class UsageWarning(UserWarning):
    """Something unusual that is allowed. The command line prints it as one line and goes on."""


def warn(text: str) -> None:
    """Warns of something unusual that is allowed."""
    warnings.warn(text, UsageWarning, stacklevel=3)


def nearest(text: str, known: Iterable[str]) -> str:
    """The name of ``known`` that is most like ``text``; empty where none is."""
    return next(iter(difflib.get_close_matches(text, list(known), n=1)), "")


def meant(text: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean ...?`` for the :func:`nearest`; empty where there is none."""
    name = nearest(text, known)
    return f"; did you mean {prefix}{name}?" if name else ""


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Prints every :class:`UsageWarning` as a line of the command ``name`` on stderr."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, UsageWarning):
            print(f"{name}: warning: {message}", file=sys.stderr)
        else:
            others(message, category, *place, **more)

    warnings.simplefilter("always", UsageWarning)
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = others


class NonFiniteError(RuntimeError):
    """Training or an evaluation met a NaN or an infinity; the command line exits with status 3.

    Attributes:
      step: the update (counted from 1) whose loss or gradient was not finite; None in an evaluation.
    """

    def __init__(self, step: int | None, message: str):
        super().__init__(message)
        self.step = step


class Preempted(RuntimeError):
    """A signal stopped training after its state was saved; the command line exits with status 75 (resumable)."""


def ended(name: str, main: Callable[[], int]) -> int:
    """The exit status of a command called ``name``; what stopped it is one line on stderr, not a traceback.

    A :class:`UsageWarning` is a line there, too.

    Returns:
      what ``main`` returns; 2 for bad input and for what the system refuses, 3 for a value that is not finite, 75 for a
      signal after which the same command goes on, 130 for an interruption.
    """
    try:
        with _told(name):
            return main()
    except UsageError as error:
        status, text = 2, str(error)
    except NonFiniteError as error:
        status, text = 3, f"stopped at a value that is not finite: {error}"
    except Preempted as error:
        status, text = 75, str(error)
    except OSError as error:  # a full disk, a folder that may not be written
        status, text = 2, f"{error.filename or 'the system'}: {error.strerror or error}"
    except KeyboardInterrupt:  # outside the training loop, which saves and stops by itself
        status, text = 130, "interrupted"
    print(f"{name}: {text}", file=sys.stderr)
    return status
