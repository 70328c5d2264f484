"""The one exception a user is meant to see: one line that names the culprit and what would be right."""


class UsageError(ValueError):
    """Bad input: an argument, a config field, a file or a step. The command line prints it and exits with status 2."""


class NonFiniteError(RuntimeError):
    """Training met a NaN or an infinity; the command line exits with status 3.

    Attributes:
      step: the update (counted from 1) whose loss or gradient was not finite.
    """

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


class Preempted(RuntimeError):
    """A signal stopped training after its state was saved; the command line exits with status 75 (resumable)."""
