"""Pieces of a sweep as an array of SLURM: one job of the array does one piece, and goes on after a preemption."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from wsm_jax.errors import UsageError
from wsm_jax.io.files import write_text
from wsm_jax.sweeps import runner
from wsm_jax.sweeps.plan import Piece, Plan

JOB = "slurm.sh"
_TEXT = """#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --array={indices}
#SBATCH --ntasks=1
#SBATCH --time={time}
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="{log}"
cd {here} || exit 1
status=0
srun --ntasks=1 --input=none {command} || status=$?
# A run saves and ends with 75 at SIGTERM; the job is queued again and the piece goes on.
if [[ $status == 75 || $status == 143 ]]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
  exit 0
fi
exit $status
"""


def job(plan: Plan, pieces: Sequence[Piece]) -> str:
    """The script of the array; the number of a job in it is that of its piece in the plan.

    ``TIME`` in the environment is the limit of a job, 24:00:00 by default.
    """
    numbers = [plan.pieces.index(piece) for piece in pieces]
    command = shlex.join(runner.command(plan, "")) + '"$SLURM_ARRAY_TASK_ID"'  # --piece= is its last argument
    return _TEXT.format(
        name=plan.experiment.name,
        indices=",".join(map(str, numbers)),
        time=os.environ.get("TIME", "24:00:00"),
        log=(plan.output / "slurm-%a.log").absolute(),
        here=shlex.quote(os.getcwd()),
        command=command,
    )


def submit(plan: Plan, pieces: Sequence[Piece]) -> str:
    """Prepares what is not done of ``pieces`` and hands it to ``sbatch``; what that says, empty where all is done.

    ``SBATCH`` in the environment holds more options for it, e.g. ``--partition=h100 --account=mine``.

    Raises:
      UsageError: as of :func:`wsm_jax.sweeps.runner.prepare`; no sbatch here, or one that refuses the job.
    """
    todo = runner.prepare(plan, pieces)
    if not todo:
        return ""
    place = Path(plan.output) / JOB
    write_text(place, job(plan, todo))
    asked = ["sbatch", *shlex.split(os.environ.get("SBATCH", "")), str(place)]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UsageError("--submit=slurm: there is no sbatch here; start it on a machine of the cluster") from None
    if done.returncode:
        raise UsageError(f"--submit=slurm: sbatch refused {place}: {' '.join(done.stderr.split())}")
    return done.stdout.strip()
