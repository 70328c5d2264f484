"""What appears whole or not at all: on a disk it is written under a temporary name, synced, then renamed.

In a bucket it is written where it stays and gets a marker at the end, see :mod:`wsm_jax.io.marker`.
"""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

from wsm_jax.errors import UsageError
from wsm_jax.io import claims, disk, places

_PREFIX = ".tmp-"
# A killed writer leaves its temporary folder behind. Nobody writes for a day, so older ones are swept.
_STALE_SECONDS = 24 * 3600
_FLUSH_SECONDS = 0.2
SAVING = ".saving-"  # begins the name of a checkpoint that is being written, and of what Orbax makes of it meanwhile
TOKENS = "tokens"  # of the data folder; in it a folder of tokens for each source
DELETED = ".deleted-"  # begins the name of one that is being removed
_LEFTOVERS = (f"{DELETED}*", f"{SAVING}*", "*.orbax-checkpoint-tmp*")  # the last of earlier versions


def data_folder(setting: str = "") -> pathlib.Path:
    """The folder of prepared data: ``setting`` if given, else ``$WSM_DATA``, else ``~/.cache/wsm_jax``."""
    chosen = setting or os.environ.get("WSM_DATA", "") or "~/.cache/wsm_jax"
    return places.at(chosen).expanduser().absolute()


def draft(place: pathlib.Path) -> pathlib.Path:
    """Where to write the folder that :func:`appear` then makes whole; in a bucket, which renames nothing, there."""
    if places.on_bucket(place):
        _drafts.add(place)
        return place
    return place.with_name(f"{SAVING}{place.name}")


_drafts: set[pathlib.Path] = set()


def is_draft(place: pathlib.Path) -> bool:
    """Whether this process is making a folder of a bucket, and may read what others may not yet."""
    return place in _drafts


def workroom(folder: pathlib.Path) -> pathlib.Path:
    """A folder of this machine for what is made from, or on the way to, the data in ``folder``: itself if it is one."""
    return pathlib.Path("~/.cache/wsm_jax").expanduser() if places.on_bucket(folder) else folder


def at_hand(folder: pathlib.Path) -> pathlib.Path:
    """A whole folder as files of this machine, which can be mapped into memory: fetched, once, from a bucket.

    Raises:
      UsageError: it is not whole, or not as it was published.
    """
    if not places.on_bucket(folder):
        return folder
    from wsm_jax.io import marker

    return marker.fetch(folder, workroom(folder) / "buckets")


def appear(made: pathlib.Path, place: pathlib.Path) -> None:
    """Renames a file or a folder that was made to its name, once all of it is on the disk, so that power may fail.

    In a bucket it gets its marker; a folder made on a disk is put there before.
    """
    if places.on_bucket(place):
        from wsm_jax.io import marker

        marker.publish(place) if made == place else marker.upload(made, place)
        _drafts.discard(place)
        return
    sync(made)
    os.replace(made, place)
    _sync(place.parent)


def is_whole(place: pathlib.Path) -> bool:
    """Whether a folder has appeared: on a disk it has its name, in a bucket its marker."""
    if places.on_bucket(place):
        from wsm_jax.io import marker

        return marker.manifest(place) is not None
    return place.exists()


def is_taken(place: pathlib.Path) -> bool:
    """Whether something is at a place, which a killed process has not left there."""
    if places.on_bucket(place):
        return is_whole(place) or (place.exists() and not claims.was_claimed(place))
    return os.path.lexists(place)


def changed(place: pathlib.Path) -> list[tuple[str, str]] | None:
    """Of a folder in a bucket (object, what it is in words) of all that is not as its marker says; None on a disk."""
    if places.on_bucket(place):
        from wsm_jax.io import marker

        return marker.changed(place)
    return None


def remove(place: pathlib.Path) -> None:
    """Removes a whole folder: it ceases to be one first, for a kill would leave half of it."""
    if places.on_bucket(place):
        place.rmtree()
        return
    doomed = place.with_name(f"{DELETED}{place.name}")
    os.replace(place, doomed)
    shutil.rmtree(doomed)


def discard(place: pathlib.Path) -> None:
    """Removes what the making of ``place`` has left beside it, or of itself where it did not appear."""
    clear(place.parent, f"{SAVING}{place.name}*")
    _drafts.discard(place)
    if places.on_bucket(place):
        with contextlib.suppress(UsageError):  # what stays is swept by the next who writes there
            if not is_whole(place):
                place.rmtree()


def sweep(directory: pathlib.Path) -> None:
    """Removes what killed processes left among the folders in ``directory``."""
    for pattern in _LEFTOVERS:
        clear(directory, pattern)
    if places.on_bucket(directory):
        inside = [path for path in directory.iterdir() if path.is_dir()]
        for path, whole in zip(inside, places.ask(is_whole, inside), strict=True):
            if not whole:
                erase(path)


def clear(directory: pathlib.Path, pattern: str) -> None:
    """Removes what is left of saves; one that has failed may still have threads that write for a moment."""
    for _ in range(50):
        found = list(directory.glob(pattern))
        if not found:
            return
        for leftover in found:
            erase(leftover)
        time.sleep(0.02)


def erase(place: pathlib.Path) -> None:
    """Removes a file or a folder, as far as that goes."""
    if not place.is_dir():
        place.unlink(missing_ok=True)
    elif places.on_bucket(place):
        place.rmtree()
    else:
        shutil.rmtree(place, ignore_errors=True)


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
        except (OSError, UsageError):
            if not is_whole(folder):
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
    """A hidden folder beside ``folder``, gone at the end unless it has got another name; for a bucket on a disk."""
    if places.on_bucket(folder):
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as made, disk.writing(made, lambda: disk.disk_bytes(made)):
            yield pathlib.Path(made)
        return
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
