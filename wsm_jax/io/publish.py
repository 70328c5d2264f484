"""What appears whole or not at all: written under a temporary name beside its place, synced, then renamed."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

from wsm_jax.io import disk, places

_PREFIX = ".tmp-"
# A killed writer leaves its temporary folder behind. Nobody writes for a day, so older ones are swept.
_STALE_SECONDS = 24 * 3600
_FLUSH_SECONDS = 0.2


def data_folder(setting: str = "") -> pathlib.Path:
    """The folder of prepared data: ``setting`` if given, else ``$WSM_DATA``, else ``~/.cache/wsm_jax``."""
    chosen = setting or os.environ.get("WSM_DATA", "") or "~/.cache/wsm_jax"
    return places.at(chosen).expanduser().absolute()


def appear(made: pathlib.Path, place: pathlib.Path) -> None:
    """Renames a file or a folder that was made to its name, once all of it is on the disk, so that power may fail."""
    sync(made)
    os.replace(made, place)
    _sync(place.parent)


def sync(made: pathlib.Path) -> None:
    """Returns when a file, or a folder with all in it, is on the disk."""
    if not made.is_dir():
        _sync(made)
    for folder, _, names in os.walk(made, topdown=False):
        for name in names:
            _sync(os.path.join(folder, name))
        _sync(folder)


@contextlib.contextmanager
def flushing(folder: pathlib.Path) -> Iterator[None]:
    """Within it, what is put into ``folder`` goes to the disk at once, so that :func:`sync` has little to wait for."""
    ended = threading.Event()

    def flush() -> None:
        while not ended.wait(_FLUSH_SECONDS):
            with contextlib.suppress(OSError):  # the sync at the end tells
                sync(folder)

    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _sync(path: str | os.PathLike) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot, e.g. for folders
            raise
    finally:
        os.close(opened)


@contextlib.contextmanager
def published(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder to write into, which becomes ``folder`` when the block ends without an exception.

    Where another process was faster, its folder stays and the one written here is dropped: both hold the same, because
    the name of a published folder is a hash of what decides its content.
    """
    with _temporary(folder) as temporary:
        yield temporary
        try:
            appear(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise


@contextlib.contextmanager
def replaced(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """As :func:`published`, with what ``folder`` holds already to begin with; it is the old one or the new one.

    Where a kill came between the two renames, the old one is put back by the next call.
    """
    folder = folder.resolve()
    old = folder.with_name(f".old-{folder.name}")
    if old.is_dir():
        shutil.rmtree(old) if folder.exists() else os.rename(old, folder)
    with _temporary(folder) as temporary:
        if folder.is_dir():
            shutil.copytree(folder, temporary, dirs_exist_ok=True)
        yield temporary
        sync(temporary)  # so that next to nothing lies between the two renames
        if folder.is_dir():
            os.rename(folder, old)
        try:
            appear(temporary, folder)
        except BaseException:
            if old.is_dir():
                os.rename(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _temporary(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A hidden folder beside ``folder``, gone at the end unless it has got another name."""
    with disk.writing(folder, 0):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder.parent))
    try:
        with disk.writing(folder, lambda: disk.disk_bytes(temporary)):
            temporary.chmod(0o755)  # mkdtemp makes it private; a shared store must be readable by others.
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(parent: pathlib.Path) -> None:
    for path in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path)
