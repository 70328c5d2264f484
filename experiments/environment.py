"""What a training process finds in its environment."""

import hashlib
import os
from pathlib import Path

import jax

from wsm_jax.io import machine

# XLA:CPU makes and frees its temporaries at every update. With one heap that is never given back no page is new after
# the first updates; otherwise page faults cost a fifth of the time (benchmarks/train_step.py).
KEPT_HEAP = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736:glibc.malloc.arena_max=1"


def tuned() -> dict[str, str]:
    """Environment variables that make training faster on this machine: on CPUs the kept heap.

    On an accelerator no process takes all of the memory at its start, as several may share it.
    """
    own = machine.has_accelerator()
    return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if own else {"GLIBC_TUNABLES": KEPT_HEAP}


def compile_once(folder: Path) -> None:
    """Keeps what this process compiles in ``folder``, for others that need the same; the user's own place stays.

    Apart for each kind of processor, as code for one may not run on another, and number of cores, on which the order of
    sums depends.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
        name = hashlib.sha256("\n".join([*kind, str(len(os.sched_getaffinity(0)))]).encode()).hexdigest()[:12]
        jax.config.update("jax_compilation_cache_dir", str((folder / name).absolute()))
