"""The identity WSM rests on: on updates that do not depend on the parameters, a merge *is* a decayed run.

Every run is float64. Gradients (or directions) are drawn in advance, so the constant-rate run and the decayed run see
the same ones; errors are relative to the decayed run's displacement from the oldest checkpoint.
"""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.leaves import declared
from wsm_jax.config import OptimizerConfig
from wsm_jax.core import schedules
from wsm_jax.core.coefficients import checkpoint_weights, curve_update_weights
from wsm_jax.core.decay import DECAYS
from wsm_jax.core.merge_weights import merge_weights
from wsm_jax.core.schedules import schedule_weights
from wsm_jax.training import optimizer as optimizer_lib

CURVES = sorted(DECAYS)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def relative_error(found, wanted, start):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted - start)


# --- optax optimizers without weight decay ---------------------------------------------------------------------------

PEAK = 0.01
BEFORE = 15  # updates before the window, so that it starts with moments that are not zero
UPDATES = 96  # updates of the whole run
SHAPES = {"blocks": {"kernel": (2, 4, 6)}, "embedding": (7, 4), "norm": (5,)}


def zeros(shapes):
    return jax.tree.map(np.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))


def ours(name):
    config = OptimizerConfig(name=name, weight_decay=0.0, clip_norm=1.0)
    return lambda schedule: optimizer_lib.make(config, schedule, declared(zeros(SHAPES)))


OPTIMIZERS = {
    "optax.sgd": lambda schedule: optax.sgd(schedule, momentum=0.9),
    "optax.adam": lambda schedule: optax.adam(schedule, b1=0.9, b2=0.95),
    "optax.lion": lambda schedule: optax.lion(schedule, b1=0.9, b2=0.95, weight_decay=0.0),
    **{f"our {name}": ours(name) for name in optimizer_lib.NAMES},
}


