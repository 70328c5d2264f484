"""Processes that a cluster has started become one distributed run."""

import os

import jax

from wsm_jax.errors import UsageError


def is_one_of_several() -> bool:
    """Whether the environment says so: a task of a SLURM step, a rank of Open MPI, a host of a slice of TPUs."""
    counts = (os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return any(count.isdecimal() and int(count) > 1 for count in counts) or len(hosts) > 1


def join(asked: bool) -> None:
    """``jax.distributed.initialize()`` where it is ``asked`` for, or where the environment tells of other processes.

    Raises:
      UsageError: it is asked for, and this is no process of a cluster that JAX knows.
    """
    if not asked and not is_one_of_several():
        return
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"--distributed: this is no process of a cluster that JAX knows ({error})") from error
