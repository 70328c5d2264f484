"""A program run by two processes of one distributed run, for the tests of what they do together."""

import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor


def two_processes(program: str, *arguments: object, environment: Mapping[str, str], status: int = 0) -> list[str]:
    """What each printed; ``program`` gets the coordinator's port, its own number and ``arguments``, and ends so."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(port), str(index), *map(str, arguments)],
            # Gloo prints to the same stream from threads of its own: unbuffered, our lines would be torn by its.
            env={**environment, "PYTHONUNBUFFERED": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    with ThreadPoolExecutor(len(started)) as pool:  # both are read, so that neither waits for a full pipe
        outcomes = list(pool.map(subprocess.Popen.communicate, started))
    failed = [
        errors[-4000:] for process, (_, errors) in zip(started, outcomes, strict=True) if process.returncode != status
    ]
    assert not failed, "\n\n".join(failed)  # of both: one that waits may wait for one that died
    return [printed for printed, _ in outcomes]
