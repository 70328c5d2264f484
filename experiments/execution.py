"""Whether programs are kept in and answers judged as they should be: known solutions, wrong ones, and attacks.

    python -m experiments.execution --data=DIR [--output=FILE]

DIR holds humaneval, mbpp_test, math500 and gsm8k_test as .jsonl.gz. Every mechanism that holds on this machine runs the
canonical solutions and wrong ones, and then programs that try to do harm, one of which has its parent killed. Written
as JSON; by default results/execution/root.json, or user.json where another user runs it.
"""

import argparse
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wsm_jax.errors import UsageError, ended
from wsm_jax.evaluation import mathematics
from wsm_jax.evaluation.execution import probe, programs
from wsm_jax.evaluation.execution.mechanism import Mechanism
from wsm_jax.evaluation.execution.sandbox import Limits, run
from wsm_jax.io.files import json_lines, write_json
from wsm_jax.io.machine import environment

ROOT = Path(__file__).parent.parent
LIMITS = Limits(seconds=5.0, memory=128 << 20, disk=1 << 20)
SECRET = "WSM_SECRET_OF_THE_CALLER"
NOTHING = "humaneval, bodies that return None"
Record = dict[str, Any]

# Attack -> a program that reaches its last line only where it has its way; the names in capitals are filled in.
ATTACKS = {
    "an endless loop": "while True: pass",
    "sleeping": "import time\ntime.sleep(3600)",
    "a memory bomb": "kept = []\nwhile True: kept.append(bytearray(1 << 24))",
    "a fork bomb of 100": "import os\nfor _ in range(100): os.fork()",
    "a fork bomb that goes on": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "a command": "import subprocess\nsubprocess.run(['/bin/true'], check=True)",
    "1000 threads": "import threading, time\n"
    "for _ in range(1000): threading.Thread(target=time.sleep, args=[3600], daemon=True).start()",
    "output without end": "while True: print('x' * 1000)",
    "a file without end": "file = open('file', 'wb')\nwhile True: file.write(bytes(1 << 16))",
    "files without end": "number = 0\nwhile True:\n    number += 1\n    open(str(number), 'wb').write(bytes(1 << 16))",
    "a write outside": "open(FOLDER + '/new', 'w').write('x')",
    "a file removed": "import os\nos.remove(FOLDER + '/file')",
    "a file read": "open(FOLDER + '/file').read()",
    "a file's permissions": "import os\nos.chmod(FOLDER + '/file', 0)",
    "a socket": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)",
    "a datagram": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "killing its parent": "import os\nos.kill(os.getppid(), 9)",
    "killing everybody": "import os\nos.kill(-1, 9)",
    "reading its parent's memory": "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')",
    "reading the environment": "import glob, os\n"
    "found = dict(os.environ)\n"
    "for name in glob.glob('/proc/*/environ'):\n"
    "    try: found[name] = open(name).read()\n"
    "    except OSError: pass\n"
    "assert NAME in str(found)",
    "leaving early with status 0": "import os\nos._exit(0)",
    "leaving by an exception": "raise SystemExit(0)",
}


def problems(data: Path, name: str) -> list[Record]:
    """The records of a file."""
    return [record for _, record in json_lines(data / f"{name}.jsonl.gz")]


def solutions(mechanism: Mechanism, data: Path) -> Iterator[tuple[str, Record]]:
    """Of known solutions, and of bodies that do nothing, how many pass, and which known ones do not."""
    human, basic = problems(data, "humaneval"), problems(data, "mbpp_test")
    suites = {
        "humaneval": (human, [programs.humaneval(one, one["canonical_solution"]) for one in human]),
        NOTHING: (human, [programs.humaneval(one, "    return None\n") for one in human]),
        "mbpp": (basic, [programs.mbpp(one, one["code"]) for one in basic]),
    }
    for name, (asked, texts) in suites.items():
        start = time.monotonic()
        outcomes = programs.run_all(texts, mechanism)
        found: Record = {"programs": len(texts), "passed": sum(outcome.passed for outcome in outcomes)}
        found["seconds"] = round(time.monotonic() - start, 1)
        if name != NOTHING:
            judged = zip(asked, outcomes, strict=True)
            found["failed"] = {str(one["task_id"]): str(outcome) for one, outcome in judged if not outcome.passed}
        yield name, found


