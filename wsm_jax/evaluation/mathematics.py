"""Whether answers to problems of MATH and GSM8K are right.

MATH by ``math-verify``, which reads formulas and compares what they mean. It works on text of a model, and some of that
takes it forever or all memory, so it works in processes of its own, which are ended and begun anew.
"""

import contextlib
import importlib.util
import json
import os
import re
import resource
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from decimal import Decimal

from wsm_jax.evaluation.many import in_threads

SECONDS = 10.0  # for one answer
_START = 120.0  # seconds until a process has imported what it needs
_MEMORY = 2 << 30
_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")

Pair = tuple[str, str]


def number(text: str) -> Decimal | None:
    """The answer of a solution of GSM8K: the number after ``####``, or else the last one; None where there is none.

    Commas and currency signs do not count, and 18.00 is 18.
    """
    before, mark, after = text.partition("####")
    found = _NUMBER.findall(after.replace("$", "")) if mark else _NUMBER.findall(before)[-1:]
    return Decimal(found[0].replace(",", "")) if found else None


def same_number(gold: str, answer: str) -> bool:
    """Whether two solutions of GSM8K have the same answer; without one it is wrong."""
    right = number(gold)
    return right is not None and number(answer) == right


def equal(
    pairs: Sequence[Pair], *, seconds: float = SECONDS, workers: int | None = None, quiet: bool = False
) -> list[bool]:
    """Whether solutions have the answers that they should.

    Args:
      pairs: the answer as LaTeX, without dollars, and a solution in which it is boxed or stands last.
      seconds: for each; what takes longer is wrong.
      workers: processes; default: one for each processor.
      quiet: without a bar.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ModuleNotFoundError("No module named 'math_verify'", name="math_verify")
    local, judges = threading.local(), []

    def judged(pair: Pair) -> bool:
        if not hasattr(local, "judge"):
            local.judge = Judge(seconds)
            judges.append(local.judge)
        return local.judge(*pair)

    try:
        return in_threads(judged, pairs, workers=workers, unit="answer", quiet=quiet)
    finally:
        for judge in judges:
            judge.close()


class Judge:
    """A process that compares answers, and another one in its place where it takes too long."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._process = self._begin()

    def __call__(self, gold: str, answer: str) -> bool:
        """Whether the answer of a solution is the gold one."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps([gold, answer]) + "\n")
            self._process.stdin.flush()
            said = self._line(self._seconds)
        except BrokenPipeError:
            said = ""
        if not said:  # too long, or it ended
            self.close()
            self._process = self._begin()
        return said == "true"

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _begin(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment,
        )  # fmt: skip
        if self._line(_START) != "ready":
            self.close()
            raise RuntimeError("the process that compares answers does not start")
        return self._process

    def _line(self, seconds: float) -> str:
        """The line that comes within so many seconds, or nothing."""
        assert self._process.stdout
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        return self._process.stdout.readline().strip() if poll.poll(int(1000 * seconds)) else ""


def serve() -> None:
    """What such a process does: reads JSON lines [gold, solution], and prints ``true`` or ``false`` for each."""
    from math_verify import parse, verify

    answers, sys.stdout = sys.stdout, sys.stderr  # should a library print
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))

    def right(gold: str, solution: str) -> bool:
        # None: without its own limits, which are alarms; ours ends the process.
        expected, found = (parse(text, parsing_timeout=None) for text in (f"${gold}$", solution))
        return bool(verify(expected, found, timeout_seconds=None))

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        same = False
        with contextlib.suppress(Exception):  # text of a model, read by grammars: whatever it raises is no answer
            same = right(*json.loads(line))
        print(json.dumps(same), file=answers, flush=True)
