"""Merge weights: the paper's Figure 2, Theorem 3.1 and its inverse, the weight-decay-aware form, errors."""

import itertools
import math

import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsm_jax import schedules
from wsm_jax.coefficients import (
    checkpoint_weights,
    curve_update_weights,
    decayed_checkpoint_weights,
    decayed_mean_weights,
    merge_weights,
    schedule_weights,
    update_weights,
)
from wsm_jax.decay import DECAYS
from wsm_jax.errors import UsageError

CURVES = sorted(DECAYS)
# WSM, Figure 2: weights of 10 checkpoints, oldest to newest, as printed.
FIGURE_2 = {
    "linear": ".100 .100 .100 .100 .100 .100 .100 .100 .100 .100",
    "cosine": ".024 .071 .111 .139 .155 .155 .139 .111 .071 .024",
    "minus_sqrt": ".316 .131 .101 .085 .075 .067 .062 .058 .054 .051",
    "ema": ".126 .033 .041 .052 .065 .082 .103 .130 .163 .206",
}
PAPER_LR, PAPER_DECAY, PAPER_INTERVAL = 4.78e-4, 0.1, 1490

# 1 >= w_1 >= ... >= w_k >= 0, with repeated values and both ends.
decreasing = st.lists(st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=30).map(
    lambda values: sorted(values, reverse=True)
)
# Non-negative weights that sum to 1.
convex = (
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30)
    .filter(lambda values: sum(values) > 1e-3)
    .map(lambda values: np.asarray(values) / math.fsum(values))
)


# --- Theorem 3.1 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", FIGURE_2)
def test_figure_2_to_its_printed_digits(curve):
    printed = " ".join(f"{c:.3f}".removeprefix("0") for c in merge_weights(curve, 10))
    assert printed == FIGURE_2[curve]


def test_the_papers_small_check():
    np.testing.assert_allclose(checkpoint_weights((0.9, 0.6)), (0.1, 0.3, 0.6), rtol=0, atol=1e-15)
    np.testing.assert_allclose(update_weights((0.1, 0.3, 0.6)), (0.9, 0.6), rtol=0, atol=1e-15)


@given(decreasing)
def test_update_weights_survive_the_round_trip(w):
    c = checkpoint_weights(w)
    assert c.dtype == np.float64
    assert len(c) == len(w) + 1
    assert c.min() >= 0
    assert c.sum() == pytest.approx(1.0, abs=1e-14)
    np.testing.assert_allclose(update_weights(c), w, rtol=0, atol=1e-14)


@given(convex)
def test_checkpoint_weights_survive_the_round_trip(c):
    w = update_weights(c)
    assert len(w) == len(c) - 1
    if len(w):
        np.testing.assert_allclose(checkpoint_weights(np.clip(w, 0.0, 1.0)), c, rtol=0, atol=1e-14)


@given(decreasing, st.randoms(use_true_random=False))
def test_merging_checkpoints_scales_the_updates(w, random):
    """sum_j c_j theta_j = theta_0 + sum_i w_i g_i on any path of checkpoints."""
    start, updates = random.uniform(-1, 1), [random.uniform(-1, 1) for _ in w]
    path = np.cumsum([start, *updates])
    wanted = start + math.fsum(a * b for a, b in zip(w, updates, strict=True))
    assert float(checkpoint_weights(w) @ path) == pytest.approx(wanted, abs=1e-13)


def test_a_single_checkpoint_has_no_update_weights():
    assert update_weights([1.0]).shape == (0,)


# --- curves as merge weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshot", ["point", "mean"])
@pytest.mark.parametrize("curve", CURVES)
def test_every_curve_gives_a_convex_combination_at_every_count(curve, snapshot):
    for count in range(1, 201):
        c = merge_weights(curve, count, snapshot=snapshot)
        assert c.dtype == np.float64
        assert len(c) == count + (snapshot == "mean")
        assert c.min() >= 0, count
        assert c.sum() == pytest.approx(1.0, abs=1e-14), count


@pytest.mark.parametrize("curve", CURVES)
def test_one_checkpoint_gets_all_the_weight(curve):
    assert merge_weights(curve, 1).tolist() == [1.0]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 100, 1000])
def test_linear_is_the_plain_mean(count):
    np.testing.assert_allclose(merge_weights("linear", count), 1 / count, rtol=0, atol=1e-15)


@pytest.mark.parametrize("count", [2, 4, 10, 33, 200])
def test_minus_sqrt_puts_the_largest_weight_on_the_oldest(count):
    c = merge_weights("minus_sqrt", count)
    assert c[0] == pytest.approx(math.sqrt(1 / count), rel=1e-14)
    assert np.all(np.diff(c) < 0)


