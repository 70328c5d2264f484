"""Averages along a run: closed forms, the optax way of using them, several devices, host memory."""

import functools
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runs import ROOT
from wsm_jax import UsageError
from wsm_jax.core import averages
from wsm_jax.core.averages import Average

STEPS = 40


def walk(steps=STEPS, seed=0, dtype=jnp.float32):
    """Parameters after each update, theta_1 .. theta_steps: a random walk of two leaves."""
    random = np.random.default_rng(seed)
    return [
        {"a": jnp.asarray(a, dtype), "b": {"c": jnp.asarray(c, dtype)}}
        for a, c in zip(
            1.0 + np.cumsum(0.1 * random.standard_normal((steps, 3, 2)), axis=0),
            np.cumsum(0.1 * random.standard_normal((steps, 4)), axis=0),
            strict=True,
        )
    ]


@functools.cache
def compiled(rule: Average):
    """Jitted :func:`average.update_all` and :func:`average.read_all` of one average."""
    return tuple(jax.jit(functools.partial(f, {"it": rule})) for f in (averages.update_all, averages.read_all))


def follow(rule: Average, params):
    """The state after every step."""
    states = averages.init_all({"it": rule}, params[0])
    for step, theta in enumerate(params, 1):
        states = compiled(rule)[0](states, theta, jnp.int32(step))
        yield step, states["it"]


def read(rule: Average, state, params, step):
    return compiled(rule)[1]({"it": state}, params[step - 1], jnp.int32(step))["it"]


def weighted(params, weights):
    """sum of weights[i] theta_{i+1} in float64."""
    return jax.tree.map(lambda *leaves: np.tensordot(weights, np.asarray(leaves, np.float64), 1), *params)


def close(found, wanted, tolerance=1e-6):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def samples(every, start, step):
    return [t for t in range(every, step + 1, every) if t >= start]


def ema_weights(decay, every, start, step):
    taken = samples(every, start, step)
    weights = np.zeros(step)
    for age, t in enumerate(reversed(taken)):
        weights[t - 1] = decay ** (age * every)
    return weights / weights.sum()


def mean_weights(taken, step):
    weights = np.zeros(step)
    weights[np.asarray(taken) - 1] = 1 / len(taken)
    return weights


def power_weights(width, every, step):
    weights = np.zeros(step)
    for n, t in enumerate(samples(every, 0, step), 1):
        keep = (1 - 1 / n) ** (averages.power(width) + 1)
        weights *= keep
        weights[t - 1] = 1 - keep
    return weights


