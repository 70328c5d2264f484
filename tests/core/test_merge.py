"""The weighted sum in memory: against numpy, leaf by leaf, sharded, and what it refuses."""

import os
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wsm_jax
from tests.merging.trees import bits, flat, tree
from wsm_jax import UsageError
from wsm_jax.core import merge as merge_lib


@settings(max_examples=40)
@given(st.integers(1, 12), st.sampled_from(sorted(wsm_jax.DECAYS)))
def test_equals_the_float64_sum(count, curve):
    trees = [tree(i) for i in range(count)]
    weights = wsm_jax.merge_weights(curve, count)
    expected = sum(c * flat(t) for c, t in zip(weights, trees, strict=True))
    np.testing.assert_allclose(flat(wsm_jax.merge(trees, weights)), expected, rtol=0, atol=2e-6)


def test_a_single_checkpoint_comes_back_bit_for_bit_but_for_subnormal_numbers():
    value = {"a": jnp.asarray([-0.0, 0.0, 1.2e-38, 3.0])}
    assert bits(wsm_jax.merge([value], [1.0])) == bits(value)
    assert abs(float(wsm_jax.merge([{"a": jnp.asarray([1e-40])}], [1.0])["a"][0])) <= 1e-40  # XLA's CPU makes it zero


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


def test_weights_of_zero_leave_trees_out_even_the_first_and_not_all():
    trees = [tree(i) for i in range(4)]
    merged = wsm_jax.merge(trees, [0.0, 0.5, 0.5, 0.0])
    np.testing.assert_array_equal(flat(merged), flat(wsm_jax.merge(trees[1:3], [0.5, 0.5])))
    with pytest.raises(UsageError, match="the weights for blocks/kernel are all zero"):
        wsm_jax.merge(trees, [0.0] * 4)
    with pytest.raises(UsageError, match="the weights for embedding are all zero"):
        wsm_jax.merge(trees, [("embedding", [0.0] * 4), ("", [0.25] * 4)])


