"""One contender of ``benchmarks/train_step.py``: a process that trains a model and answers with the time of N steps."""

import dataclasses
import json
import os
import select
import shlex
import subprocess
import tempfile
import time
from typing import Any

TUNABLES = "GLIBC_TUNABLES"


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is measured: its name, its command and what it adds to the environment."""

    name: str
    command: list[str]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


class Failed(Exception):
    """A contender that ended early or took too long; the message says which."""


class Contender:
    """A running variant.

    Args:
      variant: what to start.
      limit: seconds until it must have answered that it is ready.

    Raises:
      Failed: it did not.
    """

    def __init__(self, variant: Variant, limit: float = 600.0):
        clean = {name: value for name, value in os.environ.items() if name not in (TUNABLES, "XLA_FLAGS")}
        self.variant, self._rest = variant, b""
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            variant.command,
            env=clean | variant.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self.facts = self._read(limit)

    def run(self, steps: int, what: str = "", limit: float = 600.0) -> dict[str, float]:
        """Seconds, CPU-seconds and last loss of ``steps`` steps; ``what`` names another kind of step.

        Raises:
          Failed: no answer in ``limit`` seconds.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{steps} {what}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is noticed where its answer is read
        return self._read(limit)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _read(self, limit: float) -> dict[str, Any]:
        """The next line that is a JSON object."""
        assert self._process.stdout is not None
        end = time.monotonic() + limit
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                if line.startswith(b"{"):
                    return json.loads(line)
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            found = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not found:
                why = "ended early" if ready else f"did not answer in {limit:.0f} s"
                self._process.kill()
                self._errors.seek(0)
                last = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
                self.close()
                raise Failed(f"{self.variant.name} {why} ({last}); by hand: {shlex.join(self.variant.command)}")
            self._rest += found
