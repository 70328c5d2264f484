"""A tiny training run on real text, and the means to start it as a process, watch it, kill it and compare it.

A pytest plugin: a test module asks for the fixtures with ``pytest_plugins = ["tests.runs"]``.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from wsm_jax import Run
from wsm_jax.checkpoints import orbax
from wsm_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    ModelConfig,
    ScheduleConfig,
    to_dict,
    with_fields,
)
from wsm_jax.models import model as model_lib
from wsm_jax.training.loop import train

ROOT = Path(__file__).parent.parent
STEPS, MERGE, RESUME, BRANCH, LOG = 48, 3, 12, 18, 3
SIX_STEPS = {
    "duration": "6steps",
    "checkpoint__resume_interval": "6steps",
    "checkpoint__branch_points": "",
    "evaluation__interval": "6steps",
}
# Weight decay times rate is 10: the parameters grow ninefold a step until something overflows.
DIVERGING = {
    "optimizer__name": "sgd",
    "optimizer__peak_lr": 1e2,
    "optimizer__clip_norm": 0.0,
    "schedule__warmup": "0steps",
    "checkpoint__merge_interval": "2steps",
    "checkpoint__resume_interval": "4steps",
    "checkpoint__branch_points": "",
    "log__interval": "8steps",
}
TIMINGS = ("seconds", "tokens_per_second", "compile_seconds", "data_seconds", "tflops_per_second")
TEMPORARY = ".saving-"


@dataclasses.dataclass
class Tiny:
    """The run's configuration, where its runs go, and the environment of its processes."""

    base: Config
    folder: Path
    environment: dict[str, str]

    def config(self, **fields: Any) -> Config:
        """The configuration with fields replaced: ``optimizer__peak_lr=1e-2``."""
        return with_fields(self.base, **fields)

    def run(self, name: str, *, branch_from: str = "", params_from: str | Path = "", **fields: Any) -> Run:
        """Trains in this process."""
        config, place = self.config(**fields), self.folder / name
        return train(config, place, branch_from=branch_from, params_from=str(params_from), quiet=True)

    def file(self, name: str, **fields: Any) -> Path:
        """The configuration with fields replaced, as a file for ``--config``."""
        file = self.folder / f"{name}.py"
        file.write_text(
            "from wsm_jax.config import from_dict\n\n\ndef get_config():\n"
            f"    return from_dict({to_dict(self.config(**fields))!r})\n"
        )
        return file

    def start(self, name: str, *arguments: str, devices: int = 1, **fields: Any) -> subprocess.Popen[str]:
        """``wsm train`` as a process of its own."""
        file = self.file(name, **fields)
        environment = dict(self.environment)
        if devices > 1:
            environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        return subprocess.Popen(
            [sys.executable, "-m", "wsm_jax", "train", f"--config={file}", f"--run={self.folder / name}", "--quiet"]
            + list(arguments),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, name: str, *arguments: str, devices: int = 1, **fields: Any) -> Run:
        """``wsm train`` as a process, to its end, which must be a good one and a silent one."""
        status, output = ended(self.start(name, *arguments, devices=devices, **fields))
        assert (status, output) == (0, ""), output
        return Run(self.folder / name)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """2 layers of width 16 on twenty modules of the standard library; 48 steps, a merge checkpoint every third."""
    folder = tmp_path_factory.mktemp("tiny")
    text = folder / "text"
    text.mkdir()
    library = Path(os.__file__).parent
    for name in "abc bisect cmd code colorsys contextlib copy fnmatch glob heapq".split():
        shutil.copy(library / f"{name}.py", text)
    for name in "hmac io keyword queue sched shlex stat string struct types".split():
        shutil.copy(library / f"{name}.py", text)
    base = Config(
        duration=f"{STEPS}steps",
        batch_size=8,
        model=ModelConfig(layers=2, d_model=16, heads=2, context=16),
        data=DataConfig(
            source=f"text:{text}",
            tokenizer="bpe:300",
            store=str(folder / "store"),
            validation_fraction=0.3,
            test_fraction=0.2,
        ),
        schedule=ScheduleConfig(warmup="5steps"),
        checkpoint=CheckpointConfig(
            merge_interval=f"{MERGE}steps", resume_interval=f"{RESUME}steps", branch_points=f"{BRANCH}steps"
        ),
        evaluation=EvaluationConfig(interval=f"{RESUME}steps", tokens=4000),
        log=LogConfig(interval=f"{LOG}steps"),
    )
    return Tiny(base, folder, {**os.environ, "JAX_PLATFORMS": "cpu"})  # with what conftest says of what is compiled


@pytest.fixture(scope="session")
def reference(tiny: Tiny) -> Run:
    """The tiny run, uninterrupted, in this process on one device. Tests leave it as it is."""
    return tiny.run("reference")


