"""What a training process finds in its environment, and how a command ends."""

import sys
from collections.abc import Callable
from pathlib import Path

from wsm_jax.errors import UsageError

# XLA:CPU makes and frees its temporaries at every update. With one heap that is never given back no page is new after
# the first updates; otherwise page faults cost a fifth of the time (benchmarks/train_step.py).
KEPT_HEAP = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736:glibc.malloc.arena_max=1"


def tuned() -> dict[str, str]:
    """Environment variables that make training faster on this machine: on CPUs the kept heap."""
    devices = Path("/dev")
    accelerator = any(any(devices.glob(name)) for name in ("nvidia[0-9]*", "accel*", "vfio/[0-9]*", "kfd"))
    return {} if accelerator else {"GLIBC_TUNABLES": KEPT_HEAP}


def ended(name: str, main: Callable[[], int]) -> int:
    """The exit status of a command; bad input is one line and status 2."""
    try:
        return main()
    except UsageError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
