"""The launchers, in dry runs: what they would do, and what they refuse."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "experiments" / "launch"
SETTINGS = ["--config=configs/tiny.py", "--config.data.source=text:a b", "--run=gs://bucket/tiny"]


def dry(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DRY_RUN": "1", **variables}
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_a_slice_is_asked_for_trained_on_by_all_hosts_and_given_back():
    done = dry("tpu_slice.sh", "mine", "v5p:4x4x8", *SETTINGS, ZONE="us-east5-a")
    assert done.returncode == 0, done.stderr
    ask, setup, train, delete = [line for line in done.stdout.splitlines() if line.startswith("gcloud")]
    assert "queued-resources create mine" in ask and "--type=v5p --topology=4x4x8" in ask and "--spot" in ask
    assert "--worker=all" in setup and "--zone=us-east5-a" in train and "queued-resources delete mine" in delete
    assert "wsm\\ train\\ --distributed\\ --config=configs/tiny.py" in train and "gs://bucket/tiny" in train


def test_a_job_is_one_process_for_each_gpu_and_is_queued_again_where_it_was_stopped():
    done = dry("slurm.sh", "4", "8", *SETTINGS, SBATCH="--partition=h100", TIME="2:00:00")
    assert done.returncode == 0, done.stderr
    for line in (
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --signal=TERM@120",
        "#SBATCH --time=2:00:00",
    ):
        assert line in done.stdout.splitlines()
    assert r"wsm train --config=configs/tiny.py --config.data.source=text:a\ b" in done.stdout
    assert "$status == 75" in done.stdout and "scontrol requeue" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["sbatch", "--partition=h100"]
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0


def test_a_box_is_planned_for_then_trained_on():
    done = dry("gpu_box.sh", *SETTINGS, PLAN="h100:8")
    assert done.returncode == 0, done.stderr
    plan, train = done.stdout.splitlines()
    assert plan.startswith("wsm plan --config=configs/tiny.py") and plan.split()[-2:] == ["--topology=h100:8", "--fast"]
    assert "--run" not in plan and train.startswith("wsm train --config=configs/tiny.py")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tpu_slice.sh", "mine", "v9:2x2", *SETTINGS], "unknown chip v9; known: v5e, v5p, v6e"),
        (["tpu_slice.sh", "mine", "v5e:2x2", "--run=runs/tiny"], "--run must be in a bucket"),
        (["slurm.sh", "four", "8", *SETTINGS], "NODES and GPUS_PER_NODE are numbers"),
        (["slurm.sh", "4", "8", "--config=configs/tiny.py"], "--run=DIR is missing"),
        (["gpu_box.sh"], "--run=DIR is missing"),
    ],
)
def test_bad_input_is_one_line(arguments, line):
    done = dry(*arguments, ZONE="us-east5-a")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and line in done.stderr


def test_each_can_be_read_at_once():
    scripts = sorted(LAUNCH.glob("*.sh"))
    assert [script.name for script in scripts] == ["gpu_box.sh", "slurm.sh", "tpu_slice.sh"]
    assert all(len(script.read_text().splitlines()) < 60 and os.access(script, os.X_OK) for script in scripts)
