"""Merges from disk: against memory, bit for bit however cut; many from one pass; formats, dtypes, policies, records."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import wsm_jax
from tests.merging.trees import bits, flat, plain_chunks, save_all, tree
from wsm_jax import UsageError
from wsm_jax.checkpoints import orbax, storage, zarr
from wsm_jax.core.leaves import Leaf
from wsm_jax.io import hashes
from wsm_jax.merging import engine

CURVES = sorted(wsm_jax.DECAYS)


def test_disk_and_memory_agree_bit_for_bit(tmp_path):
    trees = [tree(i) for i in range(6)]
    paths = save_all(tmp_path, trees)
    for curve in CURVES:
        vector = wsm_jax.merge_weights(curve, 6)
        memory = wsm_jax.merge(trees, vector)
        wsm_jax.merge_checkpoints(paths, vector, tmp_path / curve, verify=True)
        assert bits(orbax.load_tree(tmp_path / curve)) == bits(memory)
        assert bits(wsm_jax.merge_checkpoints(paths, vector)) == bits(memory)


def test_inputs_that_are_read_one_after_the_other_keep_their_weights(tmp_path, monkeypatch):
    """As where many large ones do not fit into memory at once."""
    trees, weights = [tree(i) for i in range(4)], [0.1, 0.2, 0.3, 0.4]
    paths = save_all(tmp_path, trees)
    expected = sum(c * flat(each) for c, each in zip(weights, trees, strict=True))
    monkeypatch.setattr(engine, "STACK", 1)
    np.testing.assert_allclose(flat(wsm_jax.merge_checkpoints(paths, weights)), expected, rtol=0, atol=2e-6)
    for _, merged in wsm_jax.merge_many(paths, {"one": weights, "same": weights}):
        np.testing.assert_allclose(flat(merged), expected, rtol=0, atol=2e-6)


@pytest.mark.integration
@settings(max_examples=15, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 40), max_size=3), min_size=1, max_size=4),
    count=st.integers(1, 5),
    unit=st.sampled_from([64, 192, 1 << 16]),
    block=st.sampled_from([256, 1024]),
    memory=st.sampled_from([1 << 12, 1 << 14, 1 << 28]),
    dtype=st.sampled_from([np.float32, np.float16, jnp.bfloat16]),
)
def test_bits_do_not_depend_on_how_leaves_are_cut(tmp_path_factory, shapes, count, unit, block, memory, dtype):
    folder = tmp_path_factory.mktemp("cuts")
    random = np.random.default_rng(0)
    trees = [{f"l{i}": random.standard_normal(s).astype(dtype) for i, s in enumerate(shapes)} for _ in range(count)]
    for i, value in enumerate(trees):
        (folder / str(i)).mkdir()
        save_file(value, folder / str(i) / "model.safetensors")
    paths = [folder / str(i) for i in range(count)]
    weights = wsm_jax.merge_weights("cosine", count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashes, "UNIT", unit)
        patch.setattr(engine, "BLOCK", block)
        cut = wsm_jax.merge_checkpoints(paths, weights, memory=memory)
    assert bits(cut) == bits(wsm_jax.merge_checkpoints(paths, weights)) == bits(wsm_jax.merge(trees, weights))


@given(
    memory=st.integers(1 << 14, 1 << 28),
    merges=st.integers(1, 40),
    inputs=st.integers(1, 64),
    sizes=st.lists(st.integers(1, 1 << 22), min_size=1, max_size=3),
)
def test_no_block_holds_more_than_its_worker_may(memory, merges, inputs, sizes):
    """Memory depends on neither the number of inputs nor the size of a leaf: at the least it is that of one unit."""
    every = [
        engine.make_task(
            "w", Leaf((size,), np.dtype(np.float32)), range(inputs), range(merges), weights, memory, max(sizes)
        )
        for weights in [np.full((merges, inputs), 1 / inputs, np.float32)]
        for size in sizes
    ]
    assert max(task.bytes_held for task in every) <= max(
        memory, hashes.UNIT // engine.PARTS * (4 + 8 * merges), hashes.UNIT * 12
    )
    assert len({task.elements for task in every}) == 1  # one compiled sum
    for task in every:
        blocks = list(task.blocks([(0, task.leaf.size)]))
        assert sum(stop - start for start, stop in blocks) == task.leaf.size
        assert max(stop - start for start, stop in blocks) <= task.elements


def test_many_at_once_agree_with_one_to_rounding(tmp_path):
    """Within (inputs + 3) float32 units of the sum of the terms' sizes, the bound of a dot product of that length."""
    trees = [tree(i) for i in range(8)]
    paths = save_all(tmp_path, trees)
    weights = {
        f"{curve} {n}": np.concatenate([np.zeros(8 - n), wsm_jax.merge_weights(curve, n)])
        for curve in CURVES
        for n in (2, 5, 8)
    }
    seen = []
    for name, merged in wsm_jax.merge_many(paths, weights):
        seen.append(name)
        exact = sum(c * flat(t) for c, t in zip(weights[name], trees, strict=True))
        size = sum(c * np.abs(flat(t)) for c, t in zip(weights[name], trees, strict=True))
        assert (np.abs(flat(merged) - exact) <= 11 * 2.0**-24 * size).all()
    assert seen == list(weights)


