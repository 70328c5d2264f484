"""Folders of other codebases: merged as a practitioner expects, or refused in one line before anything is written."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import wsm_jax
from wsm_jax import UsageError, cli
from wsm_jax.checkpoints import orbax
from wsm_jax.errors import UsageWarning

SHARD, SINGLE = "model-00001-of-00001.safetensors", "model.safetensors"


def full(value: float, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.full(shape, value, dtype)


def folder(path: Path, tensors: dict, *, file: str = SINGLE, config: Any = None, index: Any = None, **metadata) -> Path:
    """A model folder: one file of tensors, a configuration, and the index if one is given."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / file, metadata={"format": "pt", **metadata})
    (path / "config.json").write_text(json.dumps({"model_type": "x", **(config or {})}))
    if index is not None:
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def merge(path: Path, *more: str, count: int = 2) -> int:
    """The exit status of ``wsm merge`` of ``path/0`` and on into ``path/out``."""
    return cli.main(["merge", *(str(path / str(i)) for i in range(count)), f"--output={path / 'out'}", *more])


def refused(path: Path, capsys: pytest.CaptureFixture, *more: str) -> str:
    """What is said when the merge is refused: one line, and nothing is left."""
    before = sorted(path.iterdir())
    assert merge(path, *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sorted(path.iterdir()) == before
    return line


# --- safetensors that do not hold ------------------------------------------------------------------------------------


# case -> what makes the folders 0 and 1, what the refusal names.
REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "the index names a missing tensor": (
        lambda d, i: folder(d, {"a": full(i, 4)}, file=SHARD, index={"weight_map": {"a": SHARD, "norm": SHARD}}),
        (f"/0/{SHARD} has no tensor norm",),
    ),
    "the index names no file": (
        lambda d, i: folder(d, {"w": full(i, 4)}, file=SHARD, index={"weight_map": {"w": 5}}),
        ("/0/model.safetensors.index.json", "tensor w is in 5"),
    ),
    "the index is no index": (
        lambda d, i: folder(d, {"w": full(i, 4)}, file=SHARD, index=[]),
        ("/0/model.safetensors.index.json: not an index",),
    ),
    "a single file beside shards": (
        lambda d, i: (
            folder(d, {"a": full(7, 4)})
            and folder(d, {"a": full(i, 4)}, file=SHARD, index={"weight_map": {"a": SHARD}})
        ),
        ("both model.safetensors and the files", "out of date"),
    ),
    "no tensors": (lambda d, i: folder(d, {}), ("nothing to merge", "/0 has no leaf")),
    "quantized, says the configuration": (
        lambda d, i: folder(d, {"w": full(i, 4)}, config={"quantization_config": {"quant_method": "gptq"}}),
        ("/0/config.json has a quantization_config", "dequantize"),
    ),
    "quantized by bitsandbytes": (
        lambda d, i: folder(d, {"q.weight": full(i, 1, 2, dtype=np.int8), "q.SCB": full(1, 1)}),
        ("leaf q.weight is int8 beside q.SCB", "dequantize"),
    ),
    "quantized in 4 bits": (
        lambda d, i: folder(d, {"q.weight": full(i, 2, dtype=np.uint8), "q.weight.absmax": full(1, 1)}),
        ("leaf q.weight is uint8 beside q.weight.absmax",),
    ),
    "quantized by GPTQ": (
        lambda d, i: folder(d, {"a.qweight": full(i, 2, dtype=np.int32), "a.scales": full(1, 1)}),
        ("leaf a.qweight is int32 beside a.scales",),
    ),
    "weights in a sub-folder": (
        lambda d, i: folder(d, {"a": full(i, 4)}) and folder(d / "2_Dense", {"w": full(i, 2)}),
        ("/0/2_Dense/model.safetensors", "sub-folder"),
    ),
    "a tied head in one": (
        lambda d, i: folder(d, {"e": full(i, 4), **({} if i else {"lm_head.weight": full(i, 4)})}),
        ("/1 has no leaf lm_head.weight", "--leaves='^lm_head=skip'"),
    ),
    "a mask of infinities": (
        lambda d, i: folder(d, {"attention.mask": full(-np.inf, 4), "w": full(i, 4)}),
        ("leaf attention.mask holds", "--leaves='mask$=last'"),
    ),
    "dtypes that differ": (
        lambda d, i: folder(d, {"w": full(i, 4, dtype=(ml_dtypes.bfloat16, np.float32)[i])}),
        ("/1: leaf w is float32[4]", "bfloat16[4]", "--dtype=float32"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_does_not_merge_is_refused_in_one_line(tmp_path, capsys, case):
    make, words = REFUSED[case]
    for i in (0, 1):
        make(tmp_path / str(i), i)
    line = refused(tmp_path, capsys)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("name", ["../1/" + SINGLE, "/etc/passwd", "..", "sub/a.safetensors", ""])
def test_an_index_reads_nothing_outside_its_folder(tmp_path, capsys, name):
    for i in (0, 1):
        folder(tmp_path / str(i), {"w": full(i, 4)})
    (tmp_path / "0" / SINGLE).rename(tmp_path / "0" / "a.safetensors")
    (tmp_path / "0" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    line = refused(tmp_path, capsys)
    assert f"tensor w is in {name!r}, which is no file of the folder" in line


def test_every_leaf_skipped_is_nothing_to_merge(tmp_path, capsys):
    for i in (0, 1):
        folder(tmp_path / str(i), {"w": full(i, 4)})
    assert "no leaf but skipped ones" in refused(tmp_path, capsys, "--leaves=.=skip")


def test_what_the_refusals_say_to_type_works(tmp_path):
    for i in (0, 1):
        tensors = {"e": full(i, 4), "mask": full(-np.inf, 4), "x.bias_mask": full(-np.inf, 2)}
        folder(tmp_path / str(i), tensors | ({} if i else {"lm_head.weight": full(i, 4)}))
    assert merge(tmp_path, "--leaves=^lm_head=skip", "--leaves=mask$=last") == 0
    merged = load_file(tmp_path / "out" / SINGLE)
    assert sorted(merged) == ["e", "mask", "x.bias_mask"] and np.isneginf(merged["mask"]).all()


# --- what goes with safetensors --------------------------------------------------------------------------------------


def test_an_alias_of_a_tensor_is_kept(tmp_path):
    for i in (0, 1):
        folder(tmp_path / str(i), {"e": full(i, 4)}, **{"lm_head.weight": "e", "tool": "some"})
    assert merge(tmp_path) == 0
    with safe_open(tmp_path / "out" / SINGLE, framework="numpy") as file:
        assert file.metadata() == {"format": "pt", "lm_head.weight": "e"}


def test_configurations_that_differ_are_a_warning_that_names_the_fields(tmp_path, capsys):
    for i in (0, 1):
        config = {"_name_or_path": str(i), "heads": 8 - 4 * i, "text": {"size": 1, "depth": i}}
        folder(tmp_path / str(i), {"a": full(i, 4)}, config=config)
    assert merge(tmp_path) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("wsm: warning: ") and "differ in heads, text.depth; the merge takes the latter" in line
    assert json.loads((tmp_path / "out" / "config.json").read_text())["heads"] == 4


def test_only_what_goes_with_the_merged_weights_is_copied(tmp_path, capsys):
    (tmp_path / "secret").write_text("not yours")
    for i in (0, 1):
        path = folder(tmp_path / str(i), {"a": full(i, 4)})
        folder(path / "checkpoint-500", {"a": full(i, 4)})
        for name in ("1_Pooling/config.json", "tokenizer.json", ".git/config", "adapter_config.json", "model.gguf",
                     "onnx/model.onnx", "original/consolidated.00.pth"):  # fmt: skip
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text("{}")
        (path / "notes.txt").symlink_to(tmp_path / "secret")
        (path / "shared").symlink_to(tmp_path)
    assert merge(tmp_path) == 0
    found = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert found == {SINGLE, "config.json", "merge.json", "wsm_hashes.json", "tokenizer.json", "1_Pooling/config.json"}
    note, line = capsys.readouterr().err.splitlines()
    assert note.startswith(f"wsm: note: {tmp_path / '0'} is merged itself; its steps, checkpoint-500 to ")
    assert note.endswith("; so are the steps in 1 more of the inputs")
    left = ("adapter_config.json", "model.gguf", "onnx/model.onnx", "original/consolidated.00.pth", "shared/")
    assert all(name in line for name in left) and f"notes.txt (a link to {tmp_path / 'secret'})" in line


def test_a_snapshot_in_the_cache_of_hugging_face_is_merged_and_copied_through_its_links(tmp_path):
    for i in (0, 1):
        made = folder(tmp_path / "made" / str(i), {"w": full(i, 4)}, file=SHARD, index={"weight_map": {"w": SHARD}})
        (made / "1_Pooling").mkdir()
        (made / "1_Pooling" / "config.json").write_text("{}")
        repository = tmp_path / f"models--x--{i}"
        (repository / "blobs").mkdir(parents=True)
        for number, file in enumerate(sorted(made.rglob("*.*"))):
            link = repository / "snapshots" / "abc" / file.relative_to(made)
            link.parent.mkdir(parents=True, exist_ok=True)
            file.rename(repository / "blobs" / str(number))
            up = "/".join([".."] * (1 + len(file.relative_to(made).parts)))
            link.symlink_to(f"{up}/blobs/{number}")
        (tmp_path / str(i)).symlink_to(repository / "snapshots" / "abc")
    assert merge(tmp_path) == 0
    out = tmp_path / "out"
    np.testing.assert_array_equal(load_file(out / SHARD)["w"], full(0.5, 4))
    assert (out / "1_Pooling" / "config.json").read_text() == "{}"
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_inputs_of_several_dtypes_merge_where_that_of_the_output_is_given(tmp_path):
    dtypes = (ml_dtypes.bfloat16, np.float32, np.float16)
    arrays = [np.linspace(-1, i, 12).reshape(3, 4).astype(dtype) for i, dtype in enumerate(dtypes)]
    for i, array in enumerate(arrays):
        folder(tmp_path / str(i), {"w": array, "n": np.asarray([i], np.int64)})
    assert merge(tmp_path, "--dtype=float32", "--verify", count=3) == 0
    expected = np.mean([array.astype(np.float64) for array in arrays], axis=0)
    merged = load_file(tmp_path / "out" / SINGLE)
    np.testing.assert_allclose(merged["w"], expected, rtol=0, atol=1e-7)
    memory = wsm_jax.merge([{"w": jnp.asarray(array)} for array in arrays], [1 / 3] * 3, dtype=jnp.float32)
    np.testing.assert_array_equal(merged["w"], memory["w"])


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("pytorch_model.bin", "pytorch_model.bin is no file of torch.save"),
        ("adapter_model.safetensors", "it has an adapter: merge that into its model first"),
        ("consolidated.safetensors", "consolidated.safetensors: a single file is to be called model.safetensors"),
    ],
)
def test_weights_in_another_form_say_what_to_do(tmp_path, capsys, file, words):
    for i in (0, 1):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / file).write_bytes(b"")
    assert words in refused(tmp_path, capsys)


# --- Orbax -----------------------------------------------------------------------------------------------------------


def saved(path: Path, *trees: Any) -> list[Path]:
    """The trees as another codebase saves them: ``path/0`` and on, the pytree at the top."""
    paths = [path / str(i) for i in range(len(trees))]
    with ocp.PyTreeCheckpointer() as checkpointer:
        for each, tree in zip(paths, trees, strict=True):
            checkpointer.save(each, tree)
    return paths


def test_numbers_strings_and_keys_beside_the_arrays_are_the_newest_ones_as_they_were_saved(tmp_path, capsys):
    def tree(i: int) -> dict:
        config = {"lr": 0.1 * (i + 1), "name": f"n{i}", "tied": bool(i), "layers": 3 + i}
        key, keys = jax.random.key(i), jax.random.split(jax.random.key(i, impl="rbg"), 3)
        return {"model": {"w": jnp.full(3, i, jnp.bfloat16)}, "config": config, "key": key, "keys": [keys, None]}

    paths = saved(tmp_path, tree(0), tree(1))
    assert merge(tmp_path, "--verify") == 0
    assert capsys.readouterr().err == ""
    out = orbax.load_tree(tmp_path / "out")
    with ocp.PyTreeCheckpointer() as checkpointer:  # as its own codebase reads it
        assert checkpointer.restore(tmp_path / "out" / "params")["config"] == tree(1)["config"]
    for merged in (out, wsm_jax.merge_checkpoints(paths, [0.5, 0.5])):
        assert merged["config"] == tree(1)["config"]
        assert merged["model"]["w"].dtype == jnp.bfloat16 and float(merged["model"]["w"][0]) == 0.5
        for found, expected in ((merged["key"], tree(1)["key"]), (merged["keys"][0], tree(1)["keys"][0])):
            assert found.dtype == expected.dtype and jax.random.bits(found.reshape(-1)[0]).size == 1
            np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(expected))
    rules = [("name|tied", "skip"), ("lr", "first")]
    merged = wsm_jax.merge_checkpoints(paths, [0.5, 0.5], rules=rules)
    assert merged["config"] == {"lr": 0.1, "name": None, "tied": None, "layers": 4}
    assert wsm_jax.merge_checkpoints(paths, [1.0, 0.0])["config"] == tree(0)["config"]  # the last with a weight
    wsm_jax.merge_checkpoints([tmp_path / "out"], [1.0], tmp_path / "again")
    assert orbax.load_tree(tmp_path / "again")["config"] == tree(1)["config"]
    with pytest.warns(UsageWarning, match="hold no strings; left out: config/name"):
        wsm_jax.merge_checkpoints(paths, [0.5, 0.5], tmp_path / "flat", format="safetensors")
    assert float(load_file(tmp_path / "flat" / SINGLE)["config.lr"]) == 0.2