@contextlib.contextmanager
def surroundings() -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """What attacks aim at: lines that define their names, and a function that says what was harmed."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        port = server.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        for waiting in (server, datagrams):
            waiting.setblocking(False)
        os.chmod(folder, 0o777)
        file = Path(folder) / "file"
        file.write_text("content")
        file.chmod(0o666)
        os.environ[SECRET] = "known to the caller alone"

        def harmed() -> list[str]:
            found = [name for name in os.listdir(folder) if name != "file"]
            if not file.exists() or file.read_text() != "content" or file.stat().st_mode & 0o777 != 0o666:
                found.append("file")
            for name, waiting in (("connection", server.accept), ("datagram", lambda: datagrams.recv(1))):
                with contextlib.suppress(BlockingIOError):
                    waiting()
                    found.append(name)
            return found

        names = {"FOLDER": folder, "PORT": port, "NAME": SECRET}
        try:
            yield "".join(f"{name} = {value!r}\n" for name, value in names.items()), harmed
        finally:
            del os.environ[SECRET]


def attacks(mechanism: Mechanism, limits: Limits = LIMITS) -> Record:
    """Every attack: how it ended, and whether it was kept from what it tried and scored as a failure."""
    found: Record = {}
    with surroundings() as (names, harmed):
        for name, source in ATTACKS.items():
            outcome = run(names + source, mechanism, limits)
            found[name] = {"outcome": str(outcome), "contained": not outcome.passed and not harmed()}
    return found


def killed_parent(mechanism: Mechanism) -> Record:
    """The same of a program whose parent is killed while it sleeps."""
    survivors = left_of_a_killed_parent(mechanism)
    outcome = f"{len(survivors)} processes live on" if survivors else "ended with its parent"
    return {"living on when its parent is killed": {"outcome": outcome, "contained": not survivors}}


_PARENT = """
from wsm_jax.evaluation.execution import probe
from wsm_jax.evaluation.execution.sandbox import Limits, run
mechanism = next(found for _, found in probe.tried() if getattr(found, "name", "") == {name!r})
print("begins", flush=True)
run("import time; time.sleep(600)", mechanism, Limits(seconds=600))
"""


def left_of_a_killed_parent(mechanism: Mechanism, seconds: float = 10.0) -> set[int]:
    """Processes of a program that still live so long after the process that ran it was killed."""
    command = [sys.executable, "-c", _PARENT.format(name=mechanism.name)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in (str(ROOT), *sys.path) if part)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout and parent.stdout.readline() == b"begins\n"
        time.sleep(1.0)  # until it sleeps
        processes = descendants(parent.pid)
        parent.kill()
    if not processes:
        raise RuntimeError("the program did not run")
    end = time.monotonic() + seconds
    while processes and time.monotonic() < end:
        time.sleep(0.05)
        processes = {pid for pid in processes if pid in parents()}
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    return processes


def parents() -> Mapping[int, int]:
    """Of each process that lives, its parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                after = (entry / "stat").read_text().rpartition(")")[2].split()
                if after[0] != "Z":
                    found[int(entry.name)] = int(after[1])
    return found


def descendants(pid: int) -> set[int]:
    """The processes that a process began, and those that they began."""
    known, found = parents(), {pid}
    while more := {child for child, parent in known.items() if parent in found} - found:
        found |= more
    return found - {pid}


def answers(data: Path) -> Record:
    """Gold solutions and those of the next problem: how many are taken for right."""
    problem, word = problems(data, "math500"), problems(data, "gsm8k_test")
    start = time.monotonic()
    right = mathematics.equal([(one["answer"], one["solution"]) for one in problem])
    gold_seconds = round(time.monotonic() - start, 1)
    after = [*problem[1:], problem[0]]
    wrong = mathematics.equal([(one["answer"], two["solution"]) for one, two in zip(problem, after, strict=True)])
    taken = [
        {"answer": one["answer"], "taken for it": two["answer"]}
        for one, two, same in zip(problem, after, wrong, strict=True)
        if same
    ]
    texts = [one["answer"] for one in word]
    shifted = [mathematics.same_number(one, two) for one, two in zip(texts, [*texts[1:], texts[0]], strict=True)]
    return {
        "math500": {
            "solutions": len(problem),
            "accepted": sum(right),
            "rejected": [one["answer"] for one, same in zip(problem, right, strict=True) if not same],
            "of the next problem accepted": taken,
            "seconds": gold_seconds,
        },
        "gsm8k": {
            "solutions": len(word),
            "accepted": sum(mathematics.same_number(one, one) for one in texts),
            "of the next problem accepted": sum(shifted),
        },
    }


def make(data: Path, output: Path) -> int:
    """Measures everything, and writes it after each part; 1 where something was not contained."""
    if not data.is_dir():
        raise UsageError(f"--data={data} is no folder")
    holding: dict[str, Mechanism] = {}
    record: Record = {"environment": environment(), "limits of attacks": dataclasses.asdict(LIMITS)}
    record |= {"mechanisms": [], "not here": {}}
    for name, mechanism in probe.tried():
        if isinstance(mechanism, str):
            record["not here"][name] = mechanism
        else:
            holding.setdefault(mechanism.name, mechanism)
    output.parent.mkdir(parents=True, exist_ok=True)
    for mechanism in holding.values():
        found = {**mechanism.record(), "attacks": attacks(mechanism) | killed_parent(mechanism), "solutions": {}}
        record["mechanisms"].append(found)
        write_json(output, record)
    record["answers"] = answers(data)
    for mechanism, found in zip(holding.values(), record["mechanisms"], strict=True):
        for name, suite in solutions(mechanism, data):
            found["solutions"][name] = suite
            write_json(output, record)
    print(output.read_text())
    open_ones = [name for m in record["mechanisms"] for name, one in m["attacks"].items() if not one["contained"]]
    print("not contained:", ", ".join(open_ones) or "nothing")
    return 1 if open_ones or not holding else 0


def main() -> int:
    """One command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    who = "root" if os.getuid() == 0 else "user"
    parser.add_argument("--data", type=Path, required=True, help="folder of the problems")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "execution" / f"{who}.json")
    options = parser.parse_args()
    return ended("execution", lambda: make(options.data, options.output))


if __name__ == "__main__":
    sys.exit(main())
