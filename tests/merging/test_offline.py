"""The weighted sum: against numpy, in memory, from disk, in one pass; what it refuses; what a failure leaves behind."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsm_jax
from wsm_jax import UsageError, checkpoints
from wsm_jax.merging import offline


def tree(seed: int, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "embedding": jax.random.normal(keys[0], (7, 5)).astype(dtype),
        "blocks": {
            "norm": jax.random.normal(keys[1], (3, 5)).astype(dtype),
            "kernel": jax.random.normal(keys[2], (3, 5, 4)).astype(dtype),
        },
    }


def flat(value):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(value)])


def save_all(folder, trees, name="params"):
    paths = [folder / str(i) for i in range(len(trees))]
    for path, value in zip(paths, trees, strict=True):
        checkpoints.save_tree(path, value, {"index": int(path.name)}, item=name)
    return paths


@given(st.integers(1, 12), st.sampled_from(sorted(wsm_jax.DECAYS)))
def test_equals_the_float64_sum(count, curve):
    trees = [tree(i) for i in range(count)]
    weights = wsm_jax.merge_weights(curve, count)
    expected = sum(c * flat(t) for c, t in zip(weights, trees, strict=True))
    np.testing.assert_allclose(flat(wsm_jax.merge(trees, weights)), expected, rtol=0, atol=2e-6)


def test_a_single_checkpoint_comes_back_bit_for_bit():
    value = {"a": jnp.asarray([-0.0, 0.0, 1e-40, 3.0])}
    merged = wsm_jax.merge([value], [1.0])
    assert np.asarray(merged["a"])[[0, 1, 3]].tobytes() == np.asarray(value["a"])[[0, 1, 3]].tobytes()


def test_bfloat16_inputs_are_summed_in_float32():
    trees = [{"a": jnp.full((4,), 1.0 + i * 2**-7, jnp.bfloat16)} for i in range(64)]
    exact = np.mean([np.asarray(t["a"], np.float64) for t in trees], axis=0)
    merged = wsm_jax.merge(trees, wsm_jax.merge_weights("linear", 64), dtype=jnp.float32)
    np.testing.assert_allclose(merged["a"], exact, rtol=1e-6)
    assert wsm_jax.merge(trees, wsm_jax.merge_weights("linear", 64))["a"].dtype == jnp.bfloat16


def test_one_weight_vector_for_each_path():
    trees = [tree(0), tree(1)]
    weights = {"embedding": [1.0, 0.0], "blocks/norm": [0.0, 1.0], "blocks/kernel": [0.5, 0.5]}
    merged = wsm_jax.merge(trees, weights)
    np.testing.assert_array_equal(merged["embedding"], trees[0]["embedding"])
    np.testing.assert_array_equal(merged["blocks"]["norm"], trees[1]["blocks"]["norm"])
    np.testing.assert_allclose(
        merged["blocks"]["kernel"], (trees[0]["blocks"]["kernel"] + trees[1]["blocks"]["kernel"]) / 2, rtol=1e-6
    )


def test_the_sum_is_jitted_once_for_all_weights(tmp_path):
    trees = [tree(i) for i in range(4)]
    wsm_jax.merge(trees, [0.25] * 4)
    before = offline._add_jit._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    wsm_jax.merge(trees, [0.1, 0.2, 0.3, 0.4])
    wsm_jax.merge([*trees, tree(9)], [0.2] * 5)
    assert offline._add_jit._cache_size() == before  # pyright: ignore[reportAttributeAccessIssue]


def test_inputs_are_left_alone():
    trees = [tree(0), tree(1)]
    before = [flat(t) for t in trees]
    wsm_jax.merge(trees, [0.5, 0.5])
    for value, kept in zip(trees, before, strict=True):
        np.testing.assert_array_equal(flat(value), kept)


def test_disk_memory_and_one_pass_agree_bit_for_bit(tmp_path):
    trees = [tree(i) for i in range(6)]
    paths = save_all(tmp_path, trees)
    weights = {curve: wsm_jax.merge_weights(curve, 6) for curve in wsm_jax.DECAYS}
    many = wsm_jax.merge_many(paths, weights)
    for curve, vector in weights.items():
        memory = wsm_jax.merge(trees, vector)
        np.testing.assert_array_equal(flat(many[curve]), flat(memory))
        np.testing.assert_array_equal(flat(wsm_jax.merge_checkpoints(paths, vector)), flat(memory))


def test_zero_weights_leave_checkpoints_out(tmp_path):
    trees = [tree(i) for i in range(5)]
    paths = save_all(tmp_path, trees)
    inner = wsm_jax.merge_weights("cosine", 3)
    merged = wsm_jax.merge_many(paths, {"w": [0.0, *inner, 0.0]})["w"]
    np.testing.assert_array_equal(flat(merged), flat(wsm_jax.merge(trees[1:4], inner)))


def test_output_holds_the_merge_and_its_record(tmp_path):
    paths = save_all(tmp_path, [tree(0), tree(1)])
    merged = wsm_jax.merge_checkpoints(paths, [0.5, 0.5], output=tmp_path / "out", metadata={"curve": "linear"})
    np.testing.assert_array_equal(flat(checkpoints.load_tree(tmp_path / "out")), flat(merged))
    assert checkpoints.user_metadata(tmp_path / "out") == {"curve": "linear"}


def test_an_existing_output_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="out exists"):
        wsm_jax.merge_checkpoints([tmp_path / "nowhere"], [1.0], output=tmp_path / "out")


def test_any_orbax_item_is_merged_without_a_model(tmp_path):
    trees = [{"w": jnp.full((3,), float(i))} for i in range(2)]
    paths = save_all(tmp_path, trees, name="weights")
    np.testing.assert_array_equal(wsm_jax.merge_checkpoints(paths, [0.5, 0.5])["w"], np.full(3, 0.5))


def test_integer_leaves_are_refused_unless_a_policy_says_otherwise():
    trees = [{"w": jnp.ones(2), "count": jnp.asarray(i, jnp.int32)} for i in range(3)]
    with pytest.raises(UsageError, match=r"leaf count is int32.*non_floating"):
        wsm_jax.merge(trees, [1 / 3] * 3)
    assert int(wsm_jax.merge(trees, [1 / 3] * 3, non_floating="last")["count"]) == 2
    assert int(wsm_jax.merge(trees, [1 / 3] * 3, non_floating="first")["count"]) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {**t, "more": jnp.ones(1)}, "tree 1 has a leaf more"),
        (lambda t: {"embedding": t["embedding"]}, "tree 1 has no leaf blocks/"),
        (lambda t: {**t, "embedding": jnp.ones((7, 6))}, r"leaf embedding is float32\[7, 6\]"),
        (lambda t: {**t, "embedding": t["embedding"].astype(jnp.bfloat16)}, "leaf embedding is bfloat16"),
    ],
)
def test_trees_that_differ_are_refused_by_name(change, words):
    with pytest.raises(UsageError, match=words):
        wsm_jax.merge([tree(0), change(tree(1))], [0.5, 0.5])


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0], "need 2 weights"),
        ([0.5, float("nan")], "weight 1 .* is nan"),
        ({"embedding": [1, 0]}, "no weights for leaf"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, words):
    with pytest.raises(UsageError, match=words):
        wsm_jax.merge([tree(0), tree(1)], weights)


def test_nothing_to_merge_is_an_error():
    with pytest.raises(UsageError, match="nothing to merge"):
        wsm_jax.merge([], [])
    with pytest.raises(UsageError, match="nothing to merge"):
        wsm_jax.merge_many([], {})


def test_a_nan_names_checkpoint_and_leaf(tmp_path):
    bad = tree(1)
    bad["blocks"]["norm"] = bad["blocks"]["norm"].at[0, 0].set(jnp.nan)
    paths = save_all(tmp_path, [tree(0), bad])
    with pytest.raises(UsageError, match=r"1: leaf blocks/norm holds a NaN"):
        wsm_jax.merge_checkpoints(paths, [0.5, 0.5], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damage_names_the_checkpoint(tmp_path):
    paths = save_all(tmp_path, [tree(0), tree(1)])
    for file in (paths[1] / "params").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(UsageError, match=str(paths[1])):
        wsm_jax.merge_checkpoints(paths, [0.5, 0.5], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_or_half_checkpoint_is_refused(tmp_path):
    paths = save_all(tmp_path, [tree(0)])
    (tmp_path / "1").mkdir()
    with pytest.raises(UsageError, match="1 is neither a complete Orbax checkpoint nor"):
        wsm_jax.merge_checkpoints([*paths, tmp_path / "1"], [0.5, 0.5])


def test_merging_on_eight_devices_keeps_every_shard_in_place():
    program = """
import jax, jax.numpy as jnp, numpy as np, wsm_jax
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
where = NamedSharding(mesh, P("data"))
trees = [{"w": jax.device_put(jnp.arange(64.0) * (i + 1), where)} for i in range(3)]
merged = wsm_jax.merge(trees, [0.2, 0.3, 0.5])
assert merged["w"].sharding.is_equivalent_to(where, 1), merged["w"].sharding
np.testing.assert_allclose(merged["w"], np.arange(64.0) * 2.3, rtol=1e-6)
"""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
