"""One process writes a folder at a time: a lock on a disk; in a bucket an object that its writer keeps renewing.

A lock goes with its process. The object of a killed process stays: on the same machine the next one sees that no such
process is there; elsewhere it watches the object for LEASE seconds, in which a living one would have renewed it. A
process that slept through that, and whose claim another has taken, publishes nothing any more.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsm_jax.errors import UsageError
from wsm_jax.io import places

RENEW = 10.0  # seconds between two renewals
LEASE = 60.0  # seconds after which a claim that nobody has renewed is nobody's


@contextlib.contextmanager
def claimed(path: Path, busy: str) -> Iterator[None]:
    """Holds a folder, made if missing.

    Args:
      path: the folder.
      busy: what to say where another process has it.

    Raises:
      UsageError: ``busy``.
    """
    with _in_bucket(path, busy) if places.on_bucket(path) else _locked(path, busy):
        yield


def is_claimed(path: Path) -> bool | None:
    """Whether a process holds the folder; None where that cannot be told."""
    if places.on_bucket(path):
        from wsm_jax.io import bucket

        found = bucket.keys(path).read(bucket.CLAIM).result()
        return False if found.state != "value" else _lives(found.value)
    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(folder)
    return False


def was_claimed(path: Path) -> bool:
    """Whether a folder in a bucket is one that a process writes, or wrote until it was killed."""
    from wsm_jax.io import bucket

    return places.on_bucket(path) and (path / bucket.CLAIM).is_file()


@contextlib.contextmanager
def _locked(path: Path, busy: str) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    folder = os.open(path, os.O_RDONLY)
    try:
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.2)  # of another writer, or of somebody who only looks, which takes an instant
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(busy) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(folder)


# --- in a bucket -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _in_bucket(path: Any, busy: str) -> Iterator[None]:
    claim = _Claim(path, busy)
    _held[str(path)] = claim
    try:
        yield
    finally:
        del _held[str(path)]
        claim.release()


_held: dict[str, "_Claim"] = {}


def check_kept(path: Path) -> None:
    """Raises UsageError where the claim under which this process writes ``path`` has been taken by another."""
    for folder in (path, *path.parents):
        claim = _held.get(str(folder))
        if claim is not None and claim.lost:
            raise UsageError(f"{folder} was taken over by another process meanwhile; {path} is not published")


class _Claim:
    """The object, renewed by a thread until it is released."""

    def __init__(self, path: Any, busy: str):
        from wsm_jax.io import bucket

        self._bucket, self._keys, self.lost = bucket, bucket.keys(path), False
        with bucket.told(path):
            self._generation = self._take(path, busy)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _take(self, path: Any, busy: str) -> bytes:
        before = self._free(path, busy)
        taken = self._bucket.write_if(self._keys, self._bucket.CLAIM, _mine(), before)
        if taken is None:
            raise UsageError(busy)
        return taken

    def _free(self, path: Any, busy: str) -> bytes | None:
        """The generation of a claim that nobody holds any more; None where there is none."""
        found = self._read()
        if found.state != "value":
            return None
        lives = _lives(found.value)
        if lives and _is_mine(found.value) and str(path) not in _held:
            return found.stamp.generation  # which the bucket did not let this process give back
        if lives:
            raise UsageError(busy)
        if lives is None:  # of another machine
            holder = json.loads(found.value).get("host", "another machine")
            note = f"{path} was held by a process of {holder}; it is watched for {LEASE:.0f} s"
            print(f"wsm: note: {note}", file=sys.stderr)
            until = time.monotonic() + LEASE
            while time.monotonic() < until:
                time.sleep(min(2.0, LEASE / 4))
                again = self._read()
                if again.state != "value":
                    return None
                if again.stamp.generation != found.stamp.generation:
                    raise UsageError(busy)
        return found.stamp.generation

    def _read(self) -> Any:
        return self._keys.read(self._bucket.CLAIM).result()

    def _renew(self) -> None:
        while not self._ended.wait(RENEW):
            with contextlib.suppress(ValueError):  # what the bucket does not do now, it may do next time
                kept = self._bucket.write_if(self._keys, self._bucket.CLAIM, _mine(), self._generation)
                if kept is None:
                    self.lost = True
                    return
                self._generation = kept

    def release(self) -> None:
        """Takes the object away, if it is still this process's."""
        self._ended.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(ValueError):
                self._bucket.write_if(self._keys, self._bucket.CLAIM, None, self._generation)


def _mine() -> bytes:
    """Who this process is; each time other bytes, so that a renewal whose answer is lost is known by them."""
    who = {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "began": _began(os.getpid())}
    return json.dumps({**who, "renewal": secrets.token_hex(8)}).encode()


def _is_mine(claim: bytes) -> bool:
    return json.loads(claim)["pid"] == os.getpid()


def _lives(claim: bytes) -> bool | None:
    """Whether the process that wrote a claim is there; None where it is one of another machine."""
    try:
        who = json.loads(claim)
        if (who["host"], who["boot"]) != (socket.gethostname(), _boot()) or not who["boot"]:
            return None
        return _began(int(who["pid"])) == who["began"]
    except (ValueError, KeyError, TypeError):
        return None


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _began(pid: int) -> str | None:
    """When a process of this machine began, in ticks since the start of the machine; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
