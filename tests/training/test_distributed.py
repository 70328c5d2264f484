"""Training on two processes of two devices each is training on four devices: the same numbers, one set of files."""

import json

import jax
import numpy as np
import pytest

from tests.runs import SIX_STEPS
from tests.two_processes import two_processes
from wsm_jax import Run
from wsm_jax.checkpoints import orbax
from wsm_jax.config import to_dict

pytest_plugins = ["tests.runs"]
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("train")]

PROCESS = """
import faulthandler, json, sys, jax
faulthandler.dump_traceback_later(240, exit=True)  # a process that waits for ever says where
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[1]}", num_processes=2, process_id=int(sys.argv[2]))
from wsm_jax.config import from_dict
from wsm_jax.training.loop import train
assert jax.process_count() == 2 and len(jax.devices()) == 4
train(from_dict(json.loads(sys.argv[3])), sys.argv[4], quiet=True)
"""


def run_both(tiny, name, **fields):
    settings = json.dumps(to_dict(tiny.config(**fields)))
    environment = {**tiny.environment, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    two_processes(PROCESS, settings, tiny.folder / name, environment=environment)
    return Run(tiny.folder / name)


def test_two_processes_train_one_run(tiny):
    fields = {**SIX_STEPS, "log__interval": "1steps", "checkpoint__branch_points": "3steps"}
    four = tiny.finish("four-devices", devices=4, **fields)
    two = run_both(tiny, "two-processes", **fields)
    assert orbax.complete_steps(two.merge_stream) == orbax.complete_steps(four.merge_stream) == [3, 6]
    assert orbax.complete_steps(two.resume_stream) == [3, 6]
    for step in ("3", "6"):
        ours, theirs = (jax.tree.leaves(orbax.load_tree(run.merge_stream / step)) for run in (two, four))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    # One writer: every record is there once, and the losses are of all rows, not of one process's.
    records = [[(r["step"], r["loss"]) for r in run.metrics("train")] for run in (two, four)]
    assert [step for step, _ in records[0]] == [step for step, _ in records[1]] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([x for _, x in records[0]], [x for _, x in records[1]], rtol=1e-5)


UNDER_SLURM = """
import faulthandler, os, sys
faulthandler.dump_traceback_later(240, exit=True)
step = {"STEP_NODELIST": "localhost", "NTASKS": "2", "STEP_NUM_TASKS": "2", "PROCID": sys.argv[2], "LOCALID": "0"}
os.environ |= {"SLURM_JOB_ID": sys.argv[1], **{f"SLURM_{name}": value for name, value in step.items()}}
from wsm_jax import cli
status = cli.main(["train", f"--config={sys.argv[3]}", f"--run={sys.argv[4]}", "--quiet"])
import jax
print(jax.process_count(), jax.process_index())
sys.exit(status)
"""


def test_the_tasks_of_a_slurm_step_are_one_run_without_a_flag(tiny):
    run = tiny.folder / "slurm"
    config = tiny.file("slurm", **SIX_STEPS)
    printed = two_processes(UNDER_SLURM, config, run, environment=tiny.environment)
    assert [text.splitlines()[-1].split() for text in printed] == [["2", "0"], ["2", "1"]]
    assert orbax.complete_steps(Run(run).merge_stream)[-1] == 6
    steps = [record["step"] for record in Run(run).metrics("train")]
    assert steps == sorted(set(steps))  # written by one of them


@pytest.mark.slow
def test_two_processes_go_on_together_from_where_they_stopped(tiny):
    fields = {**SIX_STEPS, "checkpoint__branch_points": "3steps"}
    two = run_both(tiny, "going-on", **fields)
    (two.path / "checkpoints" / "resume" / "6").rename(two.path / "gone")
    again = run_both(tiny, "going-on", **fields)
    assert orbax.complete_steps(again.resume_stream) == [3, 6]
    assert again.metrics("start")[-1]["step"] == 3
