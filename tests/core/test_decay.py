"""Decay curves: closed forms, ends, monotone, the same for Python, numpy and (traced) jax numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsm_jax.core.decay import DECAYS, get_decay
from wsm_jax.errors import UsageError

CURVES = sorted(DECAYS)
# Points where the value is known without a computer.
KNOWN = [
    ("linear", 0.25, 0.75),
    ("cosine", 0.5, 0.5),
    ("cosine", 1 / 3, 0.75),
    ("minus_sqrt", 0.25, 0.5),
    ("minus_sqrt", 0.81, 0.1),
    ("square", 0.5, 0.75),
    ("exponential", 0.5, 10**-0.5),
    ("inverse_sqrt", 1 / 33, 0.5),
    ("inverse_sqrt", 8 / 99, 1 / 3),
    ("ema", 0.5, 1 - 10**-0.5),
]
AT_ONE = {
    "linear": 0.0,
    "cosine": 0.0,
    "minus_sqrt": 0.0,
    "square": 0.0,
    "exponential": 0.1,
    "inverse_sqrt": 0.1,
    "ema": 0.0,
}

shares = st.floats(min_value=0.0, max_value=1.0, exclude_min=True)


def test_the_contract_names_seven_curves():
    assert set(DECAYS) == set(AT_ONE)


@pytest.mark.parametrize(("curve", "t", "value"), KNOWN)
def test_known_values(curve, t, value):
    assert DECAYS[curve](t) == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize("curve", CURVES)
def test_value_at_the_end(curve):
    assert DECAYS[curve](1.0) == pytest.approx(AT_ONE[curve], abs=1e-15)


@pytest.mark.parametrize("curve", CURVES)
def test_starts_at_one_except_ema_which_jumps_to_nine_tenths(curve):
    assert DECAYS[curve](1e-12) == pytest.approx(0.9 if curve == "ema" else 1.0, abs=1e-5)


@pytest.mark.parametrize("curve", CURVES)
def test_stays_in_the_unit_interval_and_never_increases_on_a_fine_grid(curve):
    values = DECAYS[curve](np.arange(1, 100_001) / 100_000)
    assert values.max() <= 1.0
    assert values.min() >= 0.0
    assert np.all(np.diff(values) < 0)


@given(a=shares, b=shares)
def test_never_increases_between_any_two_points(a, b):
    for curve, f in DECAYS.items():
        early, late = f(min(a, b)), f(max(a, b))
        assert 0.0 <= late <= early <= 1.0, curve


@pytest.mark.parametrize("curve", CURVES)
def test_numpy_float64_in_and_out_agrees_with_python_numbers(curve):
    t = np.linspace(0.01, 1.0, 37)
    values = DECAYS[curve](t)
    assert isinstance(values, np.ndarray)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, [DECAYS[curve](float(x)) for x in t], rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("curve", CURVES)
def test_traced_jax_agrees_with_numpy(curve):
    t = np.linspace(0.01, 1.0, 37)
    values = jax.jit(DECAYS[curve])(jnp.asarray(t, jnp.float32))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, DECAYS[curve](t), atol=3e-7)
    assert float(values.min()) >= 0.0
    with jax.enable_x64(True):
        values = jax.jit(DECAYS[curve])(jnp.asarray(t))
        assert values.dtype == jnp.float64
        np.testing.assert_allclose(values, DECAYS[curve](t), rtol=1e-13, atol=1e-16)


def test_get_decay_finds_names_and_passes_functions_through():
    def step(t):
        return 1.0 if t < 0.5 else 0.0

    assert get_decay("cosine") is DECAYS["cosine"]
    assert get_decay(step) is step


def test_an_unknown_curve_is_named_beside_the_known_ones():
    with pytest.raises(UsageError, match=r"'lineal'.*linear.*minus_sqrt"):
        get_decay("lineal")
