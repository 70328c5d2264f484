"""How much room trees, folders and streams take, and whether the disk has it."""

import contextlib
import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wsm_jax.errors import UsageError
from wsm_jax.io import places


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes when stored uncompressed."""
    import jax  # only here: what publishes files need not wait for it

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def disk_bytes(directory: str | os.PathLike) -> int:
    """Bytes of a file, or of the files under a folder; 0 where there is none, as in a bucket.

    What goes meanwhile does not count.
    """
    if places.on_bucket(places.at(directory)):
        return 0
    total = os.path.getsize(directory) if os.path.isfile(directory) else 0
    for folder, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.path.getsize(os.path.join(folder, name))
    return total


def check_disk(directory: str | os.PathLike, needed: int, advice: str = "choose another disk") -> None:
    """Raises UsageError, ending in ``advice``, where its disk has less than ``needed`` bytes free."""
    free = _free(directory)
    if needed > free:
        raise UsageError(
            f"{directory} needs {needed / 1e9:.3f} GB more but its disk has {free / 1e9:.3f} GB free; {advice}"
        )


@contextlib.contextmanager
def writing(path: str | os.PathLike, needed: int | Callable[[], int]) -> Iterator[None]:
    """Makes one line of a disk that is full, a quota that is used up, or a bucket that refuses.

    Args:
      path: what is being written.
      needed: bytes that it takes; or, where nobody knows, what gives those that it took until the disk was full.

    Raises:
      UsageError: the disk was full, or the bucket refused.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UsageError):
            raise
        if (refusal := _refusal(places.at(path), error)) is not None:
            raise refusal from error
        if not _is_full(error):
            raise
        raise _full(path, needed) from error


def check_room(path: str | os.PathLike, needed: int) -> None:
    """Raises the error of :func:`writing` before anything is written, where that takes ``needed`` bytes.

    Libraries that meet a full disk in threads of their own say so in thousands of lines.
    """
    if needed > _free(path):
        raise _full(path, needed)


def _full(path: str | os.PathLike, needed: int | Callable[[], int]) -> UsageError:
    takes = f"it takes more than {needed() / 1e6:.3f} MB" if callable(needed) else f"it takes {needed / 1e6:.3f} MB"
    return UsageError(
        f"{path} cannot be written: the disk is full, {takes} and {_free(path) / 1e6:.3f} MB are free; make room, then "
        "type the same command again"
    )


def _free(path: str | os.PathLike) -> int:
    """Bytes; a bucket is never full."""
    place = places.at(path)
    return sys.maxsize if places.on_bucket(place) else shutil.disk_usage(_existing_parent(place.absolute())).free


def _refusal(place: Path, error: BaseException) -> UsageError | None:
    if not places.on_bucket(place):
        return None
    from wsm_jax.io import bucket

    return UsageError(f"{place}: {bucket.reason(error)}") if bucket.is_answer(error) else None


def _is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it follows from, is of a full disk. TensorStore's has only a text."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return says_full(str(error)) or _is_full(error.__cause__ or error.__context__)


def says_full(text: str) -> bool:
    """Whether the text of an error or of a message speaks of a full disk."""
    numpy = re.search(r"^\d+ requested and \d+ written$", text)
    return "No space left on device" in text or "Disk quota exceeded" in text or numpy is not None


def check_writable(folder: str | os.PathLike) -> None:
    """Raises UsageError where ``folder`` could not be made, or nothing could be written into it; makes nothing."""
    if places.on_bucket(place := places.at(folder)):
        raise UsageError(f"{folder} is in a bucket; choose a folder of this machine with --output")
    there = _existing_parent(place.absolute())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "may not be written" if there.is_dir() else "is no folder"
        raise UsageError(f"{folder} cannot be written: {there} {reason}; choose another --output")


def _existing_parent(path: Path) -> Path:
    return path if path.exists() else _existing_parent(path.parent)
