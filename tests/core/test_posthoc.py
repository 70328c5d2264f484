"""Post-hoc EMA: weights of stored power-function averages against the average itself."""

import numpy as np
import pytest

from wsm_jax import UsageError
from wsm_jax.core import posthoc
from wsm_jax.core.averages import power

STEPS, EVERY = 4096, 256
WIDTHS = (0.05, 0.1)


def profile(step, width, length=STEPS):
    """Weights of theta_1 .. theta_length in the power-function EMA of ``width`` after ``step`` steps, by its update."""
    n = np.arange(1, step + 1)
    with np.errstate(divide="ignore"):
        log_keep = (power(width) + 1) * np.log1p(-1 / n)
    kept = np.exp(np.append(np.cumsum(log_keep[::-1])[::-1][1:], 0.0))
    return np.append(-np.expm1(log_keep) * kept, np.zeros(length - step))


def stored():
    pairs = [(step, width) for width in WIDTHS for step in range(EVERY, STEPS + 1, EVERY)]
    return [step for step, _ in pairs], [width for _, width in pairs]


def test_the_profile_is_a_convex_combination_close_to_a_power():
    for width in WIDTHS:
        weights = profile(STEPS, width)
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        power_of_t = (np.arange(1, STEPS + 1) / STEPS) ** power(width)
        np.testing.assert_allclose(weights / weights[-1], power_of_t, rtol=0, atol=0.01)


@pytest.mark.parametrize("width", [0.03, 0.05, 0.07, 0.1, 0.15, 0.2])
@pytest.mark.parametrize("step", [STEPS, 3 * STEPS // 4])
def test_lengths_that_were_not_stored_come_out_of_those_that_were(step, width):
    """Error of the profile relative to its norm; the nearest stored one alone is several times as far off."""
    steps, widths = stored()
    c = posthoc.weights(steps, widths, step, width)
    assert c.dtype == np.float64
    made = sum(x * profile(s, w) for x, s, w in zip(c, steps, widths, strict=True))
    wanted = profile(step, width)
    error = np.linalg.norm(made - wanted) / np.linalg.norm(wanted)
    alone = min(np.linalg.norm(profile(step, w) - wanted) / np.linalg.norm(wanted) for w in WIDTHS)
    assert error < (0.01 if 0.05 <= width <= 0.1 else 0.07)
    assert width in WIDTHS or error < alone / 5
    assert c.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("steps", "widths", "width"), [([100], [0.05], 0.2), ([50, 100], [0.05, 0.05], 0.25)])
def test_parameters_that_do_not_move_come_out_as_they_are(steps, widths, width):
    """Least squares alone would scale them by less than 0.9."""
    assert posthoc.weights(steps, widths, 100, width) @ np.full(len(steps), 3.0) == pytest.approx(3.0, rel=1e-12)


def test_a_stored_one_is_taken_as_it_is():
    steps, widths = stored()
    c = posthoc.weights(steps, widths, 2048, 0.1)
    wanted = [float((s, w) == (2048, 0.1)) for s, w in zip(steps, widths, strict=True)]
    np.testing.assert_allclose(c, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], 10, 0.1), "a step and a width each"),
        (([10, 20], [0.1], 10, 0.1), "a step and a width each"),
        (([10, 10], [0.1, 0.1], 10, 0.1), "all different"),
        (([10, 20], [0.1, 0.1], 21, 0.1), "ends at step 21; it must end at 1 to 20"),
        (([10, 20], [0.1, 0.1], 0, 0.1), "ends at step 0"),
        (([10, 20], [0.1, 0.1], 20, 0.3), "width of a power-function EMA is 0.3"),
    ],
)
def test_what_cannot_be_reconstructed(arguments, message):
    with pytest.raises(UsageError, match=message):
        posthoc.weights(*arguments)
