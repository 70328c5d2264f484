"""Merge weights that depend on rates: the weight-decay-aware form, weights from a schedule, their errors."""

import itertools
import math

import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_coefficients import CURVES, decreasing
from wsm_jax.core import schedules
from wsm_jax.core.coefficients import curve_update_weights, update_weights
from wsm_jax.core.merge_weights import merge_weights
from wsm_jax.core.schedules import schedule_weights
from wsm_jax.core.weight_decay import decayed_checkpoint_weights, decayed_mean_weights
from wsm_jax.errors import UsageError

PAPER_LR, PAPER_DECAY, PAPER_INTERVAL = 4.78e-4, 0.1, 1490


# --- the weight-decay-aware form -------------------------------------------------------------------------------------


def aware(curve, count, **changes):
    settings = {"learning_rate": PAPER_LR, "weight_decay": PAPER_DECAY, "steps_per_interval": PAPER_INTERVAL}
    return merge_weights(curve, count, **{**settings, **changes})


@given(
    w=decreasing,
    shrink=st.floats(-12, -0.01).map(lambda exponent: 10**exponent),
    steps=st.integers(1, 10_000),
)
def test_the_aware_form_is_a_convex_combination(w, shrink, steps):
    c = decayed_checkpoint_weights(w, learning_rate=shrink, weight_decay=1.0, steps_per_interval=steps)
    assert c.min() >= 0
    assert c.sum() == pytest.approx(1.0, abs=1e-13)


@given(
    intervals=st.lists(
        st.tuples(st.floats(0.0, 1.0), st.integers(1, 40), st.floats(-1.0, 1.0)), min_size=1, max_size=8
    ),
    start=st.floats(-1.0, 1.0),
)
def test_the_aware_form_is_exact_where_the_direction_is_constant_within_each_interval(intervals, start):
    """Step by step: theta <- (1 - lr wd) theta - lr u at the constant rate, and with lr scaled by w_i."""
    lr, wd = 0.05, 0.3
    w = sorted((w for w, _, _ in intervals), reverse=True)
    constant = decayed = start
    saved = [start]
    for w_i, (_, steps, u) in zip(w, intervals, strict=True):
        for _ in range(steps):
            constant = (1 - lr * wd) * constant - lr * u
            decayed = (1 - w_i * lr * wd) * decayed - w_i * lr * u
        saved.append(constant)
    c = decayed_checkpoint_weights(
        w, learning_rate=lr, weight_decay=wd, steps_per_interval=[steps for _, steps, _ in intervals]
    )
    assert float(c @ np.asarray(saved)) == pytest.approx(decayed, abs=1e-11)


@pytest.mark.parametrize("curve", CURVES)
def test_the_aware_form_tends_to_the_plain_map_as_the_decay_vanishes(curve):
    plain = merge_weights(curve, 12)
    assert np.abs(aware(curve, 12) - plain).max() > 1e-3
    for decay in (1e-6, 1e-9, 1e-14):
        gap = np.abs(aware(curve, 12, weight_decay=decay) - plain).max()
        assert gap < 10 * PAPER_LR * PAPER_INTERVAL * decay + 1e-14


def test_without_weight_decay_rate_and_interval_change_nothing():
    for curve in CURVES:
        assert np.array_equal(aware(curve, 9, weight_decay=0.0), merge_weights(curve, 9))


def test_one_interval_length_for_all_equals_the_same_length_for_each():
    w = curve_update_weights("cosine", 5)
    settings = {"learning_rate": 0.01, "weight_decay": 0.1}
    one = decayed_checkpoint_weights(w, steps_per_interval=70, **settings)
    assert np.array_equal(one, decayed_checkpoint_weights(w, steps_per_interval=[70] * 4, **settings))


@given(w=decreasing, shrink=st.floats(1e-12, 0.5), share=st.floats(0.0, 1.0))
def test_the_aware_form_of_means_is_a_convex_combination(w, shrink, share):
    """Up to intervals in which the weight decay takes 1/e of a weight."""
    steps = max(1, int(share / shrink)) if share / shrink < 1000 else 1000
    c = decayed_mean_weights(w, learning_rate=shrink, weight_decay=1.0, steps_per_interval=steps)
    assert c.shape == (len(w) + 1,)
    assert c.min() >= 0
    assert c.sum() == pytest.approx(1.0, abs=1e-13)


@pytest.mark.parametrize("curve", CURVES)
def test_the_aware_form_of_means_tends_to_the_plain_map_as_the_decay_vanishes(curve):
    plain = merge_weights(curve, 12, snapshot="mean")
    assert np.abs(aware(curve, 12, snapshot="mean") - plain).max() > 1e-3
    for decay in (1e-6, 1e-9):
        gap = np.abs(aware(curve, 12, snapshot="mean", weight_decay=decay) - plain).max()
        assert gap < 10 * PAPER_LR * PAPER_INTERVAL * decay + 1e-14
    assert np.array_equal(aware(curve, 12, snapshot="mean", weight_decay=0.0), plain)