@pytest.mark.parametrize("count", [2, 3, 10, 50])
def test_ema_is_the_recursive_average(count):
    """m_j = a theta_j + (1 - a) m_{j-1} with m_0 = theta_0 and a = 1 - 0.1^(1/n), unrolled by running it."""
    a = 1 - 0.1 ** (1 / count)
    average = np.eye(count)[0]  # theta_j is the j-th unit vector, so the average is its own weights
    for theta in np.eye(count)[1:]:
        average = a * theta + (1 - a) * average
    np.testing.assert_allclose(merge_weights("ema", count), average, rtol=0, atol=1e-15)
    assert np.all(np.diff(average[1:]) > 0)  # heavier and heavier towards the newest


@pytest.mark.parametrize("count", [2, 10, 40])
def test_curves_that_do_not_reach_zero_leave_the_newest_checkpoint_a_large_weight(count):
    for curve in ("exponential", "inverse_sqrt"):
        assert merge_weights(curve, count)[-1] > 0.1
        assert merge_weights(curve, count, snapshot="mean")[-1] == pytest.approx(0.1, abs=1e-15)


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_interval_means_weigh_the_differences_of_the_curve_and_the_end_point_its_end(count):
    for curve, f in DECAYS.items():
        a = [1.0] + [f(j / count) for j in range(1, count + 1)]
        wanted = [a[j] - a[j + 1] for j in range(count)] + [a[count]]
        np.testing.assert_allclose(
            merge_weights(curve, count, snapshot="mean"), wanted, rtol=0, atol=1e-15, err_msg=curve
        )


def test_linear_interval_means_are_uniform_and_leave_out_the_end_point():
    np.testing.assert_allclose(merge_weights("linear", 4, snapshot="mean"), [0.25] * 4 + [0.0], rtol=0, atol=1e-16)


def test_a_function_serves_as_curve():
    np.testing.assert_allclose(merge_weights(lambda t: 1 - t, 5), 0.2, rtol=0, atol=1e-15)


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
    with pytest.raises(UsageError, match="update_weights"):
        schedule_weights(lambda count: schedule(count, wobble=1e-4), list(range(0, 41, 4)), 1.0)


def test_one_saved_step_gets_all_the_weight():
    assert schedule_weights(optax.constant_schedule(1.0), [500], 1.0).tolist() == [1.0]


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "argument"), [(checkpoint_weights, "update_weights"), (update_weights, "checkpoint_weights")]
)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"non-empty vector, got shape \(0,\)"),
        ([[0.5, 0.5]], r"non-empty vector, got shape \(1, 2\)"),
        (0.5, r"non-empty vector, got shape \(\)"),
        ([0.5, math.nan, 0.2], r"\[1\] is nan"),
        ([math.inf, 0.2], r"\[0\] is inf"),
        ([0.5, -0.25], r"\[1\] is -0\.25"),
    ],
)
def test_weights_that_are_no_weights(function, argument, values, message):
    with pytest.raises(UsageError, match=f"^{argument}.*{message}"):
        function(values)


def test_increasing_update_weights_name_the_pair():
    with pytest.raises(UsageError, match=r"\[2\] = 0\.6 follows \[1\] = 0\.5"):
        checkpoint_weights([0.9, 0.5, 0.6])


def test_update_weights_above_one():
    with pytest.raises(UsageError, match=r"\[0\] is 1\.5"):
        checkpoint_weights([1.5, 0.5])


def test_checkpoint_weights_must_sum_to_one():
    with pytest.raises(UsageError, match=r"sum to 0\.9\b"):
        update_weights([0.5, 0.4])


@pytest.mark.parametrize("count", [0, -3, 2.5, True, "4", None])
def test_a_count_that_is_no_count(count):
    with pytest.raises(UsageError, match=rf"count.*got {count!r}"):
        merge_weights("linear", count)


@pytest.mark.parametrize("arguments", [("sigmoid", 1), ("sigmoid", 8)])
def test_an_unknown_curve(arguments):
    for snapshot in ("point", "mean"):
        with pytest.raises(UsageError, match=r"'sigmoid'.*minus_sqrt"):
            merge_weights(*arguments, snapshot=snapshot)


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (lambda t: t, "must not increase"),
        (lambda t: 0.5 - t, r"is -0\.25"),
        (lambda t: 1.5 - t, r"is 1\.25"),
        (lambda t: math.nan, "is nan"),
    ],
)
def test_a_function_that_is_no_decay(curve, message):
    for make in (curve_update_weights, merge_weights):
        with pytest.raises(UsageError, match=message):
            make(curve, 4)


def test_an_unknown_snapshot():
    with pytest.raises(UsageError, match="'median'"):
        merge_weights("linear", 4, snapshot="median")


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
        ([1, 5], 0.5, r"is 2\.0"),
    ],
)
def test_schedule_weights_out_of_range(steps, peak, message):
    with pytest.raises(UsageError, match=message):
        schedule_weights(optax.constant_schedule(1.0), steps, peak)


def test_a_window_that_reaches_into_the_warm_up():
    with pytest.raises(UsageError, match="must not increase"):
        schedule_weights(schedules.constant(1.0, warmup_steps=100), [0, 50, 100, 150], 1.0)
