"""Two processes share one sharded run: each writes its half, both stop together, and one goes on alone."""

import json
import re

import numpy as np
import pytest

from tests.two_processes import two_processes
from wsm_jax import Run
from wsm_jax.checkpoints import orbax

pytest_plugins = ["tests.runs"]
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("train")]

# The first signal comes after update 4, to the second process alone; the second one when a state of step 24 is there.
PROCESS = """
import faulthandler, json, os, signal, sys, time
faulthandler.dump_traceback_later(900, exit=True)
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[1]}", num_processes=2, process_id=int(sys.argv[2]))
from pathlib import Path
from wsm_jax import cli
from wsm_jax.checkpoints import orbax, stream
from wsm_jax.io.disk import tree_bytes
from wsm_jax.training.signals import StopSignals

file, run, kind = sys.argv[3:]
me, stopping, save = jax.process_index(), StopSignals.stopping, stream.Stream.save

def written():
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["wchar"])

def saving(self, step, items, metadata=None):
    before = written()
    save(self, step, items, metadata)
    self.wait()
    if self._mergeable:
        print(json.dumps({"whole": tree_bytes(items), "mine": written() - before}), flush=True)

def asked(self, step):
    time.sleep(0.05)
    if kind == "term" and step == 4 and me == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    if kind == "kill" and step == 26:
        assert 24 in orbax.complete_steps(Path(run) / "checkpoints" / "resume")
        time.sleep(1 - me)  # the first one keeps the service of both
        os.kill(os.getpid(), signal.SIGKILL)
    return stopping(self, step)

stream.Stream.save, StopSignals.stopping = saving, asked
sys.exit(cli.main(["train", f"--config={file}", f"--run={run}", "--quiet"]))
"""
FIELDS = {
    "model__d_model": 64,
    "checkpoint__merge_interval": "12steps",
    "checkpoint__branch_points": "",
    "evaluation__interval": "48steps",
    "log__interval": "1steps",
}


def test_two_hosts_stop_together_are_killed_and_go_on_as_one(tiny):
    place, file = tiny.folder / "hosts", tiny.file("hosts", **FIELDS, mesh__fsdp=2)

    def both(kind, status):
        return two_processes(PROCESS, file, place, kind, environment=tiny.environment, status=status)

    both("term", 75)
    (stopped,) = orbax.complete_steps(place / "checkpoints" / "resume")
    assert 4 <= stopped < 24  # one state, that of the step after which both stopped
    assert Run(place).metrics("train")[-1]["step"] == stopped

    for printed in both("kill", -9):
        saves = [json.loads(line) for line in re.findall(r"^\{.*\}$", printed, re.MULTILINE)]
        assert len(saves) >= 1
        for found in saves:  # what is beside the arrays is the same for a model of any size
            assert 0.45 * found["whole"] < found["mine"] < 0.65 * found["whole"]

    run = tiny.run("hosts", **FIELDS)
    assert [record["step"] for record in run.metrics("start")] == [0, stopped, 24]
    alone = tiny.run("one-host", **FIELDS)
    assert [r["step"] for r in run.metrics("train")] == [r["step"] for r in alone.metrics("train")] == [*range(1, 49)]
    # The same rows: those of another step would differ in the second digit. Rounding grows a little with every update.
    losses = [[record["loss"] for record in found.metrics("train")] for found in (run, alone)]
    np.testing.assert_allclose(losses[0][:6], losses[1][:6], rtol=1e-5)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