def bigrams() -> model_lib.Model:
    """A model that compiles at once: two matrices that map a token of 128 to the logits of the next."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        first, second = jax.random.split(key)
        return {"in": jax.random.normal(first, (128, 16)), "out": jax.random.normal(second, (16, 128))}

    config = ModelConfig(layers=1, d_model=16, heads=1, context=16, vocab_size=128)
    return model_lib.Model(config, init, lambda params, tokens: (params["in"][tokens], params["out"]))


# --- processes -------------------------------------------------------------------------------------------------------


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and all output of a process, waited for."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out + err


def stop_when(process: subprocess.Popen[str], moment: Callable[[], bool], number: int) -> tuple[int, str]:
    """Sends signal ``number`` as soon as ``moment()`` holds, and returns status and output.

    The process stands still while the moment is looked at once more, so that it holds when the signal comes.
    """
    while process.poll() is None:
        if moment():
            process.send_signal(signal.SIGSTOP)
            if moment():
                process.send_signal(number)
                process.send_signal(signal.SIGCONT)
                return ended(process)
            process.send_signal(signal.SIGCONT)
        time.sleep(0.001)
    raise AssertionError(f"the process ended by itself: {ended(process)}")


def recorded_step(directory: Path) -> int:
    """Step of the last whole train record; 0 before the first."""
    path = directory / "metrics.jsonl"
    found = re.findall(r'"kind": "train", "step": (\d+),.*\n', path.read_text()) if path.exists() else []
    return int(found[-1]) if found else 0


def saves_under_way(stream: Path) -> list[str]:
    """Names of the unfinished saves in a stream's folder."""
    return [name for name in os.listdir(stream) if TEMPORARY in name] if stream.is_dir() else []


# --- comparing -------------------------------------------------------------------------------------------------------


def assert_same_bits(first: Any, second: Any, what: object = "") -> None:
    """Equal structure, dtypes, shapes and bits."""
    first_leaves, second_leaves = (jax.tree_util.tree_leaves_with_path(tree) for tree in (first, second))
    assert [path for path, _ in first_leaves] == [path for path, _ in second_leaves], what
    for (path, a), (_, b) in zip(first_leaves, second_leaves, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), (what, path)
        assert a.tobytes() == b.tobytes(), (what, jax.tree_util.keystr(path))


def assert_same_checkpoints(first: Run, second: Run, *, after: int = 0) -> None:
    """Both streams have the same steps after ``after``, and the same bits in them."""
    for name in ("merge_stream", "resume_stream"):
        one, other = getattr(first, name), getattr(second, name)
        steps = [step for step in orbax.complete_steps(one) if step > after]
        assert steps == [step for step in orbax.complete_steps(other) if step > after]
        assert steps
        for step in steps:
            items = orbax.item_names(one / str(step))
            assert items == orbax.item_names(other / str(step))
            for item in items:
                a, b = (orbax.load_tree(stream / str(step), item) for stream in (one, other))
                assert_same_bits(a, b, (name, step, item))


def records(run: Run) -> list[dict[str, Any]]:
    """What was measured, without timings and without the records of starts."""
    return [{k: v for k, v in r.items() if k not in TIMINGS} for r in run.metrics() if r["kind"] != "start"]


def spans(run: Run) -> list[tuple[int, int, float]]:
    """(first step, last step, mean loss) of the train records, which must follow one another."""
    found, last = [], 0
    for record in run.metrics("train"):
        found.append((last + 1, record["step"], record["loss"]))
        last = record["step"]
    return found


def assert_whole(run: Run) -> int:
    """What holds of a run at any time, also after a kill; the step of the newest full state (0: none).

    Every complete checkpoint is a planned one and can be read, and a full state at step s comes after the merge
    checkpoints up to s.
    """
    plan = run.plan
    full, merge = (orbax.complete_steps(stream) for stream in (run.resume_stream, run.merge_stream))
    assert set(merge) <= set(plan.merge_steps())
    for stream, steps in ((run.merge_stream, merge), (run.resume_stream, full)):
        for step in steps:
            for item in orbax.item_names(stream / str(step)):
                tree = orbax.load_tree(stream / str(step), item)
                assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))
    newest = max(full, default=0)
    assert set(merge) >= {step for step in plan.merge_steps() if step <= newest}
    for line in (run.path / "metrics.jsonl").read_text().splitlines()[:-1]:
        json.loads(line)
    return newest


def state(run, step):
    """The full state of a run at a step, by item."""
    path = run.resume_stream / str(step)
    return {item: orbax.load_tree(path, item) for item in ("params", "opt_state")}


def counts(tree):
    """The update counts in an optimizer state."""
    return {int(leaf) for leaf in jax.tree.leaves(tree["opt_state"]) if np.asarray(leaf).dtype == np.int32}
