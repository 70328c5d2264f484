"""Online WSM against a run whose rate really decays, on updates that do not depend on the parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.leaves import declared
from wsm_jax import UsageError, merge_weights
from wsm_jax.config import OptimizerConfig
from wsm_jax.core import averages, coefficients, schedules
from wsm_jax.core.decay import DECAYS
from wsm_jax.core.online import online_wsm
from wsm_jax.training import optimizer as optimizer_lib

CURVES = sorted(DECAYS)
PEAK, WEIGHT_DECAY, WARMUP, STEPS = 0.02, 0.8, 7, 96
SHAPES = {"blocks": {"kernel": (2, 4, 6), "scale": (2, 4)}, "embedding": (7, 4), "norm": (5,)}
# Rates as tables: a schedule is computed in float32, and here all is float64.
CONSTANT = np.asarray(schedules.constant(PEAK, WARMUP)(np.arange(STEPS + 1)), np.float64)


def scales(curve, window):
    """w_i of the updates of a window: 1, f(1 / window), ..."""
    return np.append(1.0, coefficients.curve_update_weights(curve, window)[: window - 1])


def table(rates):
    return lambda count: jnp.asarray(rates)[count]


def draw(random, *leading):
    return jax.tree.map(
        lambda shape: random.standard_normal((*leading, *shape)), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def mask_of(params):
    """The decay mask, as a run has it."""
    return optimizer_lib.decay_mask(params, declared(params))


@functools.cache
def path(dtype=jnp.float64, start=None, curve="linear", window=1):
    """The parameters after 0 .. STEPS updates of our AdamW, constant or with a cooldown from ``start`` on."""
    with jax.enable_x64(dtype == jnp.float64):
        random = np.random.default_rng(0)
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), draw(random))
        gradients = jax.tree.map(lambda x: jnp.asarray(x, dtype), draw(random, STEPS))
        rates = CONSTANT.copy()
        if start is not None:
            rates[start : start + window] *= scales(curve, window)
        config = OptimizerConfig(name="adamw", peak_lr=PEAK, weight_decay=WEIGHT_DECAY)
        optimizer = optimizer_lib.make(config, table(rates), declared(params))

        @jax.jit
        def run(params, gradients):
            def update(carry, gradient):
                updates, state = optimizer.update(gradient, carry[1], carry[0])
                params = optax.apply_updates(carry[0], updates)
                return (params, state), params

            return jax.lax.scan(update, (params, optimizer.init(params)), gradients)[1]

        after = run(params, gradients)
        return [params] + [jax.tree.map(lambda x, t=t: x[t], after) for t in range(STEPS)]


def rule(curve, window, **options):
    aware = {"learning_rate": table(CONSTANT), "weight_decay": WEIGHT_DECAY, "mask": mask_of}
    return online_wsm(curve, window, **{**aware, **options})


def reads(made, dtype=jnp.float64, first=0):
    """step -> what is read after it; the average begins with the parameters after ``first`` updates."""
    with jax.enable_x64(dtype == jnp.float64):
        params = path(dtype)
        update, read = (jax.jit(functools.partial(f, {"it": made})) for f in (averages.update_all, averages.read_all))
        states = averages.init_all({"it": made}, params[first])
        found = {}
        for step in range(first + 1, STEPS + 1):
            states = update(states, params[step], step)
            if step % made.every == 0:
                found[step] = read(states, params[step], step)["it"]
        return found


def errors(found, wanted, start):
    """path -> error relative to the wanted displacement from ``start``."""

    def one(f, w, s):
        w = np.asarray(w, np.float64)
        return float(np.linalg.norm(np.asarray(f) - w) / np.linalg.norm(w - np.asarray(s)))

    return jax.tree.map(one, found, wanted, start)


def worst(found, wanted, start):
    return max(jax.tree.leaves(errors(found, wanted, start)))


# One that is straight, one that starts steep, one that ends above zero; all of them with the slow tests.
QUICK = ("linear", "minus_sqrt", "inverse_sqrt")


@pytest.mark.integration
@pytest.mark.parametrize("curve", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CURVES])
def test_every_window_ends_where_the_run_with_the_real_decay_ends(curve):
    window, spacing = 24, 8
    found = reads(rule(curve, window, spacing=spacing))
    for end in (24, 56, 64, 96):
        wanted = path(start=end - window, curve=curve, window=window)[end]
        assert worst(found[end], wanted, path()[end - window]) < 1e-12, end
        # One step off is far off, and so is the constant run.
        assert worst(found[end], path(start=end - window + 1, curve=curve, window=window)[end], path()[0]) > 1e-4
        assert worst(path()[end], wanted, path()[end - window]) > 0.1


def test_without_the_weight_decay_only_the_leaves_outside_the_mask_are_right():
    window, end = 48, 96
    wanted, start = path(start=end - window, curve="minus_sqrt", window=window)[end], path()[end - window]
    plain = errors(reads(rule("minus_sqrt", window, weight_decay=0.0))[end], wanted, start)
    unmasked = errors(reads(rule("minus_sqrt", window, mask=None))[end], wanted, start)
    mask = mask_of(start)
    for error, other, decayed in zip(*map(jax.tree.leaves, (plain, unmasked, mask)), strict=True):
        assert (error > 0.05) if decayed else (error < 1e-12)
        assert (other < 1e-12) if decayed else (other > 0.05)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")
def test_without_weight_decay_it_is_the_merge_of_the_parameters_after_every_step():
    window, end = 24, 72
    for curve in CURVES:
        found = reads(rule(curve, window, weight_decay=0.0))[end]
        weights = merge_weights(curve, window)  # of theta at end - window + 1 .. end
        wanted = jax.tree.map(
            lambda *x, c=weights: np.tensordot(c, np.asarray(x), 1), *path()[end - window + 1 : end + 1]
        )
        assert worst(found, wanted, path()[end - window]) < 1e-12


@pytest.mark.parametrize("curve", [pytest.param("linear", marks=pytest.mark.integration), "minus_sqrt"])
def test_float32_is_exact_to_its_rounding(curve):
    window, end = 48, 96
    found = reads(rule(curve, window, spacing=24), jnp.float32)[end]
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    # Against float64 arithmetic on the float32 run's own parameters.
    params = [jax.tree.map(lambda x: np.asarray(x, np.float64), p) for p in path(jnp.float32)]
    mask = mask_of(params[0])
    dec = params[end - window]
    for w, old, new in zip(
        scales(curve, window), params[end - window : end], params[end - window + 1 : end + 1], strict=True
    ):
        shrink = jax.tree.map(lambda m: PEAK * WEIGHT_DECAY * m, mask)
        dec = jax.tree.map(lambda d, o, n, s, w=w: (1 - w * s) * d + w * (n - (1 - s) * o), dec, old, new, shrink)
    gap = jax.tree.map(lambda f, d: float(np.abs(f - d).max()), found, dec)
    assert max(jax.tree.leaves(gap)) < 1.5e-6  # of parameters up to 2.5, whose spacing in float32 is 2.4e-7
    assert 1 < max(np.abs(leaf).max() for leaf in jax.tree.leaves(dec)) < 2.5


@pytest.mark.integration
def test_updates_every_so_many_steps_take_the_mean_of_the_curve_over_them():
    """And 1 over the first so many. The decayed run then has a constant rate over so many updates, and a constant
    direction makes it exact."""
    window, every, end = 24, 4, 48
    made = online_wsm("cosine", window, spacing=12, learning_rate=PEAK, weight_decay=WEIGHT_DECAY, every=every)
    random = np.random.default_rng(1)
    w = scales("cosine", window).reshape(-1, every).mean(axis=1)
    w[0] = 1.0
    with jax.enable_x64(True):
        theta = random.standard_normal(50)
        state = made.init(jnp.asarray(theta))
        for step in range(end):
            if step % every == 0:
                direction = random.standard_normal(50)
            if step == end - window:
                dec = start = theta
            theta = (1 - PEAK * WEIGHT_DECAY) * theta - PEAK * direction
            if step >= end - window:
                rate = PEAK * w[(step - (end - window)) // every]
                dec = (1 - rate * WEIGHT_DECAY) * dec - rate * direction
            if (step + 1) % every == 0:
                state = made.update(state, jnp.asarray(theta), step + 1)
        assert worst(made.read(state, jnp.asarray(theta), end), dec, start) < 1e-12
        assert worst(theta, dec, start) > 0.1


@pytest.mark.integration
def test_a_window_that_is_not_complete_is_the_decay_so_far_and_the_furthest_is_read():
    window, spacing = 24, 8
    found = reads(rule("linear", window, spacing=spacing))
    for step in (49, 53, 55):
        end = -(-step // spacing) * spacing
        wanted = path(start=end - window, curve="linear", window=window)[step]
        assert worst(found[step], wanted, path()[end - window]) < 1e-12


@pytest.mark.integration
def test_windows_under_way_at_the_start_begin_there_and_later_ones_do_not_notice():
    window, spacing, first = 24, 8, 45
    whole, late = (
        reads(rule("cosine", window, spacing=spacing)),
        reads(rule("cosine", window, spacing=spacing), first=first),
    )
    for end in (48, 56, 64, 72, 80):
        gap = worst(late[end], whole[end], path()[0])
        assert (gap < 1e-12) == (end - window >= first), end
    # The end at 48 got the parameters after 46 updates first, and saw updates 46 and 47.
    mask, p = mask_of(path()[0]), path()
    dec = p[46]
    for step in (46, 47):
        w = scales("cosine", window)[step - 24]
        shrink = w * PEAK * WEIGHT_DECAY

        def one(d, old, new, masked, w=w, shrink=shrink):
            return d + w * np.asarray(new - old) - shrink * masked * np.asarray(d - old)

        dec = jax.tree.map(one, jax.tree.map(np.asarray, dec), *jax.tree.map(np.asarray, (p[step], p[step + 1])), mask)
    assert worst(late[48], dec, p[0]) < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": 7}, "an online window of 24 steps needs a spacing that divides it, got 7"),
        ({"spacing": 48}, "got 48"),
        ({"every": 5}, "got 5"),
        ({"spacing": 0}, "got 0"),
        ({"curve": "lineal"}, "unknown curve 'lineal'"),
        ({"curve": lambda t: t}, "must not increase"),
    ],
)
def test_bad_windows_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        online_wsm(**({"curve": "linear", "window": 24} | options))
