"""``wsm sweep`` as a user starts it: a small ablation killed and resumed, a run that breaks, what is skipped."""

import dataclasses
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.runs import ROOT, recorded_step, stop_when
from wsm_jax.io.files import read_json, read_jsonl
from wsm_jax.sweeps import records

pytestmark = pytest.mark.integration
pytest_plugins = ["tests.runs"]


def start(tiny, *arguments):
    command = [sys.executable, "-m", "wsm_jax", "sweep", *map(str, arguments), "--parallel=1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=tiny.environment, **pipes)


def finished(process):
    """Exit status, output and what it said, of a command that may take minutes on a busy machine."""
    out, err = process.communicate(timeout=1800)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def ablation(tiny):
    """The ablation on a few modules, as a command."""
    data = tiny.base.data
    names = ("source", "tokenizer", "store", "validation_fraction", "test_fraction")
    settings = [f"--config.data.{name}={getattr(data, name)}" for name in names]
    return ["experiments/ablation.py:tiny", *settings]


@pytest.fixture(scope="module")
def uninterrupted(tiny, ablation):
    folder = tiny.folder / "uninterrupted"
    status, _, told = finished(start(tiny, *ablation, f"--output={folder}"))
    assert status == 0, told
    return folder


def without_times(folder):
    return [{k: v for k, v in r.items() if k != "piece_seconds"} for r in read_jsonl(folder / records.RECORDS)]


def test_killed_and_resumed_it_leaves_the_same_records(tiny, ablation, uninterrupted):
    folder = tiny.folder / "killed"
    command = [*ablation, f"--output={folder}"]
    first, second = (folder / f"seed{seed}" / "run" for seed in (0, 1))
    status, output = stop_when(start(tiny, *command), lambda: recorded_step(first) > 0, signal.SIGTERM)
    assert status == 75 and "the same command again goes on from there" in output, output
    assert 0 < recorded_step(first) < 128
    stop_when(start(tiny, *command), lambda: recorded_step(second) > 0, signal.SIGKILL)
    done = folder / "pieces" / "seed0-run" / records.RECORDS
    before = done.stat().st_mtime_ns
    status, _, told = finished(start(tiny, *command, "--json"))
    assert status == 0 and "2 pieces, 1 of them done" in told, told
    assert done.stat().st_mtime_ns == before
    assert without_times(folder / "results") == without_times(uninterrupted / "results")
    found, expected = (records.read(place / "results") for place in (folder, uninterrupted))
    assert found.documents == expected.documents and list(found.nats) == list(expected.nats)
    assert all(np.array_equal(found.nats[name], expected.nats[name]) for name in found.nats)


# What the commands of SLURM do with an array, one job after the other on this machine.
SLURM = {
    "sbatch": """shift $(($# - 1))
for index in $(sed -n 's/#SBATCH --array=//p' "$1" | tr , ' '); do
  SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$index bash "$1" </dev/null >&2 || exit
done
echo Submitted batch job 7""",
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
}


def test_slurm_and_other_machines_leave_the_same_records(tiny, ablation, uninterrupted, tmp_path):
    for name, text in SLURM.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    tiny = dataclasses.replace(tiny, environment={**tiny.environment, "PATH": f"{tmp_path}:{tiny.environment['PATH']}"})
    command = [*ablation, f"--output={tiny.folder / 'cluster'}"]
    status, out, told = finished(start(tiny, *command, "--submit=slurm", "--only=0"))
    assert status == 0 and "2 pieces" not in told and out.strip() == "Submitted batch job 7", told
    shell = ["--hosts=elsewhere", "--shell=env HOST={host} sh -c {command}"]
    status, _, told = finished(start(tiny, *command, *shell, "--json"))
    assert status == 0 and "2 pieces, 1 of them done; 1 to do" in told, told
    assert without_times(tiny.folder / "cluster" / "results") == without_times(uninterrupted / "results")


def test_records_are_what_their_nats_give_and_say_where_they_come_from(uninterrupted, ablation):
    found = records.read(uninterrupted / "results")
    assert {record["seed"] for record in found.records} == {0, 1}
    for record in found.records:
        own = found.nats[records.key(record)]
        assert own.dtype == np.float32 and len(own) == len(found.documents["domain"])
        assert record["domains"] == records.bits_per_byte(own, found.documents)
        assert record["command"] == " ".join(["wsm sweep", *ablation])
        assert record["config_id"] and record["versions"]["jax"] and record["machine"]
    by_arm = {record["arm"]: record for record in found.records if record["seed"] == 0}
    no_merge = by_arm["window=32steps,interval=32,curve=linear"]  # one checkpoint, 80B x 1 of Table 4
    assert no_merge["merge"] == {"curve": "linear", "count": 1, "interval": 32, "snapshot": "point"}
    assert no_merge["test"] == by_arm["last"]["test"] and by_arm["last"]["merge"] == {}
    assert no_merge["axes"] == {"merge.window": "32steps", "merge.interval": 32, "merge.curve": "linear"}
    assert read_json(uninterrupted / "sweep.json")["name"] == "ablation"


def test_a_run_that_breaks_is_reported_and_the_others_are_there(tiny, tmp_path):
    config = tiny.file(
        "six", duration="6steps", checkpoint__branch_points="", evaluation__interval="", schedule__warmup="1steps"
    )
    file = tmp_path / "rates.py"
    points = "axis('config.optimizer.peak_lr', [1e30, 1e-3]), merge={'count': 2}"
    file.write_text(
        "from wsm_jax.sweeps import Sweep, axis\n"
        f"def get_sweep():\n    return Sweep('rates', {str(config)!r}, {points})\n"
    )
    status, out, err = finished(start(tiny, file, f"--output={tmp_path}/out", "--json"))
    assert status == 3, err
    assert "failed: seed0-peak_lr=1e+30, exit status 3" in err and "not finite" in err
    assert "left out of the results: peak_lr=1e+30 last, peak_lr=1e+30" in err
    assert [row["arm"] for row in json.loads(out)["arms"]] == ["peak_lr=0.001 last", "peak_lr=0.001"]
    assert {r["run"] for r in read_jsonl(tmp_path / "out" / "results" / "records.jsonl")} == {"peak_lr=0.001"}
    status, _, told = finished(start(tiny, file, f"--output={tmp_path}/out", "--only=1"))
    assert status == 0 and "1 pieces, 1 of them done" in told, told
