"""Processes side by side: their cores, failures, signals, and what they do when the one that started them is gone."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wsm_jax.errors import Preempted
from wsm_jax.sweeps.processes import LOG, hosts, shares, side_by_side

PRINTS = "import sys; print(sys.argv[1:]); sys.exit(7 * ('fail' in sys.argv))"


def test_one_that_fails_does_not_keep_the_others_from_starting(tmp_path):
    names = ["a", "fail", "b", "c"]
    found = []
    commands = {name: [sys.executable, "-c", PRINTS, name] for name in names}
    side_by_side(commands, {name: tmp_path / name for name in names}, shares(2), lambda *end: found.append(end))
    assert sorted(found) == [("a", 0), ("b", 0), ("c", 0), ("fail", 7)]
    cores = {(tmp_path / name / LOG).read_text().split("--cores=")[1].split("'")[0] for name in names}
    every = [int(core) for share in cores for core in share.split(",")]
    assert sorted(every) == sorted(os.sched_getaffinity(0))  # at most two shares, which have nothing in common


def test_one_that_crashed_is_started_once_more(tmp_path):
    crashes = "import os, signal, sys; open(sys.argv[1], 'a').write('x'); os.kill(os.getpid(), signal.{})"
    signals = {"segfault": "SIGSEGV", "killed": "SIGKILL"}
    commands = {
        name: [sys.executable, "-c", crashes.format(sent), str(tmp_path / name)] for name, sent in signals.items()
    }
    found = []
    side_by_side(
        commands, {name: tmp_path / f"{name}-log" for name in commands}, shares(1), lambda *end: found.append(end)
    )
    assert found == [("killed", -signal.SIGKILL), ("segfault", -signal.SIGSEGV)]
    assert {name: (tmp_path / name).read_text() for name in commands} == {"segfault": "xx", "killed": "x"}


def test_hosts_do_one_at_a_time_each_where_the_command_was_given(tmp_path, monkeypatch):
    here = tmp_path / "it's here"
    here.mkdir()
    monkeypatch.chdir(here)
    prints = "import os, sys; print(os.environ['HOST'], os.getcwd(), sys.argv[1:])"
    commands = {name: [sys.executable, "-c", prints, "a 'b' $HOME"] for name in ("1", "2", "3")}
    folders, found = {name: tmp_path / name for name in commands}, []
    side_by_side(
        commands, folders, hosts(["x", "y"], "env HOST={host} sh -c {command}"), lambda *end: found.append(end)
    )
    assert sorted(found) == [(name, 0) for name in commands]
    said = [(folders[name] / LOG).read_text().strip() for name in commands]
    assert {line[:2] for line in said[:2]} == {"x ", "y "}
    given = ["a 'b' $HOME"]
    assert all(line[2:] == f"{here} {given}" for line in said)


def test_a_signal_is_passed_on_and_nothing_is_started_after_it(tmp_path):
    sleeps = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(300)"]
    first = tmp_path / "a" / LOG

    def send():
        while not (first.is_file() and first.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    found = []
    with pytest.raises(Preempted, match="goes on from there"):
        folders = {name: tmp_path / name for name in "ab"}
        side_by_side({"a": sleeps, "b": sleeps}, folders, shares(1), lambda *end: found.append(end))
    assert found == [("a", -signal.SIGTERM)] and not (tmp_path / "b").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_process_ends_when_the_one_that_started_it_is_killed(tmp_path):
    child = (
        "import signal, sys, time\n"
        "from wsm_jax.sweeps.processes import end_with_parent\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(75)))\n"
        "end_with_parent(); print('up', flush=True); time.sleep(300)"
    )
    parent = (
        "from pathlib import Path; from wsm_jax.sweeps.processes import shares, side_by_side; import sys\n"
        f"side_by_side({{'a': [sys.executable, '-c', {child!r}]}}, {{'a': Path({str(tmp_path)!r})}}, shares(1), print)"
    )
    root = Path(__file__).parent.parent.parent
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=root)
    log = tmp_path / LOG
    while not (log.is_file() and "up" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    end = time.monotonic() + 60
    while "saved" not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