def test_results_that_do_not_fit_take_more_passes_and_are_the_same(tmp_path):
    paths = save_all(tmp_path, [tree(i) for i in range(3)])
    weights = {str(i): np.eye(3)[i] for i in range(3)}
    one = {name: bits(t) for name, t in wsm_jax.merge_many(paths, weights)}
    assert {name: bits(t) for name, t in wsm_jax.merge_many(paths, weights, room=1)} == one
    assert one == {str(i): bits(tree(i)) for i in range(3)}


def test_each_input_is_read_once(tmp_path, monkeypatch):
    paths = save_all(tmp_path, [tree(i) for i in range(3)])
    read = []
    original = zarr.Source.read

    def counted(self, path, start, out):
        read.append((self.path.name, path, start, out.size))
        original(self, path, start, out)

    monkeypatch.setattr(zarr.Source, "read", counted)
    dict(wsm_jax.merge_many(paths, {c: wsm_jax.merge_weights(c, 3) for c in CURVES}))
    elements = flat(tree(0)).size
    assert len(set(read)) == len(read)
    assert sum(size for *_, size in read) == 3 * elements


def test_zero_weights_leave_checkpoints_out_unread(tmp_path):
    trees = [tree(i) for i in range(5)]
    paths = save_all(tmp_path, trees)
    for file in (paths[0] / "params" / "embedding").rglob("0"):
        if file.is_file():
            file.unlink()
    inner = wsm_jax.merge_weights("cosine", 3)
    assert bits(wsm_jax.merge_checkpoints(paths, [0.0, *inner, 0.0])) == bits(wsm_jax.merge(trees[1:4], inner))


def test_weights_for_each_leaf(tmp_path):
    trees = [tree(i) for i in range(2)]
    weights = {"embedding": [1.0, 0.0], "blocks/norm": [0.0, 1.0], "blocks/kernel": [0.25, 0.75]}
    assert bits(wsm_jax.merge_checkpoints(save_all(tmp_path, trees), weights)) == bits(wsm_jax.merge(trees, weights))