def draw(random, shapes, *leading):
    """A tree of standard normal numbers."""
    return jax.tree.map(
        lambda shape: random.standard_normal((*leading, *shape)), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


@functools.cache
def compiled_run(optimizer):
    """(rate of each update) -> the parameters before the first update and after every one, [UPDATES + 1, elements]."""
    random = np.random.default_rng(0)
    gradients = draw(random, SHAPES, UPDATES)
    start = jax.tree.map(jnp.asarray, draw(random, SHAPES))

    @jax.jit
    def run(rates):
        transform = OPTIMIZERS[optimizer](lambda count: rates[count])

        def update(carry, gradient):
            params, state = carry
            step, state = transform.update(gradient, state, params)
            params = optax.apply_updates(params, step)
            return (params, state), jax.flatten_util.ravel_pytree(params)[0]

        _, path = jax.lax.scan(update, (start, transform.init(start)), gradients)
        return jnp.concatenate((jax.flatten_util.ravel_pytree(start)[0][None], path))

    return run


def path_of(optimizer, rates):
    path = np.asarray(compiled_run(optimizer)(jnp.asarray(rates, jnp.float64)))
    assert path.dtype == np.float64
    return path


@functools.cache
def constant_path(optimizer):
    return path_of(optimizer, np.full(UPDATES, PEAK))


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_merging_constant_rate_checkpoints_is_the_piecewise_constant_decay(optimizer, curve):
    """Interval i of the decayed run has the rate peak * f(i / count)."""
    for count, interval in ((2, 81), (5, 12), (10, 9)):
        saved = BEFORE + interval * np.arange(count)
        rates = np.full(UPDATES, PEAK)
        for i in range(1, count):
            rates[saved[i - 1] : saved[i]] = PEAK * DECAYS[curve](i / count)
        decayed, constant = path_of(optimizer, rates), constant_path(optimizer)
        merged = merge_weights(curve, count) @ constant[saved]
        oldest, end = constant[saved[0]], decayed[saved[-1]]
        assert relative_error(merged, end, oldest) < 1e-12, count
        # Half an interval off on the curve is far off: the identity is not a matter of course.
        shifted = checkpoint_weights([DECAYS[curve]((i - 0.5) / count) for i in range(1, count)])
        assert relative_error(shifted @ constant[saved], end, oldest) > 0.01


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("optimizer", ["optax.sgd", "optax.adam", "optax.lion"])
def test_merging_interval_means_is_the_piecewise_linear_decay(optimizer, curve):
    """Update t of the window, from 0, has the rate a(t / interval), linear between a_0 = 1 and a_j = f(j / count)."""
    for count, interval in ((1, 81), (3, 27), (9, 9)):
        a = [1.0] + [DECAYS[curve](j / count) for j in range(1, count + 1)]
        rates = np.full(UPDATES, PEAK)
        rates[BEFORE:] = PEAK * np.interp(np.arange(count * interval) / interval, np.arange(count + 1), a)
        window = constant_path(optimizer)[BEFORE:]
        after_each = window[1:].reshape(count, interval, -1)  # the start of an interval is not part of its mean
        weights = merge_weights(curve, count, snapshot="mean")
        merged = weights @ np.concatenate((after_each.mean(axis=1), window[-1:]))
        end = path_of(optimizer, rates)[-1]
        assert relative_error(merged, end, window[0]) < 1e-12, count
        before_each = window[:-1].reshape(count, interval, -1)
        shifted = weights @ np.concatenate((before_each.mean(axis=1), window[-1:]))
        assert relative_error(shifted, end, window[0]) > 1e-3


@pytest.mark.parametrize("count", [1, 3, 9, 81])
def test_uniform_interval_means_are_the_mean_of_all_steps_and_the_real_linear_decay(count):
    window = constant_path("optax.adam")[BEFORE:]
    means = window[1:].reshape(count, 81 // count, -1).mean(axis=1)
    merged = merge_weights("linear", count, snapshot="mean") @ np.concatenate((means, window[-1:]))
    np.testing.assert_allclose(merged, window[1:].mean(axis=0), rtol=0, atol=1e-14)
    schedule = schedules.wsd(PEAK, "linear", total_steps=UPDATES, decay_steps=UPDATES - BEFORE)
    end = path_of("optax.adam", schedule(np.arange(UPDATES)))[-1]
    assert relative_error(merged, end, window[0]) < 1e-12


# --- a continuous schedule against point checkpoints -----------------------------------------------------------------


def test_means_of_the_schedule_are_closer_to_a_real_decay_than_the_papers_grid():
    """A linear decay over 8 intervals on noise; the grids choose the weight of each interval (design.md)."""
    intervals, steps = 8, 200
    random = np.random.default_rng(0)
    updates = -PEAK * random.standard_normal((intervals * steps, 2000))
    schedule = schedules.wsd(PEAK, "linear", total_steps=intervals * steps, decay_steps=intervals * steps)
    decayed = np.asarray(schedule(np.arange(intervals * steps))) / PEAK @ updates
    saved = np.arange(intervals + 1) * steps
    checkpoints = np.concatenate((np.zeros((1, 2000)), np.cumsum(updates, axis=0)))[saved]

    def error(weights):
        return relative_error(weights @ checkpoints, decayed, 0.0)

    mean = schedule_weights(schedule, saved.tolist(), PEAK)
    grid = merge_weights("linear", intervals + 1)
    at_the_end = checkpoint_weights(schedule(saved[1:]) / PEAK)
    # With many steps an interval the three tend to 1/16, 1/12 and 1/8.
    assert error(mean) == pytest.approx(0.0625, rel=0.05)
    assert error(grid) == pytest.approx(0.0833, rel=0.05)
    assert error(at_the_end) == pytest.approx(0.125, rel=0.05)


# --- decoupled weight decay ------------------------------------------------------------------------------------------

LR, DECAY, INTERVALS, STEPS = 4.78e-4, 0.1, 16, 1490  # the paper's rate and interval
AWARE = merge_weights("minus_sqrt", INTERVALS + 1, learning_rate=LR, weight_decay=DECAY, steps_per_interval=STEPS)
PLAIN = merge_weights("minus_sqrt", INTERVALS + 1)


def directions(kind, random, size):
    """Directions u_t, one [STEPS, size] an interval: fresh noise, noise with a drift of a tenth, or constant."""
    drift = random.standard_normal(size)
    for _ in range(INTERVALS):
        if kind == "constant":
            yield np.broadcast_to(random.standard_normal(size), (STEPS, size))
        else:
            noise = random.standard_normal((STEPS, size))
            yield noise + 0.1 * drift if kind == "drift" else noise


def decayed_and_saved(kind, *, start_std, size=2000, seed=0):
    """theta <- (1 - lr wd) theta - lr u: the end of the decayed run, and the checkpoints of the constant one."""
    random = np.random.default_rng(seed)
    constant = decayed = start_std * random.standard_normal(size)
    saved = [constant]
    w = curve_update_weights("minus_sqrt", INTERVALS + 1)
    for w_i, interval in zip(w, directions(kind, random, size), strict=True):
        for u in interval:
            constant = (1 - LR * DECAY) * constant - LR * u
            decayed = (1 - w_i * LR * DECAY) * decayed - w_i * LR * u
        saved.append(constant)
    return decayed, np.stack(saved)


@pytest.mark.parametrize(("kind", "bound"), [("noise", 2e-3), ("drift", 2e-3), ("constant", 1e-10)])
def test_the_aware_form_emulates_a_run_with_weight_decay_where_the_plain_map_is_off(kind, bound):
    decayed, saved = decayed_and_saved(kind, start_std=1.0)
    assert relative_error(AWARE @ saved, decayed, saved[0]) < bound
    assert relative_error(PLAIN @ saved, decayed, saved[0]) > 0.1


def test_noise_alone_from_the_origin_is_the_hardest_case_and_ten_times_better_than_the_plain_map():
    """Nothing but noise moves here, so what varies within an interval is not hidden beside the decay of the start."""
    decayed, saved = decayed_and_saved("noise", start_std=0.0)
    assert 5e-3 < relative_error(AWARE @ saved, decayed, saved[0]) < 1.2e-2
    assert relative_error(PLAIN @ saved, decayed, saved[0]) > 0.12


# --- decoupled weight decay, interval means --------------------------------------------------------------------------


@functools.cache
def decayed_and_means(kind, curve, start_std, size=2000):
    """As :func:`decayed_and_saved` with rates linear within the intervals; also the means of the constant run."""
    random = np.random.default_rng(0)
    constant = decayed = start = start_std * random.standard_normal(size)
    a = [1.0] + [DECAYS[curve](j / INTERVALS) for j in range(1, INTERVALS + 1)]
    w = np.interp(np.arange(INTERVALS * STEPS) / STEPS, np.arange(INTERVALS + 1), a).reshape(INTERVALS, STEPS)
    kept = []
    for rates, interval in zip(w, directions(kind, random, size), strict=True):
        total = np.zeros(size)
        for w_t, u in zip(rates, interval, strict=True):
            constant = (1 - LR * DECAY) * constant - LR * u
            decayed = (1 - w_t * LR * DECAY) * decayed - w_t * LR * u
            total += constant
        kept.append(total / STEPS)
    return decayed, start, np.stack([*kept, constant])


@pytest.mark.integration
@pytest.mark.parametrize(
    ("curve", "kind", "start_std", "bound"),
    [
        ("linear", "noise", 0.0, 8e-4),  # 0.06%, where point checkpoints have 1.06%
        ("minus_sqrt", "noise", 0.0, 2e-3),  # the curve is steep where the window starts
        ("cosine", "noise", 0.0, 8e-4),
        ("exponential", "noise", 0.0, 1.2e-3),
        ("minus_sqrt", "noise", 1.0, 8e-4),
        ("minus_sqrt", "drift", 1.0, 8e-4),
        ("minus_sqrt", "constant", 1.0, 2e-3),
    ],
)
def test_the_aware_form_of_means_emulates_a_run_with_weight_decay_where_the_plain_weights_are_off(
    curve, kind, start_std, bound
):
    decayed, start, kept = decayed_and_means(kind, curve, start_std)
    settings = {"learning_rate": LR, "weight_decay": DECAY, "steps_per_interval": STEPS}
    found = merge_weights(curve, INTERVALS, snapshot="mean", **settings) @ kept
    plain = merge_weights(curve, INTERVALS, snapshot="mean") @ kept
    error = relative_error(found, decayed, start)
    assert error < bound
    assert relative_error(plain, decayed, start) > 30 * error


ADAMW_SHAPES = {"blocks": {"kernel": (2, 16, 16), "scale": (2, 16)}, "embedding": (16, 16), "final_norm": (16,)}


@functools.cache
def adamw_interval():
    """(params, state), gradients of STEPS updates, factors of the rate -> (params, state) after them; compiled once."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, 0))
    def interval(carry, gradients, factors):
        optimizer = adamw(lambda count: LR * factors[count // STEPS])

        def update(carry, gradient):
            step, state = optimizer.update(gradient, carry[1], carry[0])
            return (optax.apply_updates(carry[0], step), state), None

        return jax.lax.scan(update, carry, gradients)[0]

    return interval


def adamw(schedule):
    config = OptimizerConfig(name="adamw", peak_lr=LR, weight_decay=DECAY)
    return optimizer_lib.make(config, schedule, declared(zeros(ADAMW_SHAPES)))


def adamw_runs(kind):
    """Our AdamW on gradients that ignore the parameters: constant-rate checkpoints, and the end of the decayed run."""
    random = np.random.default_rng(0)
    start, drift = (draw(random, ADAMW_SHAPES) for _ in range(2))
    twice = jax.tree.map(lambda x: np.stack((x, x)), (start, adamw(optax.constant_schedule(LR)).init(start)))
    factors = np.stack((np.ones(INTERVALS), curve_update_weights("minus_sqrt", INTERVALS + 1)))
    noisy, drifting = {"noise": (1.0, 0.0), "drift": (1.0, 0.1), "constant": (0.0, 1.0)}[kind]
    carry, saved = twice, [start]
    for _ in range(INTERVALS):
        noise = draw(random, ADAMW_SHAPES, STEPS)
        gradients = jax.tree.map(lambda n, d: noisy * n + drifting * d[None], noise, drift)
        carry = adamw_interval()(carry, gradients, factors)
        saved.append(jax.tree.map(lambda x: np.asarray(x[0]), carry[0]))
    checkpoints = jax.tree.map(lambda *leaves: np.stack(leaves), *saved)
    return checkpoints, jax.tree.map(lambda x: np.asarray(x[1]), carry[0])


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        ("drift", 2e-3),
        *(pytest.param(*case, marks=pytest.mark.integration) for case in (("noise", 2e-3), ("constant", 1e-10))),
    ],
)
def test_adamw_needs_the_aware_form_inside_its_decay_mask_and_the_plain_map_outside(kind, bound):
    saved, decayed = adamw_runs(kind)
    mask = optimizer_lib.decay_mask(decayed, declared(decayed))
    assert jax.tree.leaves(mask) == [True, False, True, False]

    def check(masked, saved, decayed):
        right, wrong = (AWARE, PLAIN) if masked else (PLAIN, AWARE)
        error = functools.partial(relative_error, wanted=decayed, start=saved[0])
        assert error(np.tensordot(right, saved, 1)) < (bound if masked else 1e-10)
        assert error(np.tensordot(wrong, saved, 1)) > 0.1

    jax.tree.map(check, mask, saved, decayed)
