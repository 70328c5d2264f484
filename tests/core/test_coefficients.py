"""Merge weights: the paper's Figure 2, Theorem 3.1 and its inverse, curves, averages over checkpoints, errors."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsm_jax.core.coefficients import (
    checkpoint_weights,
    curve_update_weights,
    ema_weights,
    update_weights,
    wma_weights,
)
from wsm_jax.core.decay import DECAYS
from wsm_jax.core.merge_weights import merge_weights
from wsm_jax.errors import UsageError

CURVES = sorted(DECAYS)
# WSM, Figure 2: weights of 10 checkpoints, oldest to newest, as printed.
FIGURE_2 = {
    "linear": ".100 .100 .100 .100 .100 .100 .100 .100 .100 .100",
    "cosine": ".024 .071 .111 .139 .155 .155 .139 .111 .071 .024",
    "minus_sqrt": ".316 .131 .101 .085 .075 .067 .062 .058 .054 .051",
    "ema": ".126 .033 .041 .052 .065 .082 .103 .130 .163 .206",
}

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


# --- averages over checkpoints ---------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.one_of(st.none(), st.floats(0.0, 1.0, exclude_max=True)))
def test_an_average_is_a_convex_combination(count, decay):
    """WMA, or the EMA of that decay."""
    c = wma_weights(count) if decay is None else ema_weights(count, decay)
    assert c.dtype == np.float64
    assert c.shape == (count,)
    assert c.min() >= 0
    assert c.sum() == pytest.approx(1.0, abs=1e-13)


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_wma_is_proportional_to_the_index_and_its_update_weights_follow(count):
    c = wma_weights(count)
    np.testing.assert_allclose(c, c[0] * np.arange(1, count + 1), rtol=1e-14)
    i = np.arange(1, count)
    np.testing.assert_allclose(update_weights(c), 1 - i * (i + 1) / (count * (count + 1)), rtol=0, atol=1e-14)


def test_wma_tends_to_the_curve_square():
    gaps = [np.abs(update_weights(wma_weights(n)) - curve_update_weights("square", n)).max() for n in (10, 100, 1000)]
    assert gaps[0] > 0.01
    np.testing.assert_allclose(gaps, [1 / (4 * (n + 1)) for n in (10, 100, 1000)], rtol=0.05)


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.9, 0.999])
@pytest.mark.parametrize("count", [1, 2, 9, 40])
def test_an_ema_over_checkpoints_is_its_recursion(count, decay):
    average = np.eye(count)[0]  # theta_j is the j-th unit vector, so the average is its own weights
    for theta in np.eye(count)[1:]:
        average = decay * average + (1 - decay) * theta
    c = ema_weights(count, decay)
    np.testing.assert_allclose(c, average, rtol=0, atol=1e-15)
    i = np.arange(1, count)
    np.testing.assert_allclose(update_weights(c), 1 - decay ** (count - i), rtol=0, atol=1e-14)


@pytest.mark.parametrize("count", [2, 10, 40])
def test_the_papers_ema_is_the_one_whose_decay_goes_with_the_window(count):
    np.testing.assert_allclose(ema_weights(count, 0.1 ** (1 / count)), merge_weights("ema", count), rtol=0, atol=1e-15)
    assert np.abs(ema_weights(count, 0.9) - merge_weights("ema", count)).max() > 0.01


def test_an_ema_without_memory_is_the_newest_checkpoint():
    assert ema_weights(4, 0.0).tolist() == [0.0, 0.0, 0.0, 1.0]


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
    update_weights([0.5, 0.5 + 5e-7])  # what float32 makes of a sum of 1
    with pytest.raises(UsageError, match=r"sum to 1\.00001\b"):
        update_weights([0.5, 0.50001])


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


@pytest.mark.parametrize("count", [0, -3, 2.5, True])
def test_an_average_over_a_count_that_is_no_count(count):
    for make in (wma_weights, lambda count: ema_weights(count, 0.5)):
        with pytest.raises(UsageError, match=rf"count.*got {count!r}"):
            make(count)


@pytest.mark.parametrize("decay", [1.0, -0.1, 2.0, math.nan])
def test_a_decay_of_an_ema_out_of_range(decay):
    with pytest.raises(UsageError, match=rf"\[0, 1\), got {decay}"):
        ema_weights(3, decay)


@pytest.mark.parametrize("make", [wma_weights, lambda n: ema_weights(n, 0.9), lambda n: merge_weights("linear", n)])
def test_a_count_beyond_all_reason_is_refused_at_once(make):
    with pytest.raises(UsageError, match="count must be at most 1,000,000, got 99999999999999999999"):
        make(99999999999999999999)
