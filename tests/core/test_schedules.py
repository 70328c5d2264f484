"""Learning rates: closed forms, where they hold and where they end, under jit and on vectors, from a configuration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsm_jax.checkpoints import run_schedule
from wsm_jax.config import Config, ScheduleConfig
from wsm_jax.core import schedules
from wsm_jax.core.coefficients import curve_update_weights
from wsm_jax.core.decay import DECAYS
from wsm_jax.errors import UsageError

CURVES = sorted(DECAYS)
PEAK, WARMUP, TOTAL, DECAY = 3e-3, 20, 200, 50
START = TOTAL - DECAY
EVERY = {
    "constant": schedules.constant(PEAK, WARMUP),
    "cosine": schedules.cosine(PEAK, TOTAL, WARMUP, end_fraction=0.1),
    "cosine to zero": schedules.cosine(PEAK, TOTAL, WARMUP),
    "inverse_sqrt": schedules.inverse_sqrt(PEAK, WARMUP),
    **{f"wsd {curve}": schedules.wsd(PEAK, curve, TOTAL, DECAY, WARMUP) for curve in CURVES},
    "cooldown from cosine": schedules.cooldown(schedules.cosine(PEAK, TOTAL, WARMUP), "minus_sqrt", 100, 40),
}


# One shape for all tests: every operation of a schedule is compiled for each.
COUNTS = np.append(np.arange(320), [10 * TOTAL, 10**6, 10**9]).astype(np.int32)


@functools.cache
def rates(name):
    """The rates of ``EVERY[name]`` at COUNTS: of step s, below 320, at place s."""
    return np.asarray(EVERY[name](COUNTS))


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6 * PEAK)


# --- the warm-up and the constant rate -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in EVERY if name != "cooldown from cosine"])
def test_the_warm_up_is_linear_and_its_first_update_already_moves(name):
    close(rates(name)[:WARMUP], PEAK * np.arange(1, WARMUP + 1) / (WARMUP + 1))
    assert rates(name)[WARMUP] == pytest.approx(PEAK, rel=1e-6)


def test_constant_holds_the_peak_for_ever():
    close(rates("constant")[WARMUP:], np.full(COUNTS.size - WARMUP, PEAK))
    close(schedules.constant(PEAK)(0), PEAK)


# --- decays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", CURVES)
def test_wsd_holds_the_peak_up_to_and_including_the_branch_step_then_follows_the_curve(curve):
    found = rates(f"wsd {curve}")
    close(found[WARMUP : START + 1], np.full(START + 1 - WARMUP, PEAK))
    t = np.arange(1, DECAY + 1) / DECAY
    close(found[START + 1 : TOTAL + 1], PEAK * DECAYS[curve](t))


@pytest.mark.parametrize("curve", CURVES)
def test_wsd_holds_its_last_value_past_its_end(curve):
    past = rates(f"wsd {curve}")[TOTAL:]
    close(past, np.full(past.size, PEAK * DECAYS[curve](1.0)))


@pytest.mark.parametrize("curve", CURVES)
def test_the_schedule_and_the_merge_weights_are_the_same_curve(curve):
    """At the ends of 5 intervals the decay has reached the update weights of a merge of 5 checkpoints."""
    close(rates(f"wsd {curve}")[START + 10 * np.arange(1, 5)] / PEAK, curve_update_weights(curve, 5))


def test_a_partial_decay_ends_at_a_share_of_the_peak():
    whole, half = (schedules.wsd(PEAK, "linear", TOTAL, DECAY, WARMUP, end) for end in (0.0, 0.5))
    found, wanted = (np.asarray(schedule(COUNTS))[WARMUP:] for schedule in (half, whole))
    np.testing.assert_allclose(found, (PEAK + wanted) / 2, rtol=1e-6)
    np.testing.assert_allclose(found[-1], PEAK / 2, rtol=1e-6)
    with pytest.raises(UsageError, match=r"decay_end is 1\.5"):
        schedules.wsd(PEAK, "linear", TOTAL, DECAY, WARMUP, 1.5)


def test_a_cooldown_branches_from_any_schedule_at_the_rate_it_had():
    base, cooled = rates("cosine to zero"), rates("cooldown from cosine")
    close(cooled[:101], base[:101])
    t = np.arange(1, 41) / 40
    close(cooled[101:141], base[100] * (1 - np.sqrt(t)))
    close(cooled[141:], np.zeros(COUNTS.size - 141))


def test_a_branch_sees_its_parents_rates_up_to_the_branch():
    schedule = schedules.cooldown(EVERY["constant"], "linear", START, DECAY)
    parent, branch = (np.asarray(each(jnp.asarray(COUNTS))) for each in (EVERY["constant"], schedule))
    assert np.array_equal(parent[: START + 1], branch[: START + 1])
    assert branch[START + 1] < parent[START + 1]


def test_a_rewarmed_branch_begins_as_a_run_does():
    found = np.asarray(schedules.rewarm(PEAK, START, WARMUP)(COUNTS))
    close(found[START : START + 3 * WARMUP], rates("constant")[: 3 * WARMUP])
    assert found[0] == found[START] > 0


def test_a_curve_that_dips_below_zero_gives_no_negative_rate():
    found = np.asarray(schedules.wsd(PEAK, lambda t: 1.0 - 2.0 * t, TOTAL, DECAY)(COUNTS))
    assert found.min() == 0.0
    close(found[START + 10], PEAK * 0.6)


@pytest.mark.parametrize(("name", "end_fraction"), [("cosine to zero", 0.0), ("cosine", 0.1)])
def test_cosine_is_its_closed_form_and_optaxs_warm_up_cosine(name, end_fraction):
    t = np.clip((COUNTS - WARMUP) / (TOTAL - WARMUP), 0.0, 1.0)
    wanted = PEAK * (end_fraction + (1 - end_fraction) * (1 + np.cos(np.pi * t)) / 2)
    optaxs = optax.warmup_cosine_decay_schedule(0.0, PEAK, WARMUP, TOTAL, PEAK * end_fraction)(COUNTS)
    close(rates(name)[WARMUP:], wanted[WARMUP:])
    close(rates(name)[WARMUP:], np.asarray(optaxs)[WARMUP:])


def test_cosine_without_warm_up_is_wsd_that_decays_over_the_whole_run():
    close(schedules.cosine(PEAK, TOTAL)(COUNTS), schedules.wsd(PEAK, "cosine", TOTAL, TOTAL)(COUNTS))


def test_inverse_sqrt_is_its_closed_form_and_meets_the_warm_up():
    close(rates("inverse_sqrt")[WARMUP:], PEAK * np.sqrt(WARMUP / COUNTS[WARMUP:]))
    close(rates("inverse_sqrt")[4 * WARMUP], PEAK / 2)


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_under_jit_on_scalars_and_on_vectors_it_is_the_same_rate(name):
    counts, vector = COUNTS[: TOTAL + 20], rates(name)
    assert vector.shape == COUNTS.shape
    jitted = jax.jit(EVERY[name])
    assert jitted(jnp.int32(3)).shape == ()
    found = [jitted(np.int32(count)) for count in counts[::9]]
    np.testing.assert_allclose(found, vector[: counts.size : 9], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(EVERY[name](START + 7), vector[START + 7], rtol=1e-6, atol=1e-9)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20))
def test_rates_lie_between_zero_and_the_peak_at_any_step(counts):
    for name, schedule in EVERY.items():
        found = np.asarray(schedule(np.resize(np.asarray(counts, np.int32), COUNTS.size)))
        assert found.min() >= 0, name
        assert found.max() <= PEAK * (1 + 1e-6), name


# --- from a configuration --------------------------------------------------------------------------------------------


def configured(duration="1000steps", **schedule):
    config = Config(duration=duration, schedule=ScheduleConfig(**{"warmup": "100steps", **schedule}))
    config.optimizer.peak_lr = PEAK
    return config


COUNTS = np.arange(0, 1010)


@pytest.mark.parametrize(
    ("settings", "branch_step", "wanted"),
    [
        ({"name": "constant"}, None, schedules.constant(PEAK, 100)),
        ({"name": "constant", "warmup": "0steps"}, None, optax.constant_schedule(PEAK)),
        ({"name": "wsd", "curve": "square", "decay": "0.3run"}, None, schedules.wsd(PEAK, "square", 1000, 300, 100)),
        ({"name": "wsd", "curve": "square", "decay": "0.3run"}, 700, schedules.wsd(PEAK, "square", 1000, 300, 100)),
        ({"name": "cosine", "end_fraction": 0.1}, None, schedules.cosine(PEAK, 1000, 100, 0.1)),
        ({"name": "inverse_sqrt"}, None, schedules.inverse_sqrt(PEAK, 100)),
        (
            {"name": "cooldown", "curve": "minus_sqrt"},
            750,
            schedules.cooldown(schedules.constant(PEAK, 100), "minus_sqrt", 750, 250),
        ),
        ({"name": "rewarm"}, 750, schedules.rewarm(PEAK, 750, 100)),
    ],
)
def test_from_config_makes_the_schedule_it_describes(settings, branch_step, wanted):
    found = run_schedule.from_config(configured(**settings), branch_step)
    np.testing.assert_array_equal(
        np.broadcast_to(found(COUNTS), COUNTS.shape), np.broadcast_to(wanted(COUNTS), COUNTS.shape)
    )


def test_every_named_schedule_can_be_configured():
    for name in run_schedule.NAMES:
        assert float(run_schedule.from_config(configured(name=name), branch_step=500)(500)) > 0


@pytest.mark.parametrize(
    ("settings", "branch_step", "message"),
    [
        ({"name": "linear"}, None, r"schedule\.name 'linear'.*constant.*cooldown"),
        ({"warmup": "1000steps"}, None, r"schedule\.warmup='1000steps' \(1000 steps\).*1000"),
        ({"warmup": "2"}, None, r"schedule\.warmup='2' is not a duration"),
        ({"name": "wsd", "decay": "lots"}, None, r"schedule\.decay='lots'"),
        ({"name": "wsd", "decay": "950steps"}, None, "decay of 950 steps.*warm-up of 100 in 1000"),
        ({"name": "wsd", "decay": "0steps"}, None, "0 steps"),
        ({"name": "wsd", "decay": "0.3run"}, 701, r"schedule\.decay='0\.3run' starts at step 700.*701"),
        ({"name": "wsd", "curve": "sigmoid"}, None, "unknown curve 'sigmoid'"),
        ({"name": "cooldown"}, None, "--branch_from"),
        ({"name": "rewarm"}, 900, r"schedule\.warmup='.*' \(100 steps\) leaves nothing of the 100 steps after .* 900"),
        ({"name": "rewarm"}, None, "rewarm starts where a run is branched.*--branch_from"),
        ({"name": "cooldown"}, 1000, "start 1000 and 0 steps"),
        ({"name": "cooldown"}, 1200, "start 1200 and -200 steps"),
        ({"name": "cosine", "end_fraction": -0.5}, None, r"schedule\.end_fraction is -0\.5"),
        ({"name": "cosine", "end_fraction": 1.5}, None, r"schedule\.end_fraction is 1\.5"),
        ({"name": "inverse_sqrt", "warmup": "0steps"}, None, "inverse_sqrt needs a warm-up"),
    ],
)
def test_a_configuration_that_makes_no_schedule(settings, branch_step, message):
    with pytest.raises(UsageError, match=message):
        run_schedule.from_config(configured(**settings), branch_step)


@pytest.mark.parametrize(("start", "steps"), [(-1, 10), (10, 0), (10, -5)])
def test_a_cooldown_out_of_range(start, steps):
    with pytest.raises(UsageError, match=f"start {start} and {steps} steps"):
        schedules.cooldown(optax.constant_schedule(1.0), "linear", start, steps)


# --- cycles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "cycle", "low"), [(60, 10, 0.1), (20, 1, 0.5), (60, 7, 0.0), (0, 25, 0.2)])
def test_cycles_fall_linearly_and_the_last_update_of_each_has_the_lowest_rate(start, cycle, low):
    schedule = schedules.cyclic(schedules.constant(PEAK), start, cycle, low)
    close(schedule(np.arange(start)), np.full(start, PEAK))
    t = np.arange(1, cycle + 1) / cycle
    close(schedule(start + np.arange(3 * cycle)), np.tile(PEAK * ((1 - t) + t * low), 3))


def test_cycles_from_a_configuration():
    settings = ScheduleConfig(name="cyclic", warmup="20steps", cycle="0.05run", cycle_start="0.5run", end_fraction=0.1)
    schedule = run_schedule.from_config(Config(duration="200steps", schedule=settings))
    wanted = schedules.cyclic(schedules.constant(1e-3, 20), 100, 10, 0.1)
    close(schedule(np.arange(200)), wanted(np.arange(200)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cycle": "0steps"}, "at least 1 step, got start 150 and 0 steps"),
        ({"cycle_start": "10steps"}, r"schedule.cycle_start='10steps' lies in the warm-up of 20 steps"),
        ({"end_fraction": 1.5}, r"schedule.end_fraction is 1.5"),
        ({"cycle": "often"}, "schedule.cycle='often' is not a duration"),
    ],
)
def test_cycles_that_do_not_fit(fields, message):
    settings = ScheduleConfig(**{"name": "cyclic", "warmup": "20steps", **fields})
    with pytest.raises(UsageError, match=message):
        run_schedule.from_config(Config(duration="200steps", schedule=settings))


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(optax.linear_onecycle_schedule(120, 1.0), marks=pytest.mark.integration),
        pytest.param(optax.cosine_onecycle_schedule(120, 1.0), marks=pytest.mark.integration),
        optax.piecewise_interpolate_schedule("linear", 1.0, {50: 0.5, 100: 0.1}),
        optax.piecewise_constant_schedule(1.0, {60: 0.5}),
        optax.constant_schedule(0.3),
        lambda count: 1.0 if count < 61 else 0.25,
        lambda count: np.where(np.asarray(count) < 61, 1.0, 0.25),
    ],
)
@pytest.mark.parametrize("counts", [np.arange(60, 62), np.arange(0, 110, 7), np.arange(0)])
def test_rates_are_those_of_one_update_at_a_time(schedule, counts):
    found = schedules.rates_at(schedule, counts)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [float(schedule(int(c))) for c in counts], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [(lambda count: "fast", "returns no number"), (lambda count: np.ones(3), r"returns shape \(3,\) for one update")],
)
def test_what_is_no_schedule(schedule, message):
    with pytest.raises(UsageError, match=message):
        schedules.rates_at(schedule, np.arange(4))
