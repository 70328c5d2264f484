"""Training that cannot go on: values that are not finite, and what is refused before anything is written."""

import re

import numpy as np
import pytest

from tests.runs import (
    DIVERGING,
    assert_whole,
    ended,
)
from wsm_jax import NonFiniteError, Run, UsageError
from wsm_jax.checkpoints import orbax
from wsm_jax.training.loop import train

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.xdist_group("train")


@pytest.mark.integration
def test_a_run_that_diverges_stops_and_keeps_what_was_good(tiny):
    process = tiny.start("diverging", **DIVERGING)
    status, output = ended(process)
    found = re.fullmatch(
        r"wsm: stopped at a value that is not finite: step (\d+): (.*); nothing after step (\d+) was saved\n", output
    )
    assert found, output
    assert status == 3
    step, good = int(found[1]), int(found[3])
    assert "loss" in found[2]
    assert re.search(r"\b(nan|inf)\b", found[2])
    assert 4 < step
    run = Run(tiny.folder / "diverging")
    assert good < step
    newest = assert_whole(run)  # everything that is there is finite
    assert newest >= 4
    assert newest <= good
    assert max(orbax.complete_steps(run.merge_stream)) <= good
    assert run.metrics("train")[-1]["step"] == good
    assert all(np.isfinite(record["loss"]) for record in run.metrics("train"))
    before = sorted(run.path.rglob("*"))
    with pytest.raises(NonFiniteError) as caught:  # the same command again
        tiny.run("diverging", **DIVERGING)
    assert caught.value.step == step
    assert sorted(run.path.rglob("*")) == before
    assert run.metrics("start")[-1]["step"] == newest


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # of the rate to float32
def test_parameters_that_are_not_finite_are_not_saved(tiny):
    """The loss of the first step is good; the update is not."""
    fields = DIVERGING | {"optimizer__peak_lr": 1e39, "checkpoint__merge_interval": "1steps"}
    with pytest.raises(NonFiniteError, match=r"step 1: the parameters are not finite; they were not saved") as caught:
        tiny.run("infinite", **fields)
    assert caught.value.step == 1
    run = Run(tiny.folder / "infinite")
    assert orbax.complete_steps(run.merge_stream) == orbax.complete_steps(run.resume_stream) == []
    assert [record["step"] for record in run.metrics("train")] == [1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"accumulate": 3}, r"batch_size=8 is not a multiple of accumulate=3"),
        ({"model__heads": 3}, r"model\.d_model=16 is not a multiple of model\.heads=3"),
        ({"optimizer__name": "adam"}, r"unknown optimizer\.name 'adam'"),
        ({"schedule__name": "step"}, r"unknown schedule\.name 'step'"),
        ({"data__source": "text:/no/such/place"}, r"/no/such/place"),
        ({"model__context": 0, "duration": "1Mtok"}, r"model\.context is 0; it must be at least 1"),
        ({"model__attention": "cudnn"}, r"model\.attention=cudnn needs an NVIDIA GPU, this is cpu; choose xla"),
    ],
)
def test_bad_input_stops_before_anything_is_written(tiny, fields, message):
    with pytest.raises(UsageError, match=message) as caught:
        tiny.run("never", **fields)
    assert "\n" not in str(caught.value)
    assert not (tiny.folder / "never").exists()


def test_a_bucket_is_no_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match="s3://bucket/run is no path of a file system, nor gs://BUCKET/PATH; mount the bucket"
    ):
        train(tiny.config(), "s3://bucket/run")
    assert not list(tmp_path.iterdir())