def test_numbers_of_several_kinds_are_the_newest_exactly(tmp_path):
    paths = saved(tmp_path, *[{"w": jnp.ones(2), "lr": lr} for lr in (1, True, 0.1)])
    assert wsm_jax.merge_checkpoints(paths, [0.2, 0.3, 0.5])["lr"] == 0.1


def test_leaves_of_one_name_are_refused(tmp_path, capsys):
    saved(tmp_path, *[{"a/b": {"c": jnp.ones(3)}, "a": {"b/c": jnp.ones(3)}}] * 2)
    assert "/0 has two leaves called a/b/c" in refused(tmp_path, capsys)


def test_of_a_train_state_only_the_parameters_are_merged(tmp_path, capsys):
    def state(i: int) -> dict:
        moments = {"mu": {"mu": {"w": full(10 + i, 3)}}, "count": np.int32(i)}
        return {"step": 100 + i, "params": {"mu": {"w": full(i, 3)}}, "opt_state": [moments, None]}

    saved(tmp_path, state(0), state(1))
    assert merge(tmp_path) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("wsm: warning: only parameters are merged: opt_state ") and "--include_optimizer" in line
    merged = orbax.load_tree(tmp_path / "out")
    assert merged["step"] == 101 and merged["opt_state"] == [{"count": None, "mu": {"mu": {"w": None}}}, None]
    np.testing.assert_array_equal(merged["params"]["mu"]["w"], full(0.5, 3))
    record = orbax.user_metadata(tmp_path / "out")
    assert record["leaf_policies"]["opt_state/0/mu/mu/w"] == "skip"
    (tmp_path / "out").rename(tmp_path / "without")
    assert merge(tmp_path, "--include_optimizer") == 0
    assert capsys.readouterr().err == ""
    merged = orbax.load_tree(tmp_path / "out")
    np.testing.assert_array_equal(merged["opt_state"][0]["mu"]["mu"]["w"], full(10.5, 3))


