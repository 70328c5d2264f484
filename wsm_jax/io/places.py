"""Where things lie: on a file system of this machine, or in a bucket, gs://BUCKET/PATH; nowhere else.

The files of this folder know the difference. Those above it take a path from here and use it as any other; where what
they do is another thing on a bucket, they ask :func:`on_bucket`.
"""

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from wsm_jax.errors import UsageError

if TYPE_CHECKING:
    from wsm_jax.io.bucket import BucketPath

Out = TypeVar("Out")

_SCHEME = "gs://"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # Path makes one slash of two


def at(path: str | os.PathLike) -> Path:
    """The path that a user gave; that of a bucket does what pathlib.Path does, see :mod:`wsm_jax.io.bucket`.

    Raises:
      UsageError: any other address, of which Path would make a folder; a bucket that is not there or may not be read.
    """
    text = os.fspath(path)
    if not text.startswith(_SCHEME):
        return local(path)
    from wsm_jax.io import bucket

    found: Any = path if isinstance(path, bucket.BucketPath) else bucket.path(text)
    return found


def local(path: str | os.PathLike) -> Path:
    """As :func:`at`, of what is read and written as files of this machine only.

    TensorStore takes no path with ``..``: up to the last one, links followed as the system does, it is resolved.

    Raises:
      UsageError: any address.
    """
    if _ADDRESS.match(text := os.fspath(path)):
        works = "" if text.startswith(_SCHEME) else ", nor gs://BUCKET/PATH"
        raise UsageError(f"{path} is no path of a file system{works}; mount the bucket and name its folder, or copy it")
    parts = (found := Path(path)).parts
    if ".." not in parts:
        return found
    after = len(parts) - parts[::-1].index("..")
    return Path(os.path.realpath(Path(*parts[:after])), *parts[after:])


def on_bucket(path: Any) -> "TypeGuard[BucketPath]":
    """Whether a path of :func:`at` is one of a bucket."""
    return not isinstance(path, Path)


def store(folder: Path) -> dict[str, Any]:
    """TensorStore's key-value store of a folder. In a URL a ``#``, ``?`` or ``%`` of the path would mean something."""
    if on_bucket(folder):
        from wsm_jax.io import bucket

        return bucket.store(folder)
    return {"driver": "file", "path": f"{folder.absolute()}/"}


def ask(question: Callable[[Path], Out], paths: Sequence[Path]) -> list[Out]:
    """The answer for each path; of a bucket, which takes its time, many at once."""
    if not paths or not on_bucket(paths[0]):
        return [question(path) for path in paths]
    from wsm_jax.io import bucket

    with ThreadPoolExecutor(bucket.AT_ONCE) as pool:
        return list(pool.map(question, paths))