# rule, (step) -> weights of theta_1 .. theta_step; None where nothing is averaged yet
CLOSED = {
    "ema": (averages.ema(0.9), lambda step: ema_weights(0.9, 1, 0, step)),
    "slow ema": (averages.ema(0.99999), lambda step: ema_weights(0.99999, 1, 0, step)),
    "ema, late and spaced": (
        averages.ema(0.8, start=10, every=3),
        lambda step: ema_weights(0.8, 3, 10, step) if step >= 12 else None,
    ),
    "running mean": (averages.running_mean(), lambda step: mean_weights(range(1, step + 1), step)),
    "running mean, late": (
        averages.running_mean(start=17),
        lambda step: mean_weights(range(17, step + 1), step) if step >= 17 else None,
    ),
    "swa": (averages.swa(20, 5), lambda step: mean_weights(samples(5, 20, step), step) if step >= 20 else None),
    "lawa": (averages.lawa(4, 3), lambda step: mean_weights(samples(3, 0, step)[-4:], step) if step >= 3 else None),
    "lawa of one": (averages.lawa(1, 1), lambda step: mean_weights([step], step)),
    "interval mean": (
        averages.interval_mean(8),
        lambda step: mean_weights(range((step - 1) // 8 * 8 + 1, step + 1), step),
    ),
    "interval mean, spaced": (
        averages.interval_mean(8, every=4),
        lambda step: (
            mean_weights([t for t in samples(4, 0, step) if t > (step // 4 * 4 - 1) // 8 * 8], step)
            if step >= 4
            else None
        ),
    ),
    "power ema": (averages.power_ema(0.1), lambda step: power_weights(0.1, 1, step)),
    "power ema, spaced": (
        averages.power_ema(0.25, every=2),
        lambda step: power_weights(0.25, 2, step) if step >= 2 else None,
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_the_closed_form_holds_after_every_step(name):
    rule, weights = CLOSED[name]
    params = walk()
    for step, state in follow(rule, params):
        wanted = weights(step)
        if wanted is None:
            close(read(rule, state, params, step), params[step - 1], 0)
            continue
        assert wanted.sum() == pytest.approx(1, abs=1e-12)
        close(read(rule, state, params, step), weighted(params[:step], wanted))


@pytest.mark.parametrize("name", CLOSED)
def test_the_mean_of_one_value_is_that_value(name):
    """To the last bit but for LAWA, whose sum of three or more equal numbers may round."""
    rule, _ = CLOSED[name]
    params = [walk(1)[0]] * STEPS
    for step, state in follow(rule, params):
        close(read(rule, state, params, step), params[0], 1.2e-7 * 1.5 if name.startswith("lawa") else 0)


def test_optax_has_the_same_ema_with_the_same_bias_correction():
    ours, theirs = averages.ema(0.9), optax.ema(0.9, debias=True)
    params = walk()
    state = theirs.init(params[0])
    for step, own in follow(ours, params):
        wanted, state = theirs.update(params[step - 1], state)
        close(read(ours, own, params, step), wanted)


@given(half_life=st.floats(0.5, 1e6))
def test_a_half_life_halves(half_life):
    decay = averages.half_life_decay(half_life)
    assert decay**half_life == pytest.approx(0.5, rel=1e-9)


@settings(max_examples=8)
@given(every=st.integers(1, 5), start=st.integers(0, 12), steps=st.integers(1, 30))
def test_only_steps_that_are_due_are_read(every, start, steps):
    """Parameters of the other steps are NaN and must not matter."""
    bad = jnp.full((2,), jnp.nan)
    params = [jnp.full((2,), float(t)) if t % every == 0 else bad for t in range(1, steps + 1)]
    rule = averages.running_mean(start=start, every=every)
    *_, (_, state) = follow(rule, params)
    taken = samples(every, start, steps)
    if taken:
        np.testing.assert_allclose(read(rule, state, params, steps), np.full(2, np.mean(taken)), rtol=1e-6)


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, *(pytest.param(d, marks=pytest.mark.integration) for d in (jnp.float16, jnp.float32))]
)
@pytest.mark.parametrize("name", CLOSED)
def test_accumulators_are_float32_whatever_the_parameters_are(name, dtype):
    rule, weights = CLOSED[name]
    params = walk(dtype=dtype)
    *_, (step, state) = follow(rule, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    found = read(rule, state, params, step)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    close(found, weighted(params, weights(step)))


def test_a_restarted_interval_keeps_nothing_of_the_one_before():
    """Also not through the rounding of a difference of very unlike numbers, nor through a NaN."""
    rule = averages.interval_mean(2)
    params = [jnp.float32(x) for x in (1e30, 1e30, 1.25, 1.75, jnp.nan, jnp.nan, 3.0, 5.0)]
    found = {step: float(read(rule, state, params, step)) for step, state in follow(rule, params)}
    assert [found[3], found[4], found[7], found[8]] == [1.25, 1.5, 3.0, 4.0]


def test_the_states_hold_so_many_copies_of_the_parameters():
    params = walk(1)[0]
    elements = sum(leaf.size for leaf in jax.tree.leaves(params))
    for rule, copies in ((averages.ema(0.9), 1), (averages.interval_mean(3), 1), (averages.lawa(5, 2), 5)):
        assert sum(leaf.size for leaf in jax.tree.leaves(rule.init(params))) == copies * elements + 1


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_width_of_a_power_function_is_its_standard_deviation_over_its_length(width):
    gamma = averages.power(width)
    t = (np.arange(200_000) + 0.5) / 200_000
    profile = t**gamma / (t**gamma).sum()
    mean = (profile * t).sum()
    assert math.sqrt((profile * (t - mean) ** 2).sum()) == pytest.approx(width, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: averages.ema(1.0), "decay of an EMA is 1.0; it must lie between 0 and 1"),
        (lambda: averages.ema(0.0), "between 0 and 1"),
        (lambda: averages.ema(math.nan), "between 0 and 1"),
        (lambda: averages.ema(0.9, every=0), "every is 0; it must be at least 1"),
        (lambda: averages.lawa(0, 1), "count is 0"),
        (lambda: averages.lawa(1, 0), "spacing is 0"),
        (lambda: averages.swa(7, 5), "starts at step 7, which must be a multiple of its cycle of 5"),
        (lambda: averages.swa(0, 0), "at least 1"),
        (lambda: averages.interval_mean(8, every=3), "8 steps cannot be taken every 3"),
        (lambda: averages.power_ema(0.3), "width of a power-function EMA is 0.3"),
        (lambda: averages.power_ema(0.0), "width"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


# --- several devices -------------------------------------------------------------------------------------------------

EIGHT = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from wsm_jax.core import averages as average
from wsm_jax.core import online as window
from wsm_jax.parallel import sharding
from wsm_jax.training import tracking

assert jax.device_count() == 8
mesh = sharding.make_mesh()
rules = {"ema": average.ema(0.9), "lawa": average.lawa(3, 2), "mean": average.interval_mean(4, every=2),
         "wsm": window.online_wsm("minus_sqrt", 8, spacing=4, learning_rate=0.1, weight_decay=0.5)}
random = np.random.default_rng(0)
walk = np.cumsum(random.standard_normal((12, 16, 3)), axis=0).astype(np.float32)
bias = np.cumsum(random.standard_normal((12, 5)), axis=0).astype(np.float32)
specs = {"w": P("data"), "b": P()}
facts, results = {}, {}
for name, host in (("device", False), ("host", True)):
    place = {leaf: NamedSharding(mesh, spec) for leaf, spec in specs.items()}
    params = {"w": jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=place["w"]),
              "b": jax.ShapeDtypeStruct((5,), jnp.float32, sharding=place["b"])}
    abstract = tracking.abstract(rules, params, host=host)
    update = tracking.compile_update(rules, params, abstract)
    read = tracking.compile_read(rules, params, abstract)
    at = lambda t: {"w": jax.device_put(walk[t], place["w"]), "b": jax.device_put(bias[t], place["b"])}
    states = tracking.initialise(rules, at(0), abstract)
    for step in range(1, 13):
        states = update(states, at(step - 1), step)
    same = jax.tree.map(lambda leaf, shape: leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)
                        and leaf.sharding.memory_kind == shape.sharding.memory_kind, states, abstract)
    facts[name + " as asked"] = all(jax.tree.leaves(same))
    facts[name + " kinds"] = sorted({leaf.sharding.memory_kind for leaf in jax.tree.leaves(states)})
    facts[name + " specs"] = [list(leaf["w"].sharding.spec) for leaf in (states["lawa"]["ring"], states["ema"]["mean"])]
    facts[name + " shards"] = sorted({s.data.shape for s in states["wsm"]["pending"]["w"].addressable_shards})
    found = read(states, at(11), 12)
    facts[name + " read"] = sorted({str(leaf.sharding.memory_kind) for leaf in jax.tree.leaves(found)})
    results[name] = jax.device_get(found)
alone = average.init_all(rules, {"w": jnp.asarray(walk[0]), "b": jnp.asarray(bias[0])})
step_function = jax.jit(lambda s, p, step: average.update_all(rules, s, p, step))
for step in range(1, 13):
    alone = step_function(alone, {"w": jnp.asarray(walk[step - 1]), "b": jnp.asarray(bias[step - 1])}, step)
alone = average.read_all(rules, alone, {"w": jnp.asarray(walk[11]), "b": jnp.asarray(bias[11])}, 12)
gap = lambda a, b: max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))
facts["gaps"] = [gap(results["device"], alone), gap(results["host"], alone)]
facts["size"] = gap(alone, jax.tree.map(jnp.zeros_like, alone))
print(json.dumps(facts))
"""


@pytest.mark.integration
def test_eight_devices_and_host_memory_average_as_one_device_does():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    done = subprocess.run(
        [sys.executable, "-c", EIGHT], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["device as asked"] and facts["host as asked"]
    assert "pinned_host" not in facts["device kinds"]
    assert facts["host kinds"] == ["device", "pinned_host"]  # the counts stay on the device
    for name in ("device", "host"):
        assert facts[f"{name} specs"] == [[None, "data"], ["data"]]
        assert facts[f"{name} shards"] == [[2, 2, 3]]
        assert facts[f"{name} read"] == ["device"]
    assert facts["size"] > 1
    assert max(facts["gaps"]) < 2e-6
