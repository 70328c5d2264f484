"""Records of a run: what is written where, what a resumed run drops, and trackers that are not there."""

import json
import struct
import sys
import types

import pytest

from tests.runs import SIX_STEPS
from wsm_jax import UsageError
from wsm_jax.config import LogConfig
from wsm_jax.io.files import read_jsonl
from wsm_jax.training.metrics import Writer, check_trackers

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.xdist_group("train")


def writer(directory, start=0, **log):
    return Writer(directory, LogConfig(**log), start_step=start, settings={})


def steps(directory):
    return [record["step"] for record in read_jsonl(directory / "metrics.jsonl")]


def test_one_record_a_line_at_once(tmp_path):
    out = writer(tmp_path)
    out.write("train", 10, loss=2.5, note="warm")
    # Whole before the file is closed: a kill loses nothing that was written.
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "kind": "train",
        "step": 10,
        "loss": 2.5,
        "note": "warm",
    }
    out.write("validation", 10, loss=2.0)
    out.close()
    assert [record["kind"] for record in read_jsonl(tmp_path / "metrics.jsonl")] == ["train", "validation"]


def test_what_is_not_finite_is_null_because_json_has_no_nan(tmp_path):
    out = writer(tmp_path)
    out.write("validation", 1, loss=1.5, loss_stderr=float("nan"), ratio=float("-inf"))
    out.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert record == {"kind": "validation", "step": 1, "loss": 1.5, "loss_stderr": None, "ratio": None}


def test_runs_of_one_name_in_two_folders_are_two_at_weights_and_biases(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **given: begun.append(given)))
    for folder in ("a/constant", "b/constant", "a/constant"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        writer(tmp_path / folder, wandb="project").close()
    assert [given["name"] for given in begun] == ["constant"] * 3
    first, second, again = (given["id"] for given in begun)
    assert first == again != second


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
    out = writer(tmp_path)
    for step in (0, 5, 10, 15, 20):
        out.write("train", step)
    out.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 2')  # cut by a crash; alone it would read as step 2
    out = writer(tmp_path, start=10)
    assert steps(tmp_path) == [0, 5, 10]
    out.write("train", 15)
    out.close()
    assert steps(tmp_path) == [0, 5, 10, 15]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_only_one_process_writes(tmp_path):
    out = Writer(tmp_path, LogConfig(tensorboard=True), start_step=0, settings={}, enabled=False)
    out.write("train", 1, loss=1.0)
    out.close()
    assert list(tmp_path.iterdir()) == []


def events(directory):
    """TensorBoard's events in order of writing: a file is records of length, checksum, bytes, checksum."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted((directory / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def scalars(directory):
    return {(e.step, v.tag): v.simple_value for e in events(directory) for v in e.summary.value}


def test_tensorboard(tmp_path):
    out = writer(tmp_path, tensorboard=True)
    out.write("train", 10, loss=2.5, tokens=1280, machine="1 x cpu", stderr=float("nan"))
    out.write("validation", 10, loss=2.0)
    out.close()
    assert scalars(tmp_path) == {(10, "train/loss"): 2.5, (10, "train/tokens"): 1280, (10, "validation/loss"): 2.0}
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 2


def test_tensorboard_hides_what_a_resumed_run_writes_again_and_no_more(tmp_path):
    """A start event hides what was written before from its step on; the resume step's own records are not repeated."""
    out = writer(tmp_path, tensorboard=True)
    out.write("train", 10, loss=2.5)
    out.close()
    out = writer(tmp_path, start=10, tensorboard=True)
    out.close()
    assert max(event.step for event in events(tmp_path) if event.HasField("session_log")) == 11


@pytest.mark.integration
def test_a_run_with_tensorboard(tiny):
    run = tiny.run("tensorboard", **SIX_STEPS, log__tensorboard=True)
    written = scalars(run.path)
    assert run.metrics("train")
    for record in run.metrics("train"):
        assert written[record["step"], "train/loss"] == pytest.approx(record["loss"])
        assert written[record["step"], "train/learning_rate"] == pytest.approx(record["learning_rate"])


@pytest.mark.parametrize(
    ("log", "module", "extra"),
    [({"wandb": "project"}, "wandb", "wandb"), ({"tensorboard": True}, "tensorboardX", "tensorboard")],
)
def test_a_tracker_that_is_not_installed(tiny, monkeypatch, log, module, extra):
    monkeypatch.setitem(sys.modules, module, None)  # makes its import fail
    message = rf'log\.{extra} needs {module}: pip install "wsm-jax\[{extra}\]"'
    with pytest.raises(UsageError, match=message):
        check_trackers(LogConfig(**log))
    with pytest.raises(UsageError, match=message):
        tiny.run("never", **{f"log__{name}": value for name, value in log.items()})
    assert not (tiny.folder / "never").exists()
    check_trackers(LogConfig())
