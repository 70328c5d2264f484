"""The memory of the host: what this process may still take, and how it keeps what it has."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from wsm_jax.io import machine

# Options of glibc's mallopt: what is freed at the top stays, nothing is mapped apart, all threads share one heap.
_KEPT_HEAP = {-1: -1, -4: 0, -8: 1}  # M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX
_UNLIMITED = 2**60  # what version 1 of cgroups has for "no limit" is a little less than 2^63


def free(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process can still take, page cache counted as free: the host's, and at most the job's limit.

    A batch system or a container sets the limit on a cgroup of the process, or on one around it.
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        host = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([host, *_rooms(proc, cgroups)]))


def _rooms(proc: Path, cgroups: Path) -> Iterator[int]:
    """What is left below every limit on memory, of cgroups of both versions."""
    try:
        memberships = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, inside in memberships:
        if controllers and "memory" not in controllers.split(","):
            continue
        base = cgroups / "memory" if controllers else cgroups
        names = ("limit_in_bytes", "usage_in_bytes", "total_cache") if controllers else ("max", "current", "file")
        place = base / inside.lstrip("/")
        for folder in (place, *place.parents):
            if not folder.is_relative_to(base):
                break
            if (room := _room(folder, *names)) is not None:
                yield room


def _room(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        most = (folder / f"memory.{limit}").read_text().strip()
        if most == "max" or int(most) >= _UNLIMITED:
            return None
        used = int((folder / f"memory.{usage}").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(most) - used + int(stat.get(cache, 0))
    except (OSError, ValueError):  # the root of a hierarchy has no limit
        return None


def keep_heap() -> bool:
    """Lets this process keep the memory that it frees, for XLA:CPU makes its temporaries anew at every update.

    As GLIBC_TUNABLES=glibc.malloc.mmap_max=0:... does at the start of a process; threads that have begun keep their own
    heaps. What the user has set in that variable stays.

    Returns:
      whether it does now: not where the C library is another one, or an accelerator computes.
    """
    if "GLIBC_TUNABLES" in os.environ or machine.has_accelerator():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) for option, value in _KEPT_HEAP.items())
