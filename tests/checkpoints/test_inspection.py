"""What `wsm inspect` tells of runs, checkpoints, merges and safetensors folders, from metadata alone."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import wsm_jax
from tests.merging.trees import save_all, tree
from wsm_jax import cli
from wsm_jax.checkpoints import huggingface, zarr
from wsm_jax.checkpoints.inspection import inspect

pytest_plugins = ["tests.runs"]


@pytest.fixture
def merges():
    """Asked for by a test that reads arrays because it merges first."""


@pytest.fixture(autouse=True)
def no_array_is_read(request, monkeypatch):
    if "merges" not in request.fixturenames:
        for source in (zarr.Source, huggingface.Source):
            monkeypatch.setattr(source, "read", lambda *_: pytest.fail("an array was read"))


def test_a_checkpoint(tmp_path):
    (path,) = save_all(tmp_path, [{**tree(0), "n": jnp.asarray(1)}])
    facts = inspect(path)
    assert (facts["kind"], facts["format"], facts["items"], facts["raw"]) == ("checkpoint", "orbax", ["params"], True)
    assert (facts["arrays"], facts["elements"], facts["bytes"]) == (4, 111, 444)
    assert facts["dtypes"] == {"float32": 3, "int32": 1}
    assert facts["leaves"]["blocks/kernel"] == {"shape": [3, 5, 4], "dtype": "float32"}
    assert facts["record"] == {"index": 0}


def test_a_merge_tells_where_it_comes_from(tmp_path, capsys, merges):
    paths = save_all(tmp_path, [tree(0), tree(1)])
    for form in ("orbax", "safetensors"):
        record = wsm_jax.merge_checkpoints(
            paths, [0.5, 0.5], tmp_path / form, format=form, metadata={"curve": "linear"}
        )
        assert inspect(tmp_path / form)["record"] == json.loads(json.dumps(record))
        assert cli.main(["inspect", str(tmp_path / form)]) == 0
        printed = capsys.readouterr().out
        assert record["inputs"][1]["xxh3"] in printed and "linear" in printed


def test_safetensors(tmp_path, capsys):
    save_file({"w": np.ones((2, 3), np.float16)}, tmp_path / "model.safetensors")
    assert cli.main(["inspect", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["elements"], facts["dtypes"]) == ("safetensors", 6, {"float16": 1})


def test_a_record_that_is_no_json_is_named(tmp_path, capsys):
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "merge.json").write_text("not ours")
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert f"{tmp_path}/merge.json: cannot be read as JSON" in capsys.readouterr().err


@pytest.mark.xdist_group("train")
def test_a_run(reference, capsys):
    facts = inspect(reference.path)
    assert (facts["kind"], facts["steps"], facts["merge_steps"][-1]) == ("run", reference.plan.steps, facts["steps"])
    assert facts["resume_steps"]
    assert cli.main(["inspect", str(reference.path)]) == 0
    assert facts["config_hash"] in capsys.readouterr().out


def test_nothing_of_the_kind(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "is neither a complete Orbax checkpoint nor" in capsys.readouterr().err
    for step in ("checkpoint-500", "checkpoint-900"):
        (tmp_path / step).mkdir()
        save_file({"w": np.ones(2, np.float32)}, tmp_path / step / "model.safetensors")
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert f"there are checkpoints in it, e.g. {tmp_path / 'checkpoint-500'}\n" in capsys.readouterr().err