def test_the_record_names_inputs_and_what_was_read(tmp_path):
    paths = save_all(tmp_path, [tree(0), tree(1)])
    record = wsm_jax.merge_checkpoints(paths, [0.5, 0.5], tmp_path / "out", metadata={"curve": "linear"})
    assert orbax.user_metadata(tmp_path / "out") == record
    assert record["curve"] == "linear"
    assert [(i["path"], i["step"], i["index"]) for i in record["inputs"]] == [
        (str(p), n, n) for n, p in enumerate(paths)
    ]
    assert record["weights"] == [0.5, 0.5]
    again = wsm_jax.merge_checkpoints(paths[::-1], [0.9, 0.1], tmp_path / "other")
    assert [i["xxh3"] for i in again["inputs"]] == [i["xxh3"] for i in record["inputs"]][::-1]
    changed = tree(1)
    changed["embedding"] = changed["embedding"].at[6, 4].add(1e-6)
    orbax.save_tree(tmp_path / "changed", changed)
    third = wsm_jax.merge_checkpoints([paths[0], tmp_path / "changed"], [0.5, 0.5], tmp_path / "third")
    assert third["inputs"][0]["xxh3"] == record["inputs"][0]["xxh3"]
    assert third["inputs"][1]["xxh3"] != record["inputs"][1]["xxh3"]


