"""Safetensors folders: merged, written as transformers wants them, and refused in one line where something is wrong."""

import json
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import wsm_jax
from wsm_jax import UsageError, cli
from wsm_jax.checkpoints import orbax


def folder(path, seed, *, shards=1, dtype: Any = np.float32, **more):
    """A model folder with two matrices, a mask that is not floating, and configuration files."""
    random = np.random.default_rng(seed)
    tensors = {f"layers.{i}.weight": random.standard_normal((8, 6)).astype(dtype) for i in range(2)}
    tensors |= {
        "attention.mask": np.tril(np.ones((4, 4), np.bool_)),
        "count": np.asarray([seed + 2**40], np.int64),
        **more,
    }
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "gpt_neox"}')
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return tensors
    names = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(names.values()):
        save_file({n: tensors[n] for n in tensors if names[n] == file}, path / file, metadata={"format": "pt"})
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return tensors


def test_the_configuration_names_the_dtype_of_the_result(tmp_path):
    for i in range(2):
        folder(tmp_path / str(i), i, dtype=ml_dtypes.bfloat16)
        config = {"torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}, "vocab_size": 7}
        (tmp_path / str(i) / "config.json").write_text(json.dumps(config))
    paths = [tmp_path / "0", tmp_path / "1"]
    wsm_jax.merge_checkpoints(paths, [0.5, 0.5], tmp_path / "same")
    assert (tmp_path / "same" / "config.json").read_bytes() == (tmp_path / "1" / "config.json").read_bytes()
    wsm_jax.merge_checkpoints(paths, [0.5, 0.5], tmp_path / "out", dtype=jnp.float32)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found == {"torch_dtype": "float32", "text_config": {"dtype": "float32"}, "vocab_size": 7}


def test_a_single_file_comes_before_an_index_that_was_left(tmp_path):
    tensors = folder(tmp_path / "0", 0)
    (tmp_path / "0" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002"}}')
    merged = wsm_jax.merge_checkpoints([tmp_path / "0"], [1.0], rules=[("count", "skip")])
    np.testing.assert_array_equal(merged["layers.0.weight"], tensors["layers.0.weight"])


def merge(*arguments):
    return cli.main(["merge", *map(str, arguments)])


@pytest.mark.parametrize("shards", [1, 3])
def test_folders_merge_into_one_that_has_everything(tmp_path, shards):
    tensors = [folder(tmp_path / str(i), i, shards=shards) for i in range(5)]
    out = tmp_path / "out"
    assert merge(*(tmp_path / str(i) for i in range(5)), f"--output={out}", "--curve=cosine", "--verify") == 0
    files = sorted(p.name for p in out.glob("*.safetensors"))
    merged = {name: array for file in files for name, array in load_file(out / file).items()}
    weights = wsm_jax.merge_weights("cosine", 5)
    for name in ("layers.0.weight", "layers.1.weight"):
        expected = sum(c * t[name].astype(np.float64) for c, t in zip(weights, tensors, strict=True))
        np.testing.assert_allclose(merged[name], expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(merged["attention.mask"], tensors[4]["attention.mask"])
    assert merged["count"].tolist() == [4 + 2**40]  # 64 bits survive
    # The files of the inputs, and nothing that only described their weights.
    copied = {p.name for p in (tmp_path / "4").iterdir()}
    assert {p.name for p in out.iterdir()} == copied | {"merge.json", "wsm_hashes.json"}
    if shards > 1:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert (
            index["weight_map"]
            == json.loads((tmp_path / "4" / "model.safetensors.index.json").read_text())["weight_map"]
        )
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in merged.values())
    for file in files:
        with safe_open(out / file, framework="numpy") as tensors:
            assert tensors.metadata() == {"format": "pt"}
    record = json.loads((out / "merge.json").read_text())
    np.testing.assert_allclose(record["weights"], weights)
    assert len(record["inputs"]) == 5


def test_half_precision_goes_in_and_out_and_is_summed_in_float32(tmp_path):
    tensors = [folder(tmp_path / str(i), i, dtype=ml_dtypes.bfloat16) for i in range(2)]
    paths = [tmp_path / "0", tmp_path / "1"]
    ((_, merged),) = wsm_jax.merge_many(paths, {"mean": [0.5, 0.5]}, rules=[("mask|count", "skip")])
    assert merged["layers.0.weight"].dtype == jnp.bfloat16
    exact = np.mean([t["layers.0.weight"].astype(np.float64) for t in tensors], axis=0)
    np.testing.assert_array_equal(np.asarray(merged["layers.0.weight"]), exact.astype(ml_dtypes.bfloat16))


def test_policies_on_the_command_line(tmp_path, capsys):
    for i in range(2):
        folder(tmp_path / str(i), i)
    out = tmp_path / "out"
    assert merge(tmp_path / "0", tmp_path / "1", f"--output={out}", "--leaves=mask=error") == 2
    assert "leaf attention.mask (bool) is not to be merged" in capsys.readouterr().err
    assert merge(tmp_path / "0", tmp_path / "1", f"--output={out}", "--leaves=mask=nonsense") == 2
    assert "--leaves=mask=nonsense: write REGEX=POLICY" in capsys.readouterr().err
    assert not out.exists()
    assert merge(tmp_path / "0", tmp_path / "1", f"--output={out}", "--leaves=mask=skip", "--leaves=count=first") == 0
    merged = load_file(out / "model.safetensors")
    assert sorted(merged) == ["count", "layers.0.weight", "layers.1.weight"]
    assert merged["count"].tolist() == [2**40]


def test_a_missing_shard_is_named(tmp_path, capsys):
    for i in range(2):
        folder(tmp_path / str(i), i, shards=3)
    (tmp_path / "1" / "model-00002-of-00003.safetensors").unlink()
    assert merge(tmp_path / "0", tmp_path / "1", f"--output={tmp_path / 'out'}") == 2
    assert "has no file model-00002-of-00003.safetensors" in capsys.readouterr().err


def test_a_truncated_file_is_named(tmp_path, capsys):
    for i in range(2):
        folder(tmp_path / str(i), i)
    file = tmp_path / "1" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    assert merge(tmp_path / "0", tmp_path / "1", f"--output={tmp_path / 'out'}") == 2
    message = capsys.readouterr().err
    assert f"{file}: cannot be read" in message
    assert message.count("\n") == 1


def test_other_leaves_are_named(tmp_path):
    folder(tmp_path / "0", 0)
    folder(tmp_path / "1", 1, extra=np.ones(2, np.float32))
    with pytest.raises(UsageError, match=r"1 has a leaf extra, which .*0 lacks"):
        wsm_jax.merge_checkpoints([tmp_path / "0", tmp_path / "1"], [0.5, 0.5], tmp_path / "out")


def test_formats_are_not_mixed(tmp_path):
    folder(tmp_path / "0", 0)
    orbax.save_tree(tmp_path / "1", {"w": jnp.ones(2)})
    with pytest.raises(UsageError, match="differ in format"):
        wsm_jax.merge_checkpoints([tmp_path / "0", tmp_path / "1"], [0.5, 0.5], tmp_path / "out")


def test_an_existing_output_stays_as_it_is(tmp_path, capsys):
    folder(tmp_path / "0", 0)
    (tmp_path / "out").mkdir()
    assert merge(tmp_path / "0", f"--output={tmp_path / 'out'}") == 2
    assert "exists" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
