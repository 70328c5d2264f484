"""Recipes over one list of inputs: each input once, in order, with zero weight where a recipe leaves it out."""

from pathlib import Path

import numpy as np

from wsm_jax.merging import recipe
from wsm_jax.merging.recipe import Recipe, union


def test_spread_is_zero_elsewhere():
    assert recipe.spread(np.asarray([1.0, 2.0]), np.asarray([3, 1]), 5).tolist() == [0, 2, 0, 1, 0]
    wide = recipe.spread({"a": np.ones(1)}, np.asarray([2]), 3)
    assert {path: vector.tolist() for path, vector in wide.items()} == {"a": [0, 0, 1]}


def test_a_union_has_each_checkpoint_once_in_order():
    """Also of windows that interleave; a folder of two items comes twice, the parameters after the mean."""

    def at(*steps):
        return tuple(Path(f"run/{step}") for step in steps)

    a, b = (Recipe(at(*steps), ("params",) * 2, np.ones(2)) for steps in ((3, 27), (9, 30)))
    c = Recipe(at(9, 9), ("mean", "params"), {"w": np.asarray([0.25, 0.75])})
    paths, items, weights = union({"a": a, "b": b, "c": c})
    assert [int(path.name) for path in paths] == [3, 9, 9, 27, 30]
    assert items == ("params", "mean", "params", "params", "params")
    assert weights["b"].tolist() == [0, 0, 1, 0, 1]
    assert weights["c"]["w"].tolist() == [0, 0.25, 0.75, 0, 0]
