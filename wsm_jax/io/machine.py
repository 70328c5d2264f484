"""The machine, the libraries and the command: the provenance of every result."""

import contextlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def cpu_name() -> str:
    """The processor's model; floating-point results of a run repeat bit for bit on one model only."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def versions() -> dict[str, str]:
    """Library -> version, of those that are installed: a light install has no flax, optax or grain."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def environment() -> dict[str, Any]:
    """Versions, machine and command: the provenance of every result."""
    import jax

    device = jax.devices()[0]
    program = os.path.basename(sys.argv[0])
    program = "python -m wsm_jax" if program == "__main__.py" else program
    return {
        "wsm_jax": metadata.version("wsm-jax"),
        "versions": versions(),
        "python": platform.python_version(),
        "machine": f"{jax.device_count()} x {device.device_kind}, {os.cpu_count()} cores of {cpu_name()}",
        "platform": device.platform,
        "command": " ".join([program, *sys.argv[1:]]),
    }


def has_accelerator() -> bool:
    """Whether this machine has a GPU or TPU, without asking JAX, which would begin to use it."""
    devices = Path("/dev")
    return any(any(devices.glob(name)) for name in ("nvidia[0-9]*", "accel*", "vfio/[0-9]*", "kfd"))
