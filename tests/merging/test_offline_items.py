"""Merges of items: several of a checkpoint, those of any layout, and back into the model that was saved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import wsm_jax
from tests.merging.trees import bits, flat, save_all, tree
from wsm_jax import UsageError
from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints.stream import Stream


class Stack(nnx.Module):
    """More layers in a list than have one digit, whose names sort otherwise than their numbers."""

    def __init__(self, seed):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(seed + i)) for i in range(11)])

    def __call__(self, x):
        return functools.reduce(lambda x, layer: layer(x), self.layers, x)


@pytest.mark.integration
def test_a_merge_goes_back_into_the_model_that_was_saved(tmp_path):
    models = [Stack(100 * i) for i in range(3)]
    states = [nnx.state(model, nnx.Param) for model in models]
    paths = [tmp_path / str(i) for i in range(3)]
    for path, state in zip(paths, states, strict=True):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, state)
    weights = [0.2, 0.3, 0.5]
    wsm_jax.merge_checkpoints(paths, weights, tmp_path / "out")
    expected = jax.tree.map(lambda *x: sum(w * v for w, v in zip(weights, x, strict=True)), *states)
    for found in (
        wsm_jax.load_tree(tmp_path / "out", abstract=states[0]),
        ocp.StandardCheckpointer().restore(tmp_path / "out" / "params", states[0]),
    ):
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-6)
        nnx.update(models[0], found)
        assert models[0](jnp.ones(2)).shape == (2,)


def test_each_input_has_its_own_item(tmp_path):
    """Of one folder two, of another the only one: the sum is that of the trees, and each is read and recorded."""
    ema, params, other = (tree(i) for i in range(3))
    with Stream(tmp_path / "stream", mergeable=True) as stream:
        stream.save(7, {"ema": ema, "params": params, "opt_state": {"count": jnp.zeros(3)}})
    (alone,) = save_all(tmp_path, [other], name="weights")
    paths = [tmp_path / "stream" / "7", tmp_path / "stream" / "7", alone]
    weights, items = [0.2, 0.3, 0.5], ("ema", "params", None)
    record = wsm_jax.merge_checkpoints(paths, weights, tmp_path / "out", item=items, verify=True)
    assert bits(orbax.load_tree(tmp_path / "out")) == bits(wsm_jax.merge([ema, params, other], weights))
    assert [entry["item"] for entry in record["inputs"]] == ["ema", "params", "weights"]
    assert len({entry["xxh3"] for entry in record["inputs"]}) == 3
    found = dict(wsm_jax.merge_many(paths, {"a": [0, 0, 1], "b": [1, 0, 0]}, item=list(items)))
    assert {name: bits(value) for name, value in found.items()} == {"a": bits(other), "b": bits(ema)}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (["params"], "2 checkpoints need one item for all or 2 of them, got 1"),
        ([], "got 0"),
        (["params", 3], "item 3 is no name; give a string, or None"),
        (["params", "ema"], "1 has no item 'ema'; it has params"),
        ("ema", "0 has no item 'ema'; it has params"),
    ],
)
def test_items_that_do_not_fit_the_inputs(tmp_path, item, message):
    paths = save_all(tmp_path, [tree(0), tree(1)])
    with pytest.raises(UsageError, match=message):
        wsm_jax.merge_checkpoints(paths, [0.5, 0.5], tmp_path / "out", item=item)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("compressed", [True, False])
def test_any_orbax_item_is_merged_without_a_model(tmp_path, compressed):
    trees = [{"w": jnp.full((3,), float(i)), "list": [jnp.ones((2, 3)) * i]} for i in range(2)]
    if compressed:  # as other codebases save
        paths = [tmp_path / "a", tmp_path / "b"]
        for path, value in zip(paths, trees, strict=True):
            ocp.PyTreeCheckpointer().save(path, value)
    else:
        paths = save_all(tmp_path, trees, name="weights")
    merged = wsm_jax.merge_checkpoints(paths, [0.25, 0.75])
    np.testing.assert_array_equal(merged["w"], np.full(3, 0.75))
    np.testing.assert_array_equal(merged["list"][0], np.full((2, 3), 0.75))
