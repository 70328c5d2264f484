"""Where things lie: on a file system of this machine. What looks like the address of anything else is refused."""

import os
import re
from pathlib import Path

from wsm_jax.errors import UsageError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # Path makes one slash of two


def at(path: str | os.PathLike) -> Path:
    """The path that a user gave.

    Raises:
      UsageError: the address of a bucket or of a site, of which Path would make a folder.
    """
    local(path)
    return Path(path)


def local(path: str | os.PathLike) -> Path:
    """As :func:`at`, of what is read and written as files of this machine only.

    Raises:
      UsageError: any address.
    """
    if _ADDRESS.match(os.fspath(path)):
        raise UsageError(f"{path} is no path of a file system; mount the bucket, or copy it, and name the folder")
    return Path(path)
