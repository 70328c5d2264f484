"""``wsm train``: trains a run, or goes on with one that stopped."""

import argparse

from wsm_jax.cli import config_flags
from wsm_jax.cli.arguments import whole
from wsm_jax.io import memory


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    sub.add_argument("--run", required=True, dest="directory", metavar="DIR", help="the run directory")
    sub.add_argument(
        "--branch_from",
        metavar="RUN@STEP",
        help="start from this full state, e.g. to decay",
    )
    sub.add_argument(
        "--params_from",
        metavar="PATH",
        help="start with these parameters, e.g. a merge's; the rest as without",
    )
    sub.add_argument(
        "--profile", type=whole, metavar="STEP", help="trace a few updates from this one on, into RUN/profile"
    )
    sub.add_argument("--quiet", action="store_true", help="no progress bar, no messages")
    sub.add_argument(
        "--distributed",
        action="store_true",
        help="one process of several: jax.distributed.initialize(); not needed under srun, mpirun and on TPU slices "
        "that say so in the environment",
    )


def run(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm train``: see :func:`wsm_jax.training.loop.train`."""
    memory.keep_heap()  # before the libraries begin their threads
    config = config_flags.load(settings)
    from wsm_jax.parallel import cluster

    cluster.join(options.distributed)  # before JAX looks for devices
    from wsm_jax.training.loop import train as run_training

    run_training(
        config,
        options.directory,
        branch_from=options.branch_from or "",
        params_from=options.params_from or "",
        profile=options.profile,
        quiet=options.quiet,
    )
