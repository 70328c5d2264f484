"""What a merge refuses, in one line that names the culprit, and what a failure leaves behind."""

import os
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import wsm_jax
from tests.merging.trees import plain_chunks, save_all, tree
from wsm_jax import UsageError, cli
from wsm_jax.checkpoints import huggingface, orbax, zarr
from wsm_jax.merging import offline
from wsm_jax.merging.spec import MergeSpec


def refused(folder, paths, words, weights=None, **options):
    """The merge is refused in one line; neither the output nor anything of it is left."""
    before = sorted(os.listdir(folder))
    with pytest.raises(UsageError, match=words) as error:
        wsm_jax.merge_checkpoints(paths, weights or [1 / len(paths)] * len(paths), folder / "out", **options)
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(folder)) == before


def safetensors_folders(folder, count=2, **changed):
    paths = [folder / str(i) for i in range(count)]
    for i, path in enumerate(paths):
        path.mkdir()
        tensors = {"w": np.full((4, 5), i, np.float32), "b": np.ones(3, np.float32)}
        save_file(tensors | (changed if i == count - 1 else {}), path / "model.safetensors")
    return paths


def index(folder, text):
    """In the place of the single file, which would come first."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)


# --- before any array is read ----------------------------------------------------------------------------------------


def test_inputs_that_are_not_there(tmp_path):
    paths = save_all(tmp_path, [tree(0)])
    (tmp_path / "1").mkdir()
    refused(tmp_path, [*paths, tmp_path / "1"], "1 is neither a complete Orbax checkpoint nor a folder with model.safe")
    refused(tmp_path, [*paths, tmp_path / "2"], "2 is neither")
    refused(
        tmp_path,
        ["s3://bucket/run/1"],
        "s3://bucket/run/1 is no path of a file system, nor gs://BUCKET/PATH; mount the bucket",
    )
    (tmp_path / "model_5.safetensors").touch()
    refused(tmp_path, [tmp_path / "model_5.safetensors"], "a single file goes into a folder of its own, as model.safe")
    shutil.copytree(paths[0], tmp_path / "3.orbax-checkpoint-tmp-17")
    refused(tmp_path, [*paths, tmp_path / "3.orbax-checkpoint-tmp-17"], "is neither a complete")
    with pytest.raises(UsageError, match="nothing to merge"):
        wsm_jax.merge_many([], {})


def test_inputs_that_differ(tmp_path, monkeypatch):
    other = {**tree(1), "more": jnp.ones(1)}
    paths = save_all(tmp_path, [tree(0), other, {"embedding": jnp.ones((7, 6))}])
    for source in (zarr.Source, huggingface.Source):
        monkeypatch.setattr(source, "read", lambda *_: pytest.fail("an array was read"))
    refused(tmp_path, paths[:2], f"{paths[1]} has a leaf more, which {paths[0]} lacks")
    refused(tmp_path, paths[1::-1], f"{paths[0]} has no leaf more, which {paths[1]} has")
    refused(tmp_path, [paths[0], paths[2]], "has no leaf blocks/kernel")
    refused(tmp_path, paths[:1], "need 1 weights", weights=[0.5, 0.5])
    refused(tmp_path, paths[:1], "dtype='int8': choose", dtype="int8")
    refused(tmp_path, paths[:1], "format 'npz': choose orbax or safetensors", format="npz")
    refused(tmp_path, paths[:1], r"no leaf matches 'router'; the leaves are .*embedding", rules=[("router", "last")])
    (tmp_path / "st").mkdir()
    (tmp_path / "st" / "a").mkdir()
    folder = safetensors_folders(tmp_path / "st" / "a", 1)[0]
    refused(tmp_path, [paths[0], folder], "differ in format")


def test_an_existing_output_is_refused_before_anything_is_opened(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="out exists"):
        wsm_jax.merge_checkpoints([tmp_path / "nowhere"], [1.0], tmp_path / "out")
    with pytest.raises(UsageError, match="out exists"):
        offline.write({"a": MergeSpec.of([tmp_path / "nowhere"], [1.0], output=tmp_path / "out")})


def test_an_output_where_nothing_can_be_made(tmp_path):
    paths = save_all(tmp_path, [tree(0)])
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/out cannot be written: .*file.* \((Not a directory|File exists)\)"):
        wsm_jax.merge_checkpoints(paths, [1.0], tmp_path / "file" / "out")


def test_complex_leaves_are_not_merged_in_silence(tmp_path):
    paths = save_all(tmp_path, [{"w": jnp.full(3, i + 2j, jnp.complex64), "v": jnp.ones(2)} for i in range(2)])
    refused(tmp_path, paths, "leaf w is complex64, which is not averaged here; choose last, first or skip")
    wsm_jax.merge_checkpoints(paths, [0.5, 0.5], tmp_path / "out", rules=[("w", "last")], verify=True)
    np.testing.assert_array_equal(orbax.load_tree(tmp_path / "out")["w"], np.full(3, 1 + 2j))


def test_a_dtype_that_the_format_does_not_know(tmp_path):
    paths = save_all(tmp_path, [{"w": jnp.ones(8, jnp.float8_e4m3fn)}] * 2)
    refused(tmp_path, paths, "leaf w is float8_e4m3fn, which safetensors cannot hold here", format="safetensors")


def test_too_little_disk(tmp_path, monkeypatch):
    paths = save_all(tmp_path, [tree(0)])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 4, 5))
    refused(tmp_path, paths, "needs 0.000 GB more but its disk has 0.000 GB free; choose another disk")


def test_float64_is_not_merged_in_silence(tmp_path):
    paths = safetensors_folders(tmp_path, 1, w=np.ones((2, 2)))
    refused(tmp_path, paths, "leaf w is float64, but merges are float32 at best; ask for dtype=float32")
    wsm_jax.merge_checkpoints(paths, [1.0], tmp_path / "out", dtype="float32")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 4), "1/model.safetensors: cannot be read"),
        (lambda f: os.truncate(f / "model.safetensors", 150), "1/model.safetensors: cannot be read"),
        (lambda f: index(f, "{"), "not an index of safetensors"),
        (lambda f: index(f, "[]"), "not an index of safetensors"),
        (
            lambda f: index(f, '{"weight_map": {"w": "gone.safetensors"}}'),
            "1 has no file gone.safetensors, which its index names",
        ),
    ],
)
def test_damaged_safetensors(tmp_path, damage, words):
    paths = safetensors_folders(tmp_path)
    damage(paths[1])
    refused(tmp_path, paths, words)


# --- while reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_value_that_is_not_finite_names_checkpoint_and_leaf(tmp_path, bad, dtype):
    broken = tree(1, dtype)
    broken["blocks"]["norm"] = broken["blocks"]["norm"].at[2, 4].set(bad)
    paths = save_all(tmp_path, [tree(0, dtype), broken, tree(2, dtype)])
    refused(tmp_path, paths, r"1: leaf blocks/norm holds a NaN or an infinity")
    with pytest.raises(UsageError, match="1: leaf blocks/norm holds"):
        list(wsm_jax.merge_many(paths, {"a": [0.5, 0.2, 0.3], "b": [0.0, 0.5, 0.5]}))


def test_an_overflow_is_told_from_a_bad_input(tmp_path):
    paths = save_all(tmp_path, [{"a": jnp.ones(3), "w": jnp.full(3, 1e6)}, {"a": jnp.ones(3), "w": jnp.full(3, 1e6)}])
    refused(tmp_path, paths, "leaf w overflows; its weights or the output's dtype", dtype="float16")


@pytest.mark.parametrize("way", ["removed", "cut short"])
def test_a_damaged_chunk_names_checkpoint_and_leaf(tmp_path, way):
    paths = save_all(tmp_path, [tree(0), tree(1)])
    file = paths[1] / "params" / "blocks.kernel" / "c" / "0" / "0" / "0"
    file.unlink() if way == "removed" else os.truncate(file, 10)
    refused(tmp_path, paths, f"{paths[1]}: leaf blocks/kernel cannot be read")


@pytest.mark.parametrize("zarr3", [False, True])
def test_a_missing_chunk_is_not_taken_for_zeros(tmp_path, zarr3):
    """TensorStore would fill it in, and a verification that reads through it would agree."""
    import orbax.checkpoint as ocp

    for i in range(2):
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=zarr3)
        values = {"w": np.full((4, 5), i + 1.0, np.float32), "zero": np.zeros(3, np.float32)}
        ocp.Checkpointer(handler).save(tmp_path / str(i), values)
    paths = [tmp_path / "0", tmp_path / "1"]
    merged = wsm_jax.merge_checkpoints(paths, [0.5, 0.5])
    np.testing.assert_array_equal(merged["w"], np.full((4, 5), 1.5))
    np.testing.assert_array_equal(merged["zero"], np.zeros(3))
    next(
        file for file in (paths[1] / "w").rglob("*") if file.is_file() and not file.name.startswith((".z", "zarr"))
    ).unlink()
    refused(tmp_path, paths, f"{paths[1]}: leaf w is not whole: a file of it under", verify=True)


def test_a_leaf_cut_along_a_later_axis_is_not_read_without_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(orbax, "_storage_options", plain_chunks)
    paths = save_all(tmp_path, [{"w": jnp.full((5, 60), i + 1.0)} for i in range(2)])
    files = [file for file in (paths[0] / "params" / "w" / "c").rglob("*") if file.is_file()]
    assert len(files) > 1
    files[-1].unlink()
    refused(tmp_path, paths, f"{paths[0]}: leaf w ")


def test_integers_that_jax_would_cut_are_refused(tmp_path):
    """Without jax_enable_x64 a counter of tokens beyond 2^31 would come back as another number."""
    for i, value in enumerate((2**40 + 5, 7)):
        (tmp_path / str(i)).mkdir()
        save_file({"n": np.asarray([value]), "w": np.ones(2, np.float32)}, tmp_path / str(i) / "model.safetensors")
    with pytest.raises(UsageError, match="leaf n holds numbers that do not fit into int32"):
        wsm_jax.merge_checkpoints([tmp_path / "0"], [1.0])
    assert int(wsm_jax.merge_checkpoints([tmp_path / "1"], [1.0])["n"][0]) == 7


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_an_overflow_of_a_narrow_dtype_is_seen(tmp_path, dtype):
    most = float(jnp.finfo(dtype).max)
    paths = save_all(tmp_path, [{"a": jnp.full(3, most, dtype)} for _ in range(2)])
    refused(tmp_path, paths, "leaf a overflows", weights=[1.0, 1.0])


def test_integers_of_64_bits_are_read_whole(tmp_path):
    orbax.save_tree(tmp_path / "0", {"n": np.asarray([2**40 + 5]), "w": np.ones(2, np.float32)})
    found = orbax.load_tree(tmp_path / "0")
    assert (found["n"].dtype, int(found["n"][0])) == (np.int64, 2**40 + 5)
    assert found["w"].dtype == np.float32


def test_what_bfloat16_cannot_hold_overflows(tmp_path):
    paths = save_all(tmp_path, [{"a": jnp.full(3, 3.3895e38, jnp.bfloat16)} for _ in range(2)])
    refused(tmp_path, paths, "leaf a overflows", weights=[0.5, 0.503])


def test_what_a_tree_cannot_hold_is_told(tmp_path):
    (tmp_path / "0").mkdir()
    one = np.ones(2, np.float32)
    save_file({"x": one, "x.y": one}, tmp_path / "0" / "model.safetensors")
    refused(tmp_path, [tmp_path / "0"] * 2, "a tree cannot hold leaf x/y and another one", format="orbax")
    (tmp_path / "1").mkdir()
    save_file(
        {"x": one, "empty": np.ones((0, 5), np.float32), "flat": np.ones((5, 0), np.float32)},
        tmp_path / "1" / "model.safetensors",
    )
    wsm_jax.merge_checkpoints([tmp_path / "1"] * 2, [0.5, 0.5], tmp_path / "out", format="orbax")
    assert orbax.load_tree(tmp_path / "out")["empty"].shape == (0, 5)
    assert orbax.load_tree(tmp_path / "out")["flat"].shape == (5, 0)


def test_a_damaged_database_of_another_codebase_is_named(tmp_path):
    import orbax.checkpoint

    paths = [tmp_path / "0", tmp_path / "1"]
    for i, path in enumerate(paths):
        orbax.checkpoint.PyTreeCheckpointer().save(path, {"w": np.random.default_rng(i).standard_normal((300, 300))})
    for file in [*paths[1].glob("d/*"), *paths[1].glob("ocdbt.process_0/d/*")]:
        os.truncate(file, 10)
    refused(tmp_path, paths, f"{paths[1]}: leaf w ", dtype="float32")


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    paths = save_all(tmp_path, [tree(0), tree(1)])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr, "write_exactly", full)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UsageError, match="out cannot be written: the disk is full"):
        wsm_jax.merge_checkpoints(paths, [0.5, 0.5], tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == before


def test_a_write_that_fails_is_one_line(tmp_path, monkeypatch, capsys):
    paths = save_all(tmp_path, [tree(0), tree(1)])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr, "write_exactly", full)
    assert cli.main(["merge", *map(str, paths), f"--output={tmp_path / 'out'}", "--json"]) == 2
    assert re.fullmatch(r"wsm: .*/out cannot be written: the disk is full, .* make room, .*\n", capsys.readouterr().err)


# --- after writing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["orbax", "safetensors"])
def test_verification_sees_a_wrong_block_and_nothing_is_published(tmp_path, monkeypatch, form):
    trees = [tree(i) for i in range(3)]
    paths = save_all(tmp_path, trees)
    sink = {"orbax": zarr.Sink, "safetensors": huggingface.Sink}[form]
    write = sink.write

    def wrong(self, path, start, values):
        write(self, path, start, values * np.float32(1 + 1e-5) if path.endswith("norm") else values)

    monkeypatch.setattr(sink, "write", wrong)
    refused(tmp_path, paths, "leaf blocks/norm does not verify: row", format=form, verify=True)
    wsm_jax.merge_checkpoints(paths, [0.2, 0.3, 0.5], tmp_path / "unseen", format=form)  # that is what verify is for


@pytest.mark.parametrize("form", ["orbax", "safetensors"])
def test_verification_accepts_a_mask_of_infinities_and_what_an_input_without_weight_holds(tmp_path, form):
    trees = [{"w": jnp.full((3, 4), float(i)), "mask": jnp.asarray([0.0, -jnp.inf, jnp.nan])} for i in range(3)]
    trees[1]["w"] = trees[1]["w"].at[0, 0].set(jnp.nan)
    paths = save_all(tmp_path, trees)
    weights, rules = [0.5, 0.0, 0.5], [("mask", "last")]
    wsm_jax.merge_checkpoints(paths, weights, tmp_path / "out", rules=rules, format=form, verify=True)


def test_verification_knows_that_xla_has_no_subnormal_numbers(tmp_path):
    paths = save_all(tmp_path, [{"a": np.full(3, value, np.float32)} for value in (1e-40, 2e-40)])
    wsm_jax.merge_checkpoints(paths, [0.5, 0.5], tmp_path / "out", verify=True)
