"""`prepare` in processes: two at once, and one that is killed."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import pytest

from wsm_jax.config import DataConfig
from wsm_jax.data.tokens import prepare

_PREPARE = """
import json, sys
from wsm_jax.config import DataConfig
from wsm_jax.data.tokens import prepare
print("ready", flush=True)
sys.stdin.readline()
print(prepare(DataConfig(**json.loads(sys.argv[1]))).hash, flush=True)
"""


def _start(config: DataConfig) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", _PREPARE, json.dumps(dataclasses.asdict(config))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def _go(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.integration
def test_two_processes_at_once_both_end_well(config, corpus, tmp_path):
    twins = [_start(dataclasses.replace(config, store=str(tmp_path))) for _ in range(2)]
    for twin in twins:
        _go(twin)
    assert [twin.communicate(timeout=60)[0].strip() for twin in twins] == [corpus.hash] * 2
    assert [twin.returncode for twin in twins] == [0, 0]
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.integration
@pytest.mark.parametrize("moment", ["arrayrecord/.tmp-*", "tokens/.tmp-*/train"])
def test_killed_prepare_leaves_nothing_that_looks_whole(config, corpus, tmp_path, moment):
    # A source large enough that the kill falls in the middle of the work.
    alone = dataclasses.replace(config, source="stdlib", switch_source="", tokenizer=str(corpus.stable[0][0].path))
    alone = dataclasses.replace(alone, store=str(tmp_path))
    process = _start(alone)
    _go(process)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(moment)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    place = moment.split("/")[0]
    assert all(path.name.startswith(".tmp-") for path in (tmp_path / place).iterdir())
    assert not list(tmp_path.glob("tokens/*/manifest.json")) and not (tmp_path / "index").exists()


@pytest.mark.integration
def test_after_a_kill_the_next_prepare_ends_well(config, corpus, tmp_path):
    process = _start(dataclasses.replace(config, store=str(tmp_path)))
    _go(process)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("tokens/.tmp-*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert prepare(dataclasses.replace(config, store=str(tmp_path))).hash == corpus.hash
