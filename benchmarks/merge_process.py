"""A whole process measured, and the page cache made warm or cold before it. Standard library only."""

import ctypes
import dataclasses
import json
import mmap
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.005
BLOCK_BYTES = 16 * 2**20
Folders = Sequence[str | os.PathLike]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one process took.

    Attributes:
      seconds: on the clock, from its start to its end, to within ``SAMPLE_SECONDS``.
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
        start, anonymous = time.perf_counter(), 0
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            status = Path(f"/proc/{process.pid}/status").read_text()  # there until it is waited for
            found = (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
            anonymous = max(anonymous, *found, 0)
            time.sleep(SAMPLE_SECONDS)
        seconds, usage = time.perf_counter() - start, ended[2]
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        out.seek(0)
        err.seek(0)
        if process.returncode:
            sys.exit(f"{shlex.join(command)}\nended with {process.returncode}: {err.read()[-2000:].decode()}")
        answers = [line for line in out.read().decode().splitlines() if line.startswith("{") and line.endswith("}")]
    answer = json.loads(answers[-1]) if answers else {}
    return Measurement(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, anonymous, answer)


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
    for file in {file for file in files(folders) if file.stat().st_size}:
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            here, first = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))(), ctypes.c_char.from_buffer(mapped)
            failed = ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(len(mapped)), here)
            del first  # a mapping that is referred to cannot be closed
        if failed:
            raise OSError(f"mincore of {file}")
        cached, pages = cached + sum(page & 1 for page in here), pages + len(here)
    return cached / pages if pages else 0.0
