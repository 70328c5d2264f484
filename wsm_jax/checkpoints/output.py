"""The place where a merge appears: whole or not at all, and nothing that is there is touched."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from wsm_jax.checkpoints import integrity
from wsm_jax.errors import UsageError
from wsm_jax.io import claims, disk, places, publish
from wsm_jax.parallel.processes import all_succeed

MARK = ".made-by-wsm-merge"  # in the folder where a merge is under way; what lacks it is somebody else's


def check_free(output: str | os.PathLike) -> None:
    """Raises UsageError where ``output`` exists, or would be taken for a checkpoint that a run saved."""
    place = places.at(output).absolute()
    if publish.is_taken(place):
        raise UsageError(f"{output} exists; choose another name or remove it")
    for folder in place.parents:
        if folder.name == "checkpoints" and (folder.parent / "run.json").is_file():
            raise UsageError(f"{output} is among the checkpoints of a run, which merge reads; write to another folder")


@contextlib.contextmanager
def unfinished(output: str | os.PathLike, *, seal: bool = True) -> Iterator[Path]:
    """A path beside ``output`` to write the checkpoint at; it becomes ``output`` when the block ends without an error.

    What a killed merge has left there is removed. On several processes all enter and leave together. What is to be in a
    bucket is made on a disk, for its objects cannot be written block by block, and put there at the end.

    Args:
      output: the folder to be.
      seal: hash its files, as of a checkpoint; what holds checkpoints that are sealed needs it not.

    Raises:
      UsageError: ``output`` exists, or another process is writing it.
    """
    output = places.at(output).absolute()
    if places.on_bucket(output):
        with _unfinished_in_bucket(output) as made:
            yield made
        return
    folder = output.with_name(f".{output.name}.merging")
    lock = None
    try:
        with all_succeed():
            check_free(output)
            lock = _claim(folder, output) if jax.process_index() == 0 else None
        with disk.writing(output, lambda: disk.disk_bytes(folder)):
            with publish.flushing(folder):
                yield folder / output.name
            with all_succeed():
                pass  # every part is written
            with all_succeed():
                if lock is not None:
                    if seal:
                        integrity.seal(folder / output.name)
                    check_free(output)
                    publish.appear(folder / output.name, output)
    finally:
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


@contextlib.contextmanager
def _unfinished_in_bucket(output: Path) -> Iterator[Path]:
    if jax.process_count() > 1:
        raise UsageError(f"{output} is in a bucket, which one process writes; merge there without jax.distributed")
    check_free(output)
    with (
        claims.claimed(output, f"{output} is being written by another merge; wait for it or choose another name"),
        tempfile.TemporaryDirectory(prefix="wsm-merge-") as folder,
    ):
        made = Path(folder) / output.name
        with disk.writing(folder, lambda: disk.disk_bytes(folder)):
            yield made
            integrity.seal(made)
        check_free(output)
        publish.appear(made, output)


def _claim(folder: Path, output: Path) -> int:
    """Makes ``folder``, or takes over what a killed merge left of it, and holds a lock on it.

    Nothing is followed through a link, and nothing is removed that no merge has made: a folder of that name is one of
    ours where it holds MARK, which is the first thing in it, or nothing at all.
    """
    while True:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # of a merge that has just ended
        except NotADirectoryError as error:  # what a link gives, too
            raise UsageError(f"{folder} is in the way and is no folder; remove it, or choose another output") from error
        except OSError as error:
            raise UsageError(f"{output} cannot be written: {error.filename} ({error.strerror})") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise UsageError(
                f"{output} is being written by another merge; wait for it or choose another name"
            ) from error
        except OSError:
            pass  # a file system without locks
        try:
            if os.path.samestat(os.lstat(folder), os.fstat(lock)):
                break
        except FileNotFoundError:
            pass
        os.close(lock)  # that merge has removed it in between
    found = os.listdir(lock)
    if found and MARK not in found:
        os.close(lock)
        raise UsageError(f"{folder} is in the way and was not made by a merge; remove it, or choose another output")
    for name in found:
        if name != MARK:
            leftover = folder / name
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
    (folder / MARK).touch()
    return lock
