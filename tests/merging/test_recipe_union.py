"""Merges over one list of inputs: each input once, in order, with zero weight where a merge leaves it out."""

from pathlib import Path

import numpy as np

from wsm_jax.merging import spec
from wsm_jax.merging.recipe import of_steps


def test_spread_is_zero_elsewhere():
    assert spec.spread(np.asarray([1.0, 2.0]), np.asarray([3, 1]), 5).tolist() == [0, 2, 0, 1, 0]
    assert spec.spread(np.asarray([1.0, 2.0]), np.asarray([1, 1]), 2).tolist() == [0, 3]


def test_a_union_has_each_checkpoint_once_in_order():
    """Also of windows that interleave; a folder of two items comes twice, the parameters after the mean."""

    def at(*steps):
        return tuple(Path(f"run/{step}") for step in steps)

    a, b = (of_steps(at(*steps), ("params",) * 2, np.ones(2)) for steps in ((3, 27), (9, 30)))
    c = of_steps(at(9, 9), ("mean", "params"), {"w": np.asarray([0.25, 0.75])})
    inputs = spec.union([a, b, c])
    assert [one.step for one in inputs] == [3, 9, 9, 27, 30]
    assert [one.item for one in inputs] == ["params", "mean", "params", "params", "params"]
    assert spec.union([c, c]) == c.inputs
