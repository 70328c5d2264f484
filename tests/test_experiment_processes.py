"""Experiments and the demo as processes: folders that cannot be written, failures, signals."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments.processes import Processes
from tests.runs import ended, recorded_step, stop_when
from wsm_jax import Run
from wsm_jax.checkpoints import orbax

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent


def test_a_folder_that_cannot_be_written_is_one_error_and_no_endless_wait(tmp_path):
    (tmp_path / "file").write_text("")
    found = Processes(1)

    def go(name):
        return found.run(name, ["true"], tmp_path / "file" / name, {})

    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(go, name) for name in ("one", "two")]
        with pytest.raises(NotADirectoryError):
            waiting[0].result(timeout=60)
        assert waiting[1].result(timeout=60) == 1


def test_the_end_of_a_log_is_shown_at_once_and_nothing_is_started_after_it(tmp_path, capsys):
    found = Processes(1)
    command = [sys.executable, "-c", "import sys; print('the reason'); sys.exit(7)"]
    assert found.run("a piece", command, tmp_path / "a", {}) == 7
    assert capsys.readouterr().err == "a piece ended with 7:\nthe reason\n"
    assert found.run("another", command, tmp_path / "b", {}) == 1 and not (tmp_path / "b").exists()


def test_a_signal_to_the_command_is_passed_on_and_training_saves_where_it_is(store, short_demo, tmp_path):
    settings = [*short_demo, "--config.duration=100000steps", "--config.checkpoint.resume_interval=100000steps"]
    settings += ["--config.checkpoint.branch_points=", "--config.checkpoint.merge_interval=50000steps"]
    arguments = ["--only=0.006-seed0", "--parallel=1", f"--output={tmp_path}/runs", *settings]
    command = [sys.executable, "-m", "experiments.lawa", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "runs" / "0.006-seed0" / "run"
    status, output = stop_when(process, lambda: recorded_step(run) > 0, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM, output
    log = (tmp_path / "runs" / "0.006-seed0" / "log.txt").read_text()
    (step,) = orbax.complete_steps(Run(run).resume_stream)
    assert f"step {step}" in log and "lawa 0.006-seed0 ended with 75:" in output


def test_an_interruption_lets_the_training_save_where_it_is(store, short_demo, tmp_path):
    settings = [*short_demo, "--config.duration=100000steps", "--config.checkpoint.resume_interval=100000steps"]
    command = [sys.executable, "-m", "experiments.demo", f"--output={tmp_path}/demo", *settings]
    command += ["--config.checkpoint.merge_interval=50000steps"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    run = tmp_path / "demo" / "constant"
    while not recorded_step(run):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C: to the command and to what it has started
    status, output = ended(process)
    assert status == 75 and "Traceback" not in output, output
    (step,) = orbax.complete_steps(Run(run).resume_stream)
    assert f"step {step}" in output
