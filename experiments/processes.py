"""Processes side by side, each on its share of the cores."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import numpy as np


class Processes:
    """Runs commands, at most so many at a time; after one has failed none is started. For use from several threads.

    Args:
      parallel: shares of the cores, at most as many as there are.
    """

    def __init__(self, parallel: int):
        self._free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for share in np.array_split(sorted(os.sched_getaffinity(0)), parallel):
            self._free.put(",".join(map(str, share)))
        self._failed, self._stopped = threading.Event(), threading.Event()
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> int:
        """Waits for a share and runs ``command --cores=SHARE``; what it prints goes to ``folder``/log.txt.

        Returns:
          The exit status; where it is not 0 the end of the log is printed under ``name``. 1 where nothing was started.

        Raises:
          OSError: the folder or its log cannot be written.
        """
        cores = self._free.get()
        try:
            return 1 if self._failed.is_set() else self._run(name, [*command, f"--cores={cores}"], folder, environment)
        except BaseException:
            self._failed.set()
            raise
        finally:
            self._free.put(cores)

    def _run(self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self._running.add(process)
        if self._stopped.is_set():  # just before
            process.terminate()
        if status := process.wait():
            self._failed.set()
            tail = (folder / "log.txt").read_text().strip().splitlines()[-8:]
            print("\n".join([f"{name} ended with {status}:", *tail]), file=sys.stderr, flush=True)
        self._running.discard(process)
        return status

    def stop(self) -> None:
        """Starts nothing more, and asks what is running to save and to end."""
        self._failed.set()
        self._stopped.set()
        for process in list(self._running):
            process.terminate()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """While open, a SIGTERM raises SystemExit in the main thread, so that what was started can be stopped."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # Python allows handlers in no other
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
