"""`wsm merge --every --follow`: each window merged as the run writes it, beside its trainer or after a stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.runs import ROOT, assert_same_bits, ended
from wsm_jax import Run, cli, merge_checkpoints, merge_weights
from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.merging import following

pytest_plugins = ["tests.runs"]
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("train")]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(following, "POLL", 0.1)
    monkeypatch.setattr(following, "PATIENCE", 0.1)


def follow(run, *arguments):
    """Exit status of the command."""
    options = ["--curve=cosine", "--count=3", "--follow", *arguments]
    return cli.main(["merge", f"--run={run.path}", *options])


def test_every_window_is_merged_beside_the_trainer(tiny):
    """The trainer stands still from its first window on until that is merged, so the merge comes before its end."""
    fields = {
        "duration": "240steps",
        "checkpoint__merge_interval": "10steps",
        "checkpoint__resume_interval": "240steps",
        "checkpoint__branch_points": "",
        "evaluation__interval": "",
    }
    path = tiny.folder / "followed"
    trainer = tiny.start("followed", **fields)
    wait_for(trainer, (path / "config.json").exists)
    assert run_lib.is_claimed(path)
    options = [f"--run={path}", "--curve=cosine", "--count=3", "--every=60", "--follow", "--json"]
    follower = subprocess.Popen(
        [sys.executable, "-m", "wsm_jax", "merge", *options],
        cwd=ROOT,
        env=tiny.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = Run(path)
    wait_for(trainer, (run.merge_stream / "60").exists)
    trainer.send_signal(signal.SIGSTOP)
    assert trainer.poll() is None
    wait_for(follower, run.merged("cosine-3x10-at-60").exists)
    trainer.send_signal(signal.SIGCONT)
    out, err = follower.communicate(timeout=300)
    assert ended(trainer) == (0, "")
    assert follower.returncode == 0, err
    assert all(line.startswith("wsm: waiting for step") for line in err.splitlines())
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["steps"] for record in records] == [[end - 20, end - 10, end] for end in range(60, 241, 60)]
    for record in records:
        paths = [run.merge_stream / str(step) for step in record["steps"]]
        expected = merge_checkpoints(paths, merge_weights("cosine", 3))
        assert_same_bits(orbax.load_tree(record["output"]), expected)


def wait_for(process, moment):
    """Returns when ``moment()`` holds, as long as the process lives."""
    while not moment():
        assert process.poll() is None, ended(process)
        time.sleep(0.002)


@pytest.fixture
def stopped(reference, tmp_path):
    """The tiny run with the merge checkpoints that it had at step 30, of 48."""
    copy = tmp_path / "run"
    shutil.copytree(reference.path, copy)
    for step in range(33, 49, 3):
        os.rename(copy / "checkpoints" / "merge" / str(step), tmp_path / str(step))
    return Run(copy)


def test_a_run_that_nobody_trains_is_left_with_a_line_and_taken_up_again(stopped, tmp_path, capsys):
    assert follow(stopped, "--every=12") == 75
    printed = capsys.readouterr()
    merged = [stopped.merged(f"cosine-3x3-at-{end}") for end in (12, 24, 36, 48)]
    assert printed.out.splitlines() == [f"merged 3 checkpoints into {path}" for path in merged[:2]]
    assert printed.err.splitlines() == [
        f"wsm: waiting for step 36 of {stopped.path}, which no process trains now",
        f"wsm: no process trains {stopped.path}, which is at step 30 of 48; 2 windows are still to come. The same "
        "command goes on when it is trained further",
    ]
    before = [os.stat(path).st_mtime_ns for path in merged[:2]]
    for step in range(33, 49, 3):
        os.rename(tmp_path / str(step), stopped.merge_stream / str(step))
    assert follow(stopped, "--every=12") == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"merged 3 checkpoints into {path}" for path in merged[2:]]
    assert [os.stat(path).st_mtime_ns for path in merged[:2]] == before
    assert follow(stopped, "--every=12") == 0  # nothing left to do
    assert capsys.readouterr().out == ""


def test_a_window_that_retention_was_quicker_than_is_told_of(stopped, capsys):
    shutil.rmtree(stopped.merge_stream / "21")
    assert follow(stopped, "--every=12", "--last_step=30") == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"merged 3 checkpoints into {stopped.merged('cosine-3x3-at-12')}"]
    assert printed.err == "wsm: note: of the window at step 24 a checkpoint is gone; it is left out\n"


def test_a_look_at_the_claim_neither_takes_nor_breaks_it(tmp_path):
    assert run_lib.is_claimed(tmp_path) is False
    with run_lib.claimed(tmp_path):
        assert run_lib.is_claimed(tmp_path) is True
        assert run_lib.is_claimed(tmp_path) is True
    assert run_lib.is_claimed(tmp_path) is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--follow goes with --every=K"),
        (["--every=12", "--explain"], "--follow goes with --every=K, and not with --explain"),
        (["--every=12", "--curve=best:2"], "--follow takes rules that need no losses"),
        (["--every=12", "--curve=search"], "--every goes with rules that need no data"),
        (["--every=7"], "every=7 is no multiple of the stream's interval of 3 steps; 6 is"),
        (["--every=12", "--count=17"], "no step of its 48 that is a multiple of 12 ends such a window"),
        (["--every=12", "--count=999999999999999999"], "no step of its 48"),
        (["--every=12", "--name=x"], "--name goes with one merge"),
    ],
)
def test_bad_options_are_refused_in_one_line(reference, arguments, words, capsys):
    assert follow(reference, *arguments) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1
    assert not (reference.path / "merged").exists()