def test_an_item_given_as_a_path_names_the_checkpoint_and_the_item(tmp_path, capsys):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (0, 1):
            manager.save(step, args=ocp.args.StandardSave({"w": jnp.full(2, step)}))
    item = tmp_path / "run" / "1" / "default"
    assert cli.main(["merge", str(item), f"--output={tmp_path / 'out'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{item} is neither" in line and f"{item.parent}: give that, and --item=default" in line
    assert merge(tmp_path / "run", "--item=default") == 0


# --- a merge goes back into the program that saved the checkpoints ----------------------------------------------------


def test_an_abstract_tree_without_shardings_is_filled(tmp_path):
    def make() -> dict:
        return {"w": jnp.arange(6.0).reshape(2, 3), "l": [jnp.ones(2, jnp.bfloat16)]}

    wsm_jax.merge_checkpoints(saved(tmp_path, make()), [1.0], tmp_path / "out")
    loaded = wsm_jax.load_tree(tmp_path / "out", abstract=jax.eval_shape(make))
    jax.tree.map(np.testing.assert_array_equal, loaded, make())

    def model() -> nnx.Linear:
        return nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    state = nnx.state(model())
    (tmp_path / "nnx").mkdir()
    wsm_jax.merge_checkpoints(saved(tmp_path / "nnx", state), [1.0], tmp_path / "merged")
    abstract = nnx.eval_shape(model)
    loaded = wsm_jax.load_tree(tmp_path / "merged", abstract=nnx.state(abstract))
    nnx.update(abstract, loaded)
    np.testing.assert_array_equal(abstract(jnp.ones((1, 3))), model()(jnp.ones((1, 3))))


def test_a_leaf_that_is_no_number_has_no_average(tmp_path):
    paths = saved(tmp_path, *[{"w": jnp.ones(2), "name": "x"}] * 2)
    assert cli.main(["inspect", str(paths[0])]) == 0
    with pytest.raises(UsageError, match="leaf name is a string, which has no average"):
        wsm_jax.merge_checkpoints(paths, [0.5, 0.5], rules=[("name", "average")])