def test_weights_by_rule_are_those_of_the_first_that_matches():
    """Negative ones too; the mapping that says the same, leaf by leaf, gives the same bits."""
    trees = [tree(i) for i in range(3)]
    past, newest, mean = [-0.25, 0.5, 0.75], [0.0, 0.0, 1.0], [1 / 3] * 3
    merged = wsm_jax.merge(trees, [("norm$", newest), ("^blocks/", past), ("", mean)])
    assert bits(merged["blocks"]["norm"]) == bits(trees[2]["blocks"]["norm"])
    by_path = {"blocks/norm": newest, "blocks/kernel": past, "embedding": mean}
    assert bits(merged) == bits(wsm_jax.merge(trees, by_path))
    kernel = sum(c * np.asarray(t["blocks"]["kernel"], np.float64) for c, t in zip(past, trees, strict=True))
    np.testing.assert_allclose(merged["blocks"]["kernel"], kernel, atol=1e-6)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("^blocks/", [1.0, 0.0])], "no weights for leaf embedding"),
        ([("nowhere", [1.0, 0.0]), ("", [1.0, 0.0])], "weights for 'nowhere': no averaged leaf matches; they are"),
        ([("(", [1.0, 0.0])], "no regular expression"),
        ([("", [1.0])], "2 checkpoints need 2 weights"),
    ],
)
def test_weights_by_rule_that_do_not_fit(rules, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        wsm_jax.merge([tree(0), tree(1)], rules)


def test_the_sum_is_jitted_once_for_all_weights():
    trees = [tree(i) for i in range(4)]
    wsm_jax.merge(trees, [0.25] * 4)
    before = merge_lib._add_jit._cache_size()
    wsm_jax.merge(trees, [0.1, 0.2, 0.3, 0.4])
    wsm_jax.merge([*trees, tree(9)], [0.2] * 5)
    assert merge_lib._add_jit._cache_size() == before


def test_inputs_are_left_alone():
    trees = [tree(0), tree(1)]
    before = [flat(t) for t in trees]
    wsm_jax.merge(trees, [0.5, 0.5])
    for value, kept in zip(trees, before, strict=True):
        np.testing.assert_array_equal(flat(value), kept)


def test_a_train_state_in_memory_is_merged_whole_and_its_python_numbers_are_the_newest():
    trees = [
        {"params": {"w": jnp.full(2, i)}, "opt_state": {"mu": jnp.full(2, 4.0 * i)}, "lr": 0.1 * i} for i in (1, 2)
    ]
    trees = [{**t, "params": {"w": t["params"]["w"].astype(jnp.float32)}} for t in trees]
    merged = wsm_jax.merge(trees, [0.5, 0.5])
    assert float(merged["params"]["w"][0]) == 1.5 and float(merged["opt_state"]["mu"][0]) == 6.0
    assert merged["lr"] == 0.2
    assert float(wsm_jax.merge(trees, [0.5, 0.5], rules=[("lr", "average")])["lr"]) == pytest.approx(0.15)


def test_floating_trees_of_several_dtypes_need_a_dtype():
    trees = [{"w": jnp.ones(2, jnp.bfloat16)}, {"w": jnp.full(2, 2.0)}]
    with pytest.raises(
        UsageError, match=r"tree 1: leaf w is float32\[2\], in tree 0 it is bfloat16\[2\]; --dtype=float32"
    ):
        wsm_jax.merge(trees, [0.5, 0.5])
    merged = wsm_jax.merge(trees, [0.5, 0.5], dtype=jnp.float32)["w"]
    assert merged.dtype == jnp.float32 and merged.tolist() == [1.5, 1.5]
    with pytest.raises(UsageError, match="leaf w is float32"):  # the newest would have another dtype than the others
        wsm_jax.merge(trees, [0.5, 0.5], dtype=jnp.float32, rules=[("w", "last")])


def test_integers_that_stand_for_other_numbers_have_no_average():
    trees = [{"q": {"kernel": jnp.ones(2, jnp.int8), "scale": jnp.ones(1)}, "norm": {"scale": jnp.ones(2)}}] * 2
    with pytest.raises(UsageError, match="leaf q/kernel is int8 beside q/scale: quantized"):
        wsm_jax.merge(trees, [0.5, 0.5])
    assert wsm_jax.merge(trees, [0.5, 0.5], rules=[("q/", "last")])["q"]["kernel"].dtype == jnp.int8
    counted = [{"norm": {"scale": jnp.ones(2), "count": jnp.asarray(3)}}] * 2
    assert int(wsm_jax.merge(counted, [0.5, 0.5])["norm"]["count"]) == 3


def test_policies_by_path():
    trees = [{"w": jnp.full(2, i), "bias": jnp.full(2, 10.0 * i), "count": jnp.asarray(i)} for i in range(3)]
    trees = [{**t, "w": t["w"].astype(jnp.float32)} for t in trees]
    merged = wsm_jax.merge(trees, [1 / 3] * 3)
    assert int(merged["count"]) == 2  # integers come from the last
    merged = wsm_jax.merge(trees, [1 / 3] * 3, rules=[("^count$", "first"), ("bias", "last")])
    assert (int(merged["count"]), float(merged["bias"][0]), float(merged["w"][0])) == (0, 20.0, 1.0)
    assert wsm_jax.merge(trees, [1 / 3] * 3, rules=[("bias", "skip")])["bias"] is None
    with pytest.raises(UsageError, match=r"leaf bias \(float32\) is not to be merged"):
        wsm_jax.merge(trees, [1 / 3] * 3, rules=[("bias", "error")])
    with pytest.raises(UsageError, match="leaf count is int32, which has no average"):
        wsm_jax.merge(trees, [1 / 3] * 3, rules=[("count", "average")])


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


def test_a_step_in_a_python_number_comes_from_the_newest():
    states = [{"w": jnp.ones(2) * i, "step": 10 * i} for i in range(3)]
    merged = wsm_jax.merge(states, [0.0, 0.5, 0.5], dtype="same")
    assert (merged["w"].tolist(), int(merged["step"])) == ([1.5, 1.5], 20)


def test_no_trees_is_an_error():
    with pytest.raises(UsageError, match="nothing to merge"):
        wsm_jax.merge([], [])


@pytest.mark.integration
def test_on_eight_devices_each_merges_its_own_shards():
    program = """
import jax, jax.numpy as jnp, numpy as np, wsm_jax
from jax.sharding import NamedSharding, PartitionSpec as P
from wsm_jax.core import merge as trees_lib
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
where = NamedSharding(mesh, P("data"))
trees = [{"w": jax.device_put(jnp.arange(64.0) * (i + 1), where)} for i in range(3)]
merged = wsm_jax.merge(trees, [0.2, 0.3, 0.5])
assert merged["w"].sharding.is_equivalent_to(where, 1), merged["w"].sharding
np.testing.assert_allclose(merged["w"], np.arange(64.0) * 2.3, rtol=1e-6)
text = trees_lib._add_jit.lower(trees[0], trees[1], {"w": np.float32(1)}).compile().as_text()
assert not any(word in text for word in ("all-gather", "all-reduce", "collective", "all-to-all")), text
"""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
