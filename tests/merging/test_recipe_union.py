"""Merges over one list of inputs, each once and in order; what a window of means reads, without a run on disk."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wsm_jax import merge_weights
from wsm_jax.merging import recipe, selection, spec, weighting
from wsm_jax.merging.recipe import of_steps
from wsm_jax.merging.selection import MEAN, Window


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


OWN, STREAM = 3, Path("run/checkpoints/merge")
WINDOW = Window(tuple(STREAM / str(step) for step in (6, 12, 18)), (6, 12, 18), 6, MEAN)  # of two means each


def test_a_window_of_means_begins_an_interval_before_its_first():
    points = Window(WINDOW.paths, WINDOW.steps, WINDOW.interval)
    assert (WINDOW.start, points.start) == (0, 6)
    assert list(selection.saved_steps(WINDOW, OWN)) == [3, 6, 9, 12, 15, 18]
    assert selection.saved_steps(points, OWN) == (6, 12, 18)


@pytest.mark.parametrize("curve", ["minus_sqrt", "exponential"])
def test_the_means_inside_an_interval_share_its_weight(curve, monkeypatch):
    """The end point comes last, where it has a weight: ``exponential`` ends at 0.1."""
    checkpoint = SimpleNamespace(snapshot="both")
    run: Any = SimpleNamespace(
        merge_stream=STREAM,
        plan=SimpleNamespace(merge_interval=OWN),
        config=SimpleNamespace(checkpoint=checkpoint),
    )
    monkeypatch.setattr(recipe, "end_point", lambda run, step: STREAM / str(step))
    merge = recipe.window_recipe(weighting.parse(curve), run, WINDOW)
    expected = merge_weights(curve, 3, snapshot="mean")
    ends = int(expected[-1] > 0)
    assert merge.steps == (3, 6, 9, 12, 15, 18, *[18] * ends)
    assert merge.items == (*["mean"] * 6, *["params"] * ends)
    assert ends == (curve == "exponential")
    np.testing.assert_allclose(merge.weights, [*np.repeat(expected[:-1] / 2, 2), *expected[3:][:ends]], rtol=1e-15)
