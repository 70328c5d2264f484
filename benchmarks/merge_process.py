"""A whole process measured, and the page cache made warm or cold before it. Standard library only."""

import contextlib
import ctypes
import dataclasses
import json
import mmap
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.005
BLOCK_BYTES = 16 * 2**20
Folders = Sequence[str | os.PathLike]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one process took.

    Attributes:
      seconds: on the clock, from its start to its end.
      cpu_seconds: user and system, all threads.
      peak_rss: bytes; the kernel's own maximum. Pages of the page cache that are mapped count too.
      peak_anonymous: bytes that are nobody's file: what a process needs even if nothing is cached; sampled.
      answer: the JSON object in its last line of output that is one; empty if none is.
    """

    seconds: float
    cpu_seconds: float
    peak_rss: int
    peak_anonymous: int
    answer: dict[str, Any]


def measure(command: Sequence[str], environment: dict[str, str] | None = None) -> Measurement:
    """Runs ``command`` to its end.

    A process starts with its parent's peak as its own (Linux keeps it through exec), so the caller has to stay small.

    Raises:
      SystemExit: it failed; the message has the command and the end of its standard error.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
        with _sampled(process.pid) as anonymous:
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            sys.exit(f"{shlex.join(command)}\nended with {process.returncode}: {err.read()[-2000:].decode()}")
        answers = [line for line in out.read().decode().splitlines() if line.startswith("{") and line.endswith("}")]
    answer = json.loads(answers[-1]) if answers else {}
    cpu = usage.ru_utime + usage.ru_stime
    return Measurement(seconds, cpu, usage.ru_maxrss * 1024, max(anonymous, default=0), answer)


@contextlib.contextmanager
def _sampled(pid: int) -> Iterator[list[int]]:
    """Fills the list with the process's anonymous bytes until the block ends."""
    found: list[int] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError):  # it has ended
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                found.extend(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def files(folders: Folders) -> list[Path]:
    """The files under the folders, folder by folder in the order given, each folder's in order of name."""
    return [file for folder in folders for file in sorted(Path(folder).rglob("*")) if file.is_file()]


def read(folders: Folders) -> int:
    """Reads every file from beginning to end, into one buffer; returns the bytes."""
    buffer, total = memoryview(bytearray(BLOCK_BYTES)), 0
    for file in files(folders):
        with open(file, "rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                total += count
    return total


def make(cache: str, folders: Folders) -> None:
    """Makes the page cache ``warm`` or ``cold`` for the files in the folders; cold ones are on disk when it returns."""
    if cache == "warm":
        read(folders)
        return
    for file in files(folders):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())  # only what is on disk can be dropped
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(folders: Folders) -> float:
    """Share of the files' pages that are in the page cache (mincore)."""
    cached = pages = 0
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    for file in set(files(folders)):
        size = file.stat().st_size
        if not size:
            continue
        count = -(-size // mmap.PAGESIZE)
        here = (ctypes.c_ubyte * count)()
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            first = ctypes.c_char.from_buffer(mapped)
            failed = mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), here)
            del first  # a mapping that is referred to cannot be closed
        if failed:
            raise OSError(ctypes.get_errno(), f"mincore of {file}")
        cached += sum(page & 1 for page in here)
        pages += count
    return cached / pages if pages else 0.0
