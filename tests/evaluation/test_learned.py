"""Learned weights: against least squares on the simplex, finite differences and the constraints they must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsm_jax import DECAYS, UsageError, merge, merge_weights
from wsm_jax.core.coefficients import wma_weights
from wsm_jax.evaluation.learned import combine, fit, mixture, on_simplex, vertices

COUNTS = st.integers(1, 9)


def distance(params, target):
    """Half the squared distance to the target: (sum, number of summands)."""
    squares = jax.tree.map(lambda x, y: 0.5 * jnp.sum((x - y) ** 2), params, target)
    return jax.tree.reduce(jnp.add, squares), jnp.ones(())


def problem(inside: bool, monotone: bool = False):
    """Five random checkpoints, a target, the closest weights allowed by enumeration, and whether a constraint binds."""
    random = np.random.default_rng(4)
    stacked = {"a": random.normal(size=(5, 4, 3)), "b": {"c": random.normal(size=(5, 6))}}
    flat = np.concatenate([stacked["a"].reshape(5, -1), stacked["b"]["c"]], axis=1)
    corners = vertices(5, monotone)
    shares = np.array([0.3, 0.1, 0.2, 0.15, 0.25])
    target = shares @ corners @ flat if inside else random.normal(size=18)
    points, best = corners @ flat, (np.inf, np.zeros(5), False)
    for mask in range(1, 32):  # the solution is the affine least-squares solution of some face
        face = np.flatnonzero([mask >> i & 1 for i in range(5)])
        system = np.block([[points[face] @ points[face].T, np.ones((len(face), 1))], [np.ones(len(face)), np.zeros(1)]])
        found = np.linalg.solve(system, np.append(points[face] @ target, 1.0))[:-1]
        error = np.sum((found @ points[face] - target) ** 2)
        if found.min() >= 0 and error < best[0]:
            best = error, found @ corners[face], len(face) < 5
    tree = {"a": target[:12].reshape(4, 3), "b": {"c": target[12:]}}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (stacked, tree)), best[1], best[2]


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("inside", [True, False])
def test_a_quadratic_loss_gives_constrained_least_squares(inside, monotone):
    (stacked, target), expected, binds = problem(inside, monotone)
    assert binds != inside
    found = fit(stacked, distance, [target], np.full(5, 0.2), steps=600, monotone=monotone)
    np.testing.assert_allclose(found.weights, expected, atol=2e-3)
    assert found.after < found.before
    best = distance(combine(stacked, jnp.asarray(expected, jnp.float32)), target)[0]
    assert found.after == pytest.approx(float(best), rel=1e-3, abs=1e-5)


def test_batches_of_unequal_size_count_by_their_summands():
    # Two targets, one with four times the summands of the other: the minimum is their weighted mean.
    stacked = {"x": jnp.asarray([[0.0], [1.0]])}

    def loss(params, batch):
        return jnp.sum(0.5 * batch["mask"] * (params["x"] - batch["target"]) ** 2), jnp.sum(batch["mask"])

    batches = [
        {"target": jnp.full(4, 0.2), "mask": jnp.asarray([1.0, 1.0, 1.0, 1.0])},
        {"target": jnp.full(4, 0.9), "mask": jnp.asarray([1.0, 0.0, 0.0, 0.0])},
    ]
    found = fit(stacked, loss, batches, np.full(2, 0.5), steps=600)
    assert found.weights[1] == pytest.approx((4 * 0.2 + 0.9) / 5, abs=5e-3)
    assert found.before == pytest.approx((4 * 0.3**2 + 0.4**2) / 10, rel=1e-6)


def test_the_gradient_is_that_of_finite_differences_and_the_inner_product_with_each_checkpoint():
    random = np.random.default_rng(0)
    stacked = {"w": random.normal(size=(4, 3, 3)), "s": random.normal(size=4)}
    weights = random.dirichlet(np.ones(4))

    def loss(params):
        return jnp.sum(jnp.tanh(params["w"] @ params["w"]) * params["s"]) ** 2

    with jax.enable_x64():
        stacked = jax.tree.map(jnp.asarray, stacked)
        gradient = jax.grad(lambda c: loss(combine(stacked, c)))(jnp.asarray(weights))
        inner = jax.grad(loss)(combine(stacked, jnp.asarray(weights)))
        products = [sum(np.vdot(inner[name], stacked[name][j]) for name in stacked) for j in range(4)]
        np.testing.assert_allclose(gradient, products, rtol=1e-12)
        for j in range(4):
            step = 1e-6 * np.eye(4)[j]
            difference = loss(combine(stacked, weights + step)) - loss(combine(stacked, weights - step))
            np.testing.assert_allclose(gradient[j], difference / 2e-6, rtol=1e-7, atol=1e-9)


def test_combine_is_the_merge_of_the_trees():
    random = np.random.default_rng(1)
    trees = [{"a": random.normal(size=(3, 2)).astype(np.float32), "b": np.float32(j)} for j in range(4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    weights = merge_weights("minus_sqrt", 4)
    ours, theirs = combine(stacked, jnp.asarray(weights, jnp.float32)), merge(trees, weights)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), ours, theirs)


# --- the constraints -------------------------------------------------------------------------------------------------


@given(arrays(np.float64, COUNTS, elements=st.floats(-60, 60)), st.booleans())
def test_any_logits_give_weights_that_keep_the_constraints(logits, monotone):
    weights = on_simplex(logits, vertices(len(logits), monotone))
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1.0, abs=1e-14)
    if monotone:
        assert np.diff(weights).min(initial=0) >= -1e-15
        scales = np.concatenate([[1.0], np.cumsum(weights[::-1])[::-1][1:], [0.0]])  # the emulated decay
        assert np.diff(scales, 2).max(initial=-1) <= 1e-14  # concave


@given(arrays(np.float64, COUNTS, elements=st.floats(0.001, 1)), st.booleans())
def test_every_point_of_the_set_is_reached(values, monotone):
    weights = np.sort(values) / values.sum() if monotone else values / values.sum()
    corners = vertices(len(values), monotone)
    np.testing.assert_allclose(mixture(weights, corners) @ corners, weights, atol=1e-9)


@pytest.mark.integration
@settings(max_examples=5)
@given(seed=st.integers(0, 1000), monotone=st.booleans(), count=st.integers(1, 5))
def test_a_fit_keeps_the_constraints_and_never_loses(seed, monotone, count):
    random = np.random.default_rng(seed)
    stacked = {"x": jnp.asarray(random.normal(size=(count, 7)), jnp.float32)}
    batches = [{"x": jnp.asarray(random.normal(size=7), jnp.float32)} for _ in range(3)]
    found = fit(stacked, distance, batches, merge_weights("linear", count), steps=20, monotone=monotone, seed=seed)
    assert found.weights.min() >= 0
    assert found.weights.sum() == pytest.approx(1.0, abs=1e-14)
    assert not monotone or np.diff(found.weights).min(initial=0) >= -1e-15
    assert found.after == min(loss for _, loss in found.losses) <= found.before
    assert [step for step, _ in found.losses] == list(range(0, 21, 2))


def test_the_monotone_set_holds_the_concave_decays_and_no_others():
    allowed = {"linear", "square"}
    for curve in DECAYS:
        if curve in allowed:
            mixture(merge_weights(curve, 8), vertices(8, monotone=True))
        else:
            with pytest.raises(UsageError, match=r"the start gives checkpoint \d .* monotone does not allow"):
                mixture(merge_weights(curve, 8), vertices(8, monotone=True))
    mixture(wma_weights(8), vertices(8, monotone=True))


def test_the_seed_decides_and_nothing_else():
    random = np.random.default_rng(3)
    stacked = {"x": jnp.asarray(random.normal(size=(4, 7)), jnp.float32)}
    batches = [{"x": jnp.asarray(random.normal(size=7), jnp.float32)} for _ in range(5)]
    first, again, other = (fit(stacked, distance, batches, np.full(4, 0.25), steps=13, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.weights, again.weights)
    assert first.losses == again.losses
    assert first.losses[-1] != other.losses[-1]


@pytest.mark.parametrize(
    ("start", "options", "words"),
    [
        ([0.5, 0.5], {"steps": 0}, "fit_steps=0 must be at least 1"),
        ([0.5, 0.5], {"seed": -1}, "fit_seed=-1 must be at least 0"),
        ([0.5, 0.5], {"checks": 0}, "checks=0"),
        ([0.5, 0.6], {}, "sum to 1.1, not to 1"),
        ([1.5, -0.5], {}, "must not be negative"),
        ([0.2, 0.3, 0.5], {}, "3 weights"),
        ([0.6, 0.4], {"monotone": True}, "more weight, 0.6, than checkpoint 1, 0.4"),
    ],
)
def test_bad_values_are_refused(start, options, words):
    with pytest.raises(UsageError, match=words):
        fit({"x": jnp.ones((2, 3))}, distance, [{"x": jnp.zeros(3)}], np.asarray(start), **options)


def test_nothing_to_fit_to_and_a_loss_that_is_not_finite_are_refused():
    with pytest.raises(UsageError, match="no batch"):
        fit({"x": jnp.ones((2, 3))}, distance, [], np.full(2, 0.5))
    with pytest.raises(UsageError, match=r"\[0.5, 0.5\] is inf"):
        fit({"x": jnp.full((2, 3), 1e30)}, distance, [{"x": jnp.zeros(3)}], np.full(2, 0.5))
