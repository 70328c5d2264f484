"""Processes side by side, each on its share of the cores or on a machine of its own."""

import contextlib
import hashlib
import os
import shlex
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import numpy as np

from wsm_jax.errors import Preempted
from wsm_jax.io import machine

LOG = "log.txt"
_WAIT = 0.1  # seconds between looks at what has ended
_CRASHED = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT}  # by native code; what was saved is whole


Place = Callable[[Sequence[str]], list[str]]  # a command -> the one that runs it there


def shares(parallel: int) -> list[Place]:
    """Shares of the cores of this machine, at most as many as there are; a command is given ``--cores``."""
    cores = sorted(os.sched_getaffinity(0))
    texts = [",".join(map(str, share)) for share in np.array_split(cores, min(parallel, len(cores)))]
    return [lambda command, text=text: [*command, f"--cores={text}"] for text in texts]


def hosts(names: Sequence[str], shell: str) -> list[Place]:
    """Other machines, on which the working directory, this Python and the folders of the sweep have the same paths.

    Args:
      names: of the machines.
      shell: what runs a command there, with ``{host}`` and ``{command}``.
    """

    def there(command: Sequence[str], name: str) -> list[str]:
        text = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(command)}"
        return [part.replace("{host}", name).replace("{command}", text) for part in shlex.split(shell)]

    return [lambda command, name=name: there(command, name) for name in names]


def side_by_side(
    commands: Mapping[str, Sequence[str]],
    folders: Mapping[str, Path],
    places: Sequence[Place],
    ended: Callable[[str, int], None],
) -> None:
    """Runs a command for each of some names, one at a time at each place, in order; one that crashed once more, last.

    Args:
      commands: name -> command.
      folders: name -> where what it prints goes, into log.txt.
      places: as of :func:`shares` or :func:`hosts`.
      ended: told the name and the exit status of each.

    Raises:
      Preempted: a SIGINT or SIGTERM, which was passed on; all that ran has ended.
    """
    free, waiting, running, again = list(places), list(commands), {}, set()
    with _terminable():
        try:
            while waiting or running:
                while waiting and free:
                    name, place = waiting.pop(0), free.pop(0)
                    running[name] = _start(place(commands[name]), folders[name]), place
                for name, (process, place) in list(running.items()):
                    if (status := process.poll()) is not None:
                        del running[name]
                        free.append(place)
                        process.communicate()  # closes the pipe
                        if status in _CRASHED and name not in again:
                            again.add(name)
                            waiting.append(name)
                        else:
                            ended(name, status)
                time.sleep(_WAIT)
        except (KeyboardInterrupt, SystemExit) as error:
            for process, _ in running.values():
                process.terminate()
            for name, (process, _) in running.items():
                process.communicate()
                ended(name, process.returncode)
            raise Preempted("stopped; the same command again goes on from there") from error


def _start(command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Starts a process that :func:`end_with_parent` can end, apart from the terminal's signals."""
    folder.mkdir(parents=True, exist_ok=True)
    # On an accelerator no process takes all of the memory at its start, as several may share it.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if machine.has_accelerator() else {}
    with (folder / LOG).open("w") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**environment, **os.environ},
            start_new_session=True,
        )


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
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


# --- in such a process -----------------------------------------------------------------------------------------------


def end_with_parent() -> None:
    """Asks this process to save and to end when the one that started it has ended, even by a kill.

    One that was started by other means, as by SLURM, has no pipe to look at.
    """
    mode = os.fstat(0).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return

    def watch() -> None:
        os.read(0, 1)  # of a pipe that the parent holds open and writes nothing to
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def compile_once(folder: Path) -> None:
    """Keeps what this process compiles in ``folder``, for others that need the same; the user's own place stays.

    Apart for each kind of processor, as code for one may not run on another, and number of cores, on which the order of
    sums depends.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
        name = hashlib.sha256("\n".join([*kind, str(len(os.sched_getaffinity(0)))]).encode()).hexdigest()[:12]
        jax.config.update("jax_compilation_cache_dir", str((folder / name).absolute()))