def test_means_of_a_run_that_does_not_decay_are_left_out():
    np.testing.assert_allclose(aware(lambda t: 1.0, 5, snapshot="mean"), [0, 0, 0, 0, 0, 1], rtol=0, atol=1e-12)


def test_intervals_too_long_for_their_weight_decay():
    with pytest.raises(UsageError, match=r"intervals of 100 steps are too long for a decay of 0\.05 a step"):
        decayed_mean_weights([0.5, 0.0], learning_rate=0.5, weight_decay=0.1, steps_per_interval=100)


# --- weights from a schedule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [[100, 150, 200, 250, 300], [100, 101, 160, 300]])
def test_schedule_weights_average_the_updates_of_each_interval(steps):
    """A checkpoint at step s holds s updates, counted 0 .. s-1; the decay runs over updates 100 .. 299."""
    schedule = schedules.wsd(2e-3, "linear", total_steps=300, decay_steps=200)
    # The mean of 1 - (count - 100) / 200 over a .. b-1 is its value at the middle, (a + b - 1) / 2.
    w = [1 - ((a + b - 1) / 2 - 100) / 200 for a, b in itertools.pairwise(steps)]
    np.testing.assert_allclose(update_weights(schedule_weights(schedule, steps, 2e-3)), w, rtol=0, atol=1e-6)


def test_a_constant_schedule_keeps_the_newest_checkpoint_alone():
    c = schedule_weights(optax.constant_schedule(3e-4), [10, 20, 30], 3e-4)
    assert c.tolist() == [0.0, 0.0, 1.0]


def test_a_schedule_that_is_zero_from_the_start_keeps_the_oldest_alone():
    c = schedule_weights(optax.constant_schedule(0.0), [10, 20, 30], 3e-4)
    assert c.tolist() == [1.0, 0.0, 0.0]


def test_rounding_of_a_float32_schedule_is_not_an_increase_but_a_real_rise_is():
    """At the peak and on a plateau at half of it, rates one rounding up and down."""

    def schedule(count, wobble=6e-8):
        return np.where(count < 20, 1.0, 0.5) * (1 + wobble * np.sin(count))

    c = schedule_weights(schedule, list(range(0, 41, 4)), 1.0)
    assert c.min() >= 0
    np.testing.assert_allclose(c, [0, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0.5], rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match="on average"):
        schedule_weights(lambda count: schedule(count, wobble=1e-4), list(range(0, 41, 4)), 1.0)


def test_one_saved_step_gets_all_the_weight():
    assert schedule_weights(optax.constant_schedule(1.0), [500], 1.0).tolist() == [1.0]


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["learning_rate", "steps_per_interval"])
def test_weight_decay_needs_rate_and_interval(missing):
    with pytest.raises(UsageError, match=missing):
        aware("linear", 4, **{missing: None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 20.0}, r"is 2\.0"),
        ({"learning_rate": 0.0}, r"is 0\.0"),
        ({"learning_rate": math.nan}, "is nan"),
        ({"weight_decay": -0.1}, r"is -4\.78e-05"),
        ({"steps_per_interval": 0}, "steps_per_interval.*0"),
        ({"steps_per_interval": math.nan}, "steps_per_interval.*nan"),
        ({"steps_per_interval": [5, 5]}, r"2 values for 3 intervals|one number of at least 1, got \[5, 5\]"),
    ],
)
@pytest.mark.parametrize("snapshot", ["point", "mean"])
def test_settings_of_the_aware_form_out_of_range(snapshot, changes, message):
    with pytest.raises(UsageError, match=message):
        aware("linear", 4, snapshot=snapshot, **changes)


@pytest.mark.parametrize("form", [decayed_checkpoint_weights, decayed_mean_weights])
def test_the_aware_form_refuses_what_the_plain_map_refuses(form):
    with pytest.raises(UsageError, match="must not increase"):
        form([0.2, 0.4], learning_rate=0.1, weight_decay=0.1, steps_per_interval=5)


@pytest.mark.parametrize(
    ("steps", "peak", "message"),
    [
        ([], 1.0, "steps"),
        ([5, 5], 1.0, r"\[5, 5\]"),
        ([9, 5], 1.0, r"\[9, 5\]"),
        ([1, 5], 0.0, "peak.*0"),
        ([1, 5], math.nan, "peak.*nan"),
        ([1, 5], 0.5, r"from update 1 to 5 the schedule is 1 on average, but .* at peak=0\.5"),
    ],
)
def test_schedule_weights_out_of_range(steps, peak, message):
    with pytest.raises(UsageError, match=message):
        schedule_weights(optax.constant_schedule(1.0), steps, peak)


def test_a_window_that_reaches_into_the_warm_up():
    with pytest.raises(UsageError, match="must not increase"):
        schedule_weights(schedules.constant(1.0, warmup_steps=100), [0, 50, 100, 150], 1.0)
