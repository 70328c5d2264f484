"""A disk without room: one line that names the file and the room it takes, nothing half-made, and on it goes."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import pytest

from tests.disks import FULL, fill
from tests.runs import ROOT, SIX_STEPS, STEPS
from wsm_jax.checkpoints import inspection, orbax, storage
from wsm_jax.checkpoints.stream import Stream
from wsm_jax.config import to_dict

pytest_plugins = ["tests.runs", "tests.disks"]
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("train")]


def wsm(*arguments, environment=os.environ):
    command = [sys.executable, "-m", "wsm_jax", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=dict(environment), capture_output=True, text=True)
    return done.returncode, done.stderr.splitlines()


def refused(*arguments, **options):
    status, lines = wsm(*arguments, **options)
    assert status == 2 and re.match(FULL, lines[-1]), lines
    return lines


FILLED = """
import pathlib, shutil, sys
from tests.disks import fill
from wsm_jax import cli
from wsm_jax.checkpoints.stream import Stream
from wsm_jax.io import disk

save, place = Stream.save, pathlib.Path(sys.argv[1])
def saved(self, step, *more):
    if step == 6:
        self.wait()
        fill(place, 30000)
    save(self, step, *more)
Stream.save = saved
if sys.argv[2] == "late":
    disk.check_room = lambda *_: None  # the disk fills only while it is written
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.mark.parametrize("when", ["before", "late"])
def test_train(tiny, disk, when):
    place = disk(8)
    config = tiny.folder / "full.py"
    fields = {**SIX_STEPS, "evaluation__interval": ""}
    config.write_text(
        "from wsm_jax.config import from_dict\n\n\ndef get_config():\n"
        f"    return from_dict({to_dict(tiny.config(**fields))!r})\n"
    )
    command = ["train", f"--config={config}", f"--run={place / 'run'}", "--quiet"]
    filled = [sys.executable, "-c", FILLED, str(place), when, *command]
    done = subprocess.run(filled, cwd=ROOT, env=tiny.environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.match(FULL, line) and "/run/checkpoints/merge/6" in line
    assert os.listdir(place / "run" / "checkpoints" / "merge") == ["3"]
    assert os.listdir(place / "run" / "checkpoints" / "resume") == []
    (place / "ballast").unlink()
    assert wsm(*command, environment=tiny.environment) == (0, [])
    assert orbax.complete_steps(place / "run" / "checkpoints" / "merge") == [3, 6]
    assert inspection.verify(place / "run")["damaged"] == []


@pytest.mark.parametrize("form", storage.FORMATS)
def test_merge(disk, tmp_path, form):
    place = disk(8)
    with Stream(tmp_path / "in", mergeable=True) as stream:
        for step in (1, 2):
            stream.save(step, {"params": {"w": jnp.ones((1000, 500)), "b": jnp.ones(100)}})
    command = ["merge", tmp_path / "in" / "1", tmp_path / "in" / "2", f"--output={place / 'out'}", f"--format={form}"]
    fill(place, 500000)
    (line,) = refused(*command)
    assert str(place) in line
    assert os.listdir(place) == ["ballast"]
    (place / "ballast").unlink()
    fill(place, 2_004_000)  # the arrays have room, what lies beside them has not
    lines = refused(*command)
    assert len(lines) == 1 and os.listdir(place) == ["ballast"]
    (place / "ballast").unlink()
    assert wsm(*command)[0] == 0
    assert inspection.verify(place / "out")["damaged"] == []


def test_prepare(tiny, disk):
    place = disk(1)
    fill(place, 20000)
    config = tiny.folder / "prepare.py"
    config.write_text(
        "from wsm_jax.config import from_dict\n\n\ndef get_config():\n"
        f"    return from_dict({to_dict(tiny.config(data__store=str(place / 'store')))!r})\n"
    )
    lines = refused("prepare", f"--config={config}", environment=tiny.environment)
    assert "Traceback" not in "".join(lines)
    assert [path for path in (place / "store").rglob("*") if path.is_file()] == []
    (place / "ballast").unlink()
    assert wsm("prepare", f"--config={config}", environment=tiny.environment)[0] == 0


def test_eval_where_the_tokens_must_be_made_again(tiny, reference, disk):
    place = disk(4)
    run = shutil.copytree(reference.path, place / "run", ignore=shutil.ignore_patterns("resume"))
    config = json.loads((run / "config.json").read_text())
    config["data"]["store"] = str(place / "store")
    (run / "config.json").write_text(json.dumps(config))
    command = ["eval", f"--run={run}", "--json", f"--step={STEPS}"]
    fill(place, 20000)
    refused(*command, environment=tiny.environment)
    assert [path for path in (place / "store").rglob("*") if path.is_file()] == []
    (place / "ballast").unlink()
    assert wsm(*command, environment=tiny.environment)[0] == 0
