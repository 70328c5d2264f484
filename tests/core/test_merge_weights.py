"""Merge weights past the merge, in another order, and at the true steps of uneven checkpoints."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsm_jax.core.coefficients import tail_sums, update_weights
from wsm_jax.core.decay import DECAYS
from wsm_jax.core.merge_weights import merge_weights
from wsm_jax.errors import UsageError


@given(st.sampled_from(list(DECAYS)), st.integers(2, 40), st.floats(1, 5))
def test_an_extrapolated_merge_lies_on_the_line_from_the_oldest_through_the_merge(curve, count, factor):
    """Its update weights are ``factor`` times those of the merge; it sums to 1; a factor of 1 is the merge."""
    plain, farther = merge_weights(curve, count), merge_weights(curve, count, extrapolate=factor)
    theta = np.random.default_rng(count).normal(size=(count, 3))
    np.testing.assert_allclose(farther @ theta, theta[0] + factor * (plain @ theta - theta[0]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(tail_sums(farther), factor * update_weights(plain), rtol=0, atol=1e-12)
    assert farther.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(merge_weights(curve, count, extrapolate=1.0), plain, rtol=0, atol=0)


def test_extrapolation_of_a_mean_by_hand():
    np.testing.assert_allclose(merge_weights("linear", 4, extrapolate=2.0), [-0.5, 0.5, 0.5, 0.5], atol=1e-15)


def test_another_order_is_a_permutation():
    plain = merge_weights("minus_sqrt", 12)
    assert merge_weights("minus_sqrt", 12, order="reverse").tolist() == plain[::-1].tolist()
    first, again, other = (merge_weights("minus_sqrt", 12, order=f"scramble:{seed}") for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()
    assert sorted(first) == sorted(other) == sorted(plain)
    means = merge_weights("exponential", 5, snapshot="mean")
    assert merge_weights("exponential", 5, snapshot="mean", order="reverse").tolist() == [*means[4::-1], means[5]]
    both = merge_weights("linear", 4, extrapolate=2.0, order="reverse")  # the order comes last
    np.testing.assert_allclose(both, [0.5, 0.5, 0.5, -0.5], atol=1e-15)


@given(st.sampled_from(list(DECAYS)), st.integers(2, 40), st.integers(1, 1000), st.integers(0, 10**6))
def test_equal_spacing_given_as_steps_is_no_news(curve, count, interval, first):
    steps = [first + i * interval for i in range(count)]
    found = merge_weights(curve, count, steps=steps)
    np.testing.assert_allclose(found, merge_weights(curve, count), rtol=0, atol=1e-12)


def test_a_curve_at_its_true_steps():
    """Steps 0, 50, 500: a window of 3 intervals of 250, so the curve is taken at 1/15 and 2/3."""
    found = merge_weights("linear", 3, steps=[1000, 1050, 1500])
    np.testing.assert_allclose(update_weights(found), [1 - 1 / 15, 1 - 2 / 3], atol=1e-15)
    even = merge_weights("cosine", 4, steps_per_interval=50, learning_rate=1e-2, weight_decay=0.1)
    at = merge_weights("cosine", 4, steps=[50, 100, 150, 200], learning_rate=1e-2, weight_decay=0.1)
    np.testing.assert_allclose(at, even, atol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"extrapolate": 0.5}, "extrapolate=0.5 must be a finite number of at least 1"),
        ({"extrapolate": float("nan")}, "extrapolate=nan"),
        ({"order": "sorted"}, "order='sorted': choose reverse or scramble:SEED"),
        ({"order": "scramble:-1"}, "order='scramble:-1'"),
        ({"steps": [1, 2]}, "3 checkpoints need 3 increasing steps"),
        ({"steps": [1, 3, 3]}, "3 checkpoints need 3 increasing steps"),
        ({"steps": [1, 2, 3], "snapshot": "mean"}, "steps go with point checkpoints"),
    ],
)
def test_weights_that_there_are_not(arguments, message):
    with pytest.raises(UsageError, match=message):
        merge_weights("linear", 3, **arguments)
