"""One program in a process of its own that can do no harm: what it did, and what it was kept from.

A program passes where it runs to its last line. What raises, leaves early or is ended by a limit has failed, and the
outcome says how; where the sandbox itself does not work, :class:`Unusable` is raised and nothing is judged.
"""

import contextlib
import itertools
import json
import os
import secrets
import select
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import IO, Any

from wsm_jax.evaluation.execution import calls
from wsm_jax.evaluation.execution.errors import Unusable
from wsm_jax.evaluation.execution.mechanism import Mechanism

_START = 60.0  # seconds until a program begins, however busy the machine
_LOOK = 0.05  # seconds between two looks at the clock and the scratch folder
_READY = b"ready\n"
_ENTRIES = 1000  # in a scratch folder: empty files take room too
# Users that nobody has: one for each program of root's, so that its threads are counted alone.
_USERS, _number = 1 << 31, itertools.count()


@dataclass(frozen=True)
class Limits:
    """What one program may take.

    Attributes:
      seconds: from its first line to its last, by the clock.
      memory: bytes of its address space.
      threads: at a time; it can start no process.
      disk: bytes of its output, of each of its files, and of all of them together.
    """

    seconds: float = 10.0
    memory: int = 512 << 20
    threads: int = 16
    disk: int = 16 << 20

    def of_process(self, counts: bool) -> dict[str, int]:
        """As the kernel keeps them: name of the limit -> value."""
        threads = {"RLIMIT_NPROC": self.threads + 2} if counts else {}  # beside those of bubblewrap itself
        return threads | {
            "RLIMIT_AS": self.memory,
            "RLIMIT_CPU": int(self.seconds * self.threads) + 1,  # should nobody be there to end it
            "RLIMIT_FSIZE": self.disk,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
      passed: it ran to its last line.
      failure: "" or else the name of what it raised, or ``timeout``, ``disk``, ``exit`` (it ended early).
      detail: what the exception said.
      output: the end of what it printed.
    """

    passed: bool
    failure: str = ""
    detail: str = ""
    output: str = ""

    def __str__(self) -> str:
        return "passed" if self.passed else f"{self.failure}: {self.detail}" if self.detail else self.failure


def run(program: str, mechanism: Mechanism, limits: Limits | None = None) -> Outcome:
    """Runs the text of a Python program; when this returns, nothing of it is left.

    Args:
      program: it sees the standard library, its scratch folder (where it starts) and nothing else.
      mechanism: what keeps it in.
      limits: what it may take.

    Raises:
      Unusable: it was not begun.
    """
    limits, secret = limits or Limits(), secrets.token_hex(16)
    reading, writing = os.pipe()
    with (
        open(reading, "rb", buffering=0) as verdict,
        open(writing, "wb", buffering=0) as theirs,
        tempfile.TemporaryDirectory(prefix="wsm-run-", ignore_cleanup_errors=True) as scratch,
        tempfile.TemporaryFile() as order,
        tempfile.TemporaryFile() as output,
    ):
        _write(order, program, secret, writing, mechanism, limits)
        process = subprocess.Popen(
            mechanism.command(limits.disk), stdin=order, stdout=output, stderr=output, cwd=scratch, env={},
            pass_fds=[writing], start_new_session=True,
        )  # fmt: skip
        theirs.close()
        try:
            if not _comes(verdict, _START) or verdict.read(len(_READY)) != _READY:
                raise Unusable(_end_of(output) or "the program was not begun")
            said = _said(verdict, limits, None if mechanism.in_memory else scratch)
        finally:
            _end(process, verdict)
        if said == secret:
            return Outcome(True, output=_end_of(output))
        failure, _, detail = said.partition(": ")
        return Outcome(False, failure, detail, _end_of(output))


def _write(order: IO[bytes], program: str, secret: str, verdict: int, mechanism: Mechanism, limits: Limits) -> None:
    text: dict[str, Any] = {
        "program": program,
        "secret": secret,
        "verdict": verdict,
        "limits": limits.of_process(mechanism.counts),
        "user": _USERS + 256 * os.getpid() + next(_number) % 256,
        "calls": calls.compiled().hex(),
        "landlock": mechanism.landlock,
        "parent": None if mechanism.landlock is None else os.getpid(),
    }
    order.write(json.dumps(text).encode())
    order.seek(0)


def _comes(verdict: IO[bytes], seconds: float) -> bool:
    """Whether something can be read within so many seconds, be it that the other end is closed."""
    poll = select.poll()
    poll.register(verdict, select.POLLIN)
    return bool(poll.poll(int(seconds * 1000)))


def _said(verdict: IO[bytes], limits: Limits, scratch: str | None) -> str:
    """What the program's process says of it, or why it is not waited for any longer."""
    end = time.monotonic() + limits.seconds
    while not _comes(verdict, max(0.0, min(_LOOK, end - time.monotonic()))):
        if time.monotonic() >= end:
            return f"timeout: it had {limits.seconds:g} s"
        if scratch and _full(scratch, limits.disk):
            return f"disk: it had {limits.disk} bytes"
    return verdict.read(select.PIPE_BUF).decode(errors="replace") or "exit: it ended before its last line"


def _full(folder: str, most: int) -> bool:
    """Whether a folder takes more than so many bytes, or holds too many entries."""
    sizes = []
    for path, folders, files in os.walk(folder):
        for name in folders + files:
            with contextlib.suppress(OSError):
                sizes.append(512 * os.lstat(os.path.join(path, name)).st_blocks)
    return sum(sizes) > most or len(sizes) > _ENTRIES


def _end(process: subprocess.Popen[bytes], verdict: IO[bytes]) -> None:
    """Ends all that belongs to a program, and waits until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while verdict.read(select.PIPE_BUF):  # whoever lives holds the other end
        pass


def _end_of(output: IO[bytes], most: int = 2000) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - most))
    return output.read().decode(errors="replace").strip()
