"""Several processes of one distributed run that go on together or not at all."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from wsm_jax.errors import UsageError


@contextlib.contextmanager
def all_succeed() -> Iterator[None]:
    """A block after which all processes go on, or none: an error in one is an error in all. Blocks are not nested.

    Raises:
      UsageError: another process failed; its own message tells why.
    """
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
    if jax.process_count() > 1:
        fine = multihost_utils.process_allgather(np.asarray(error is None))
        if error is None and not fine.all():
            error = UsageError(f"process {int(np.argmin(fine))} failed; see its message")
    if error is not None:
        raise error
