"""The one exception a user is meant to see: one line that names the culprit and what would be right."""

import sys
from collections.abc import Callable


class UsageError(ValueError):
    """Bad input: an argument, a config field, a file or a step. The command line prints it and exits with status 2."""


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

    Returns:
      what ``main`` returns; 2 for bad input and for what the system refuses, 3 for a value that is not finite, 75 for a
      signal after which the same command goes on, 130 for an interruption.
    """
    try:
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
