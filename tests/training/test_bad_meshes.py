"""Meshes that a run cannot be trained on: each refused in one line, before anything is compiled or written."""

import json
import subprocess
import sys

import pytest

from tests.runs import ROOT

pytest_plugins = ["tests.runs"]
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("train")]

# Every command line in one process; nothing may get as far as a step.
PROCESS = """
import contextlib, io, json, sys
from wsm_jax import cli
from wsm_jax.parallel import chips
from wsm_jax.training import loop
loop.jit_train_step = None
outcomes = []
for arguments, free in json.loads(sys.argv[1]):
    if free:
        chips.free_memory = lambda mesh, free=free: free
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = cli.main(["train", "--quiet", *arguments])
    outcomes.append([status, said.getvalue()])
print(json.dumps(outcomes))
"""
CASES = [
    (["mesh.fsdp=3"], 0, "mesh.fsdp=3 takes 3 devices, which is not a divisor of the 8 there are"),
    (
        ["mesh.data=2", "mesh.tensor=2"],
        0,
        "mesh.data=2 x mesh.tensor=2 takes 4 devices, which is not as many as the 8 there are",
    ),
    (
        ["mesh.fsdp=-1", "mesh.tensor=-1"],
        0,
        "mesh.fsdp and mesh.tensor are both -1; only one axis can take the rest",
    ),
    (["batch_size=12"], 0, "batch_size=12 is not a multiple of accumulate x devices = 1 x 8"),
    (["batch_size=4", "mesh.fsdp=4"], 0, "batch_size=4 is not a multiple of accumulate x devices = 1 x 8"),
    (
        ["model.d_model=20", "mesh.fsdp=8"],
        0,
        "leaf blocks/attention/out/kernel of shape (2, 20, 20): dimension 2, embed, is no multiple of mesh.fsdp=8; "
        "choose a divisor of 20, or another size of the model",
    ),
    (
        ["mesh.fsdp=2"],
        1000,
        "the train state takes 0.000 GB on each device, but 0.000 GB are free; raise mesh.fsdp, which cuts it",
    ),
]


def test_each_is_refused_in_one_line(tiny, reference):
    file = tiny.file("refused")
    commands = []
    for number, (fields, free, _) in enumerate(CASES):
        place = reference.path if free else tiny.folder / f"refused-{number}"  # a run that would go on
        commands.append(([f"--config={file}", f"--run={place}", *(f"--config.{field}" for field in fields)], free))
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, check=False,
        env=tiny.environment | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for (status, said), (_, _, message) in zip(json.loads(done.stdout.splitlines()[-1]), CASES, strict=True):
        assert (status, said) == (2, f"wsm: {message}\n")
    assert not list(tiny.folder.glob("refused-*"))