def test_the_record_has_the_inputs_that_have_a_weight_with_it(tmp_path):
    paths = save_all(tmp_path, [tree(i) for i in range(4)])
    record = wsm_jax.merge_checkpoints(paths, [0.0, 0.25, 0.0, 0.75], tmp_path / "out")
    assert [(entry["path"], entry["weight"]) for entry in record["inputs"]] == [
        (str(paths[1]), 0.25),
        (str(paths[3]), 0.75),
    ]
    assert record["weights"] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metadata": {"weights": np.ones(2)}}, "the metadata of a merge must be what JSON can hold"),
        ({"shardings": "x"}, "shardings go with a merge in memory"),
        ({"output": None, "verify": True}, "metadata, verify, format and output_item go with an output"),
        ({"dtype": "float8"}, "dtype='float8': choose same, float32"),
        ({"dtype": jnp.float64}, "choose same, float32"),
    ],
)
def test_options_that_do_not_fit_are_refused_first(tmp_path, options, message):
    paths = save_all(tmp_path, [tree(i) for i in range(2)])
    with pytest.raises(UsageError, match=message):
        wsm_jax.merge_checkpoints(paths, [0.5, 0.5], **{"output": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtypes_in_and_out(tmp_path, stored, dtype):
    trees = [tree(i, stored) for i in range(3)]
    paths = save_all(tmp_path, trees)
    weights = wsm_jax.merge_weights("minus_sqrt", 3)
    wsm_jax.merge_checkpoints(paths, weights, tmp_path / "out", dtype=dtype, verify=True)
    merged = orbax.load_tree(tmp_path / "out")
    assert bits(merged) == bits(wsm_jax.merge(trees, weights, dtype=jnp.dtype(dtype)))
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(dtype)}


def test_policies_from_disk(tmp_path):
    trees = [{"w": jnp.full(3, float(i)), "n": jnp.asarray(i), "opt": {"mu": jnp.ones(2) * i}} for i in range(3)]
    paths = save_all(tmp_path, trees, name="state")
    merged = wsm_jax.merge_checkpoints(paths, [0.2, 0.3, 0.5], rules=[("^opt/", "skip"), ("^n$", "first")])
    assert merged["opt"] == {"mu": None}
    assert (int(merged["n"]), merged["w"].tolist()) == (0, [pytest.approx(1.3)] * 3)
    wsm_jax.merge_checkpoints(paths, [0.2, 0.3, 0.5], tmp_path / "out", rules=[("^opt/", "skip")])
    out = orbax.load_tree(tmp_path / "out")
    assert int(out["n"]) == 2
    assert out["opt"]["mu"] is None


def test_a_skipped_leaf_may_be_missing_somewhere(tmp_path):
    paths = save_all(tmp_path, [{"w": jnp.ones(3), "ema": jnp.ones(2)}, {"w": jnp.ones(3)}])
    with pytest.raises(UsageError, match="1 has no leaf ema"):
        wsm_jax.merge_checkpoints(paths, [0.5, 0.5])
    assert wsm_jax.merge_checkpoints(paths[::-1], [0.5, 0.5], rules=[("ema", "skip")])["w"].tolist() == [1.0] * 3


def test_from_orbax_to_safetensors_and_back(tmp_path):
    trees = [tree(i) for i in range(3)]
    paths = save_all(tmp_path, trees)
    expected = wsm_jax.merge(trees, [0.2, 0.3, 0.5])
    wsm_jax.merge_checkpoints(paths, [0.2, 0.3, 0.5], tmp_path / "st", format="safetensors", verify=True)
    stored = load_file(tmp_path / "st" / "model.safetensors")
    assert sorted(stored) == ["blocks.kernel", "blocks.norm", "embedding"]
    np.testing.assert_array_equal(stored["blocks.norm"], expected["blocks"]["norm"])
    wsm_jax.merge_checkpoints([tmp_path / "st"], [1.0], tmp_path / "back", format="orbax", verify=True)
    assert bits(orbax.load_tree(tmp_path / "back")) == bits(expected)


def test_the_output_is_an_ordinary_orbax_checkpoint(tmp_path):
    """Read with Orbax alone, by both of its interfaces, and on as many devices as one likes."""
    trees = [{**tree(i), "n": jnp.asarray(i), "half": jnp.ones(4, jnp.bfloat16) * i} for i in range(2)]
    wsm_jax.merge_checkpoints(save_all(tmp_path, trees), [0.5, 0.5], tmp_path / "out")
    expected = wsm_jax.merge(trees, [0.5, 0.5])
    assert bits(ocp.PyTreeCheckpointer().restore(tmp_path / "out" / "params")) == bits(expected)
    from orbax.checkpoint import v1

    assert bits(v1.load(tmp_path / "out", checkpointable_name="params")) == bits(expected)


@pytest.mark.parametrize("ours", [True, False])
def test_chunks_along_other_axes_and_large_leaves(tmp_path, monkeypatch, ours):
    """Chunks of a few rows, read through raw files and, where another writer cut a later axis, through TensorStore."""
    monkeypatch.setattr(orbax, "CHUNK_BYTES", 400)
    if not ours:
        monkeypatch.setattr(orbax, "_storage_options", plain_chunks)
    random = np.random.default_rng(0)
    shapes = {"tall": (60, 5), "wide": (5, 60), "scanned": (6, 10, 9), "scalar": (), "prime": (101, 7)}
    shapes |= {"large layers": (2, 30, 10), "one": (1, 100)}
    trees = [{k: jnp.asarray(random.standard_normal(s), jnp.float32) for k, s in shapes.items()} for _ in range(3)]
    paths = save_all(tmp_path, trees)
    source = storage.open_source(paths[0])
    assert source.leaves["tall"].quantum == 1
    assert source.leaves["wide"].quantum == (1 if ours else 300)
    assert not ours or source.leaves["scanned"].quantum == source.leaves["large layers"].quantum == 1
    weights = wsm_jax.merge_weights("linear", 3)
    wsm_jax.merge_checkpoints(paths, weights, tmp_path / "out", verify=True, memory=4096)
    assert bits(orbax.load_tree(tmp_path / "out")) == bits(wsm_jax.merge(trees, weights))
    assert len(list((tmp_path / "out" / "params" / "tall" / "c").iterdir())) == 3


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 200_000),
    st.integers(1, 3000),
    st.sampled_from([1, 7, 300, 4096, 1 << 16, 70_000]),
    st.integers(1, 9),
)
def test_blocks_cover_every_element_once_in_whole_chunks(start, size, quantum, inputs):
    """Of a range, too, which grows to whole chunks and units."""
    size = min(start + 64 * size, 300_000)
    leaf = Leaf((size,), np.dtype(np.float32), min(quantum, size))
    task = engine.make_task("w", leaf, range(inputs), [0], np.ones((1, inputs), np.float32), 1 << 20, 300_000)
    for first, last in ((0, size), (min(start, size - 1), size)):
        covered = np.zeros(size, int)
        for low, high in task.blocks([(first, last)]):
            covered[low:high] += 1
            assert low % leaf.quantum == 0 and high - low <= task.elements
            assert high % leaf.quantum == 0 or high == size
        assert covered.max() == 1 and covered[first:last].min() == 1
