"""The update rules on a small real model: what is decayed, and the same numbers as optax's own optimizers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsm_jax.config import ModelConfig, OptimizerConfig
from wsm_jax.errors import UsageError
from wsm_jax.models import family
from wsm_jax.models.model import build
from wsm_jax.training.optimizer import NAMES, averaged_params, decay_mask, make

LR, DECAY = 0.01, 0.1
MATRICES = {
    ("blocks", "attention", "out", "kernel"),
    ("blocks", "attention", "qkv", "kernel"),
    ("blocks", "mlp", "down", "kernel"),
    ("blocks", "mlp", "up", "kernel"),
}
EMBEDDINGS = {("position_embedding",), ("token_embedding",)}
LEAVES = family.of(ModelConfig()).leaves(ModelConfig())
MASK = functools.partial(decay_mask, leaves=LEAVES)
# Muon and Lion compile other operations than AdamW and SGD.
OFTEN = [pytest.param(n, marks=pytest.mark.integration) if n in ("muon", "lion") else n for n in NAMES]
NORMS = {("blocks", "norm1", "scale"), ("blocks", "norm2", "scale"), ("final_norm", "scale")}


@pytest.fixture(scope="module")
def params():
    """The leaves of a small GPT-2; random numbers, since compiling its initialisation takes seconds."""
    model = build(ModelConfig(layers=2, d_model=16, heads=2, context=8, vocab_size=128))
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: jnp.asarray(0.5 * random.standard_normal(x.shape), x.dtype),
        jax.eval_shape(model.init, jax.random.key(0)),
    )


@pytest.fixture(scope="module")
def gradients(params):
    """Three gradients, each a tenth of the one before."""
    random = np.random.default_rng(0)

    def draw(size):
        return jax.tree.map(lambda x: jnp.asarray(size * random.standard_normal(x.shape), jnp.float32), params)

    return [draw(size) for size in (1.0, 0.1, 0.01)]


def leaves(tree):
    """{keys on the way to the leaf: leaf}."""
    return {tuple(k.key for k in path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def path_of(optimizer, params, gradients):
    """Parameters after each of the updates, one with each gradient."""
    state, path = optimizer.init(params), []
    for gradient in gradients:  # not under jit: operations compiled once serve all tests
        step, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, step)
        path.append(leaves(params))
    return path


def trained(optimizer, params, gradients):
    """Parameters after one update with each gradient."""
    return path_of(optimizer, params, gradients)[-1]


def ours(schedule=None, **fields):
    config = OptimizerConfig(**{"peak_lr": LR, "weight_decay": DECAY, "clip_norm": 0.0, **fields})
    return make(config, schedule or optax.constant_schedule(LR), LEAVES)


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(found[path], wanted[path], err_msg=str(path))


# --- the decay mask --------------------------------------------------------------------------------------------------


def test_the_mask_holds_matrices_and_embeddings_but_no_norm_although_stacked_norms_have_two_axes(params):
    mask = leaves(decay_mask(params, LEAVES))
    assert {path for path, decayed in mask.items() if decayed} == MATRICES | EMBEDDINGS
    assert {path for path, decayed in mask.items() if not decayed} == NORMS
    assert leaves(params)["blocks", "norm1", "scale"].ndim == 2


def test_the_mask_needs_shapes_only(params):
    assert MASK(jax.eval_shape(lambda: params)) == MASK(params)


@pytest.mark.parametrize("name", OFTEN)
def test_every_rule_has_the_form_theta_minus_lr_times_direction_plus_decayed_theta(name, params, gradients):
    """theta <- theta - lr (u + wd theta) on matrices, theta - lr u on norms, with u what the rule does undecayed."""
    start, first = leaves(params), gradients[:1]
    plain, decayed, half = (
        trained(ours(optax.constant_schedule(lr), name=name, weight_decay=wd), params, first)
        for lr, wd in ((LR, 0.0), (LR, DECAY), (LR / 2, DECAY))
    )
    for path in start:
        shrunk = 0.0 if path in NORMS else LR * DECAY * start[path]
        assert np.abs(plain[path] - start[path]).max() > 1e-4
        np.testing.assert_allclose(plain[path] - decayed[path], shrunk, rtol=0, atol=3e-7, err_msg=str(path))
        # The rate multiplies direction and decay alike: what a schedule scales is the whole update.
        np.testing.assert_allclose(
            2 * (half[path] - start[path]), decayed[path] - start[path], rtol=0, atol=6e-7, err_msg=str(path)
        )


@pytest.mark.parametrize("name", OFTEN)
def test_the_schedule_is_read_at_the_count_of_the_update(name, params, gradients):
    """A rate of zero at updates 0 and 2 leaves the parameters where they are."""
    optimizer = ours(lambda count: jnp.where(count == 1, LR, 0.0), name=name)
    one, two, three = path_of(optimizer, params, gradients)
    assert_same(one, leaves(params))
    assert_same(three, two)
    for path in two:
        assert np.abs(two[path] - one[path]).max() > 1e-5, path


# --- beside optax ----------------------------------------------------------------------------------------------------


def schedule(count):
    return LR / (1.0 + count)


def test_adamw_is_optaxs_adamw(params, gradients):
    theirs = optax.adamw(schedule, b1=0.8, b2=0.9, eps=1e-6, weight_decay=DECAY, mask=MASK)
    assert_same(
        trained(ours(schedule, name="adamw", b1=0.8, b2=0.9, eps=1e-6), params, gradients),
        trained(theirs, params, gradients),
    )


def test_lion_is_optaxs_lion(params, gradients):
    theirs = optax.lion(schedule, b1=0.8, b2=0.9, weight_decay=DECAY, mask=MASK)
    assert_same(
        trained(ours(schedule, name="lion", b1=0.8, b2=0.9), params, gradients), trained(theirs, params, gradients)
    )


def test_sgd_is_optaxs_sgd_with_momentum_and_decoupled_decay(params, gradients):
    theirs = optax.sgd(schedule, momentum=0.8)
    plain = trained(ours(schedule, name="sgd", b1=0.8, weight_decay=0.0), params, gradients)
    assert_same(plain, trained(theirs, params, gradients))
    # Decoupled: the decay is not part of the momentum. By hand on one matrix.
    path = ("token_embedding",)
    theta, momentum = leaves(params)[path].astype(np.float64), 0.0
    for count, gradient in enumerate(gradients):
        momentum = 0.8 * momentum + leaves(gradient)[path]
        theta = theta - schedule(count) * (momentum + DECAY * theta)
    found = trained(ours(schedule, name="sgd", b1=0.8), params, gradients)[path]
    np.testing.assert_allclose(found, theta, rtol=1e-5, atol=1e-7)


def orthogonalised(x):
    """Five quintic Newton-Schulz steps towards the nearest orthogonal matrix (Jordan's coefficients)."""
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x


def test_muon_moves_each_layers_matrices_by_muon_and_embeddings_and_norms_by_adam(params, gradients):
    found = trained(ours(schedule, name="muon", b1=0.8, b2=0.9, weight_decay=0.0), params, gradients)
    start, slopes = leaves(params), [leaves(gradient) for gradient in gradients]
    for path in MATRICES:
        for layer in range(2):  # layers share nothing: each is a matrix of its own
            theta, momentum = start[path][layer].astype(np.float64), 0.0
            for count, slope in enumerate(slopes):
                g = slope[path][layer].astype(np.float64)
                momentum = 0.8 * momentum + 0.2 * g
                nesterov = 0.8 * momentum / (1 - 0.8 ** (count + 2)) + 0.2 * g / (1 - 0.8 ** (count + 1))
                theta = theta - schedule(count) * 0.2 * np.sqrt(max(g.shape)) * orthogonalised(nesterov)
            np.testing.assert_allclose(found[path][layer], theta, rtol=0, atol=2e-6, err_msg=str(path))
    adam = optax.nadam(schedule, b1=0.8, b2=0.9)  # the Adam inside optax's muon has Nesterov momentum
    others = trained(adam, params, gradients)
    for path in EMBEDDINGS | NORMS:
        np.testing.assert_allclose(found[path], others[path], rtol=0, atol=1e-7, err_msg=str(path))
    assert EMBEDDINGS | NORMS | MATRICES == set(start)


def test_muons_first_update_is_nearly_orthogonal_with_the_size_of_adams(params, gradients):
    found, start = trained(ours(name="muon", weight_decay=0.0), params, gradients[:1]), leaves(params)
    for path in MATRICES:
        step = (found[path] - start[path]) / LR
        assert np.sqrt(np.mean(step**2)) == pytest.approx(0.2, rel=0.25), path
        for layer in step:
            values = np.linalg.svd(layer, compute_uv=False)
            assert values.max() / values.min() < 2.5, path
    slope = np.linalg.svd(leaves(gradients[0])["blocks", "attention", "out", "kernel"][0], compute_uv=False)
    assert slope.max() / slope.min() > 5  # the gradient itself is nothing like it


# --- the schedule-free baseline --------------------------------------------------------------------------------------


@pytest.mark.integration
def test_schedule_free_is_optaxs_and_what_is_evaluated_is_its_average(params, gradients):
    fields = {"name": "schedule_free", "b1": 0.9, "b2": 0.95, "eps": 1e-6}
    mine = ours(**fields, weight_decay=0.0)
    theirs = optax.contrib.schedule_free_adamw(LR, b1=0.9, b2=0.95, eps=1e-6)
    assert_same(trained(mine, params, gradients), trained(theirs, params, gradients))
    state, other, y = mine.init(params), theirs.init(params), params
    for gradient in gradients:
        _, other = theirs.update(gradient, other, y)
        step, state = mine.update(gradient, state, y)
        y = optax.apply_updates(y, step)
    averaged = averaged_params(state, y)
    assert_same(leaves(averaged), leaves(optax.contrib.schedule_free_eval_params(other, y)))
    assert np.abs(leaves(averaged)["token_embedding",] - leaves(y)["token_embedding",]).max() > 1e-4
    # Norms are not decayed, matrices are.
    decayed = trained(ours(**fields), params, gradients)
    for path, leaf in trained(mine, params, gradients).items():
        assert np.array_equal(leaf, decayed[path]) == (path in NORMS), path


@pytest.mark.parametrize("name", NAMES)
def test_no_other_rule_averages(name, params):
    assert averaged_params(ours(name=name).init(params), params) is None


# --- clipping --------------------------------------------------------------------------------------------------------


def test_a_gradient_above_the_norm_is_scaled_down_as_a_whole_and_one_below_is_left(params, gradients):
    start, slopes = leaves(params), leaves(gradients[0])
    norm = np.sqrt(sum(np.sum(slope.astype(np.float64) ** 2) for slope in slopes.values()))
    for limit, factor in ((norm / 4, 0.25), (norm * 4, 1.0), (0.0, 1.0)):
        found = trained(ours(name="sgd", b1=0.0, weight_decay=0.0, clip_norm=float(limit)), params, gradients[:1])
        for path in start:
            np.testing.assert_allclose(found[path] - start[path], -LR * factor * slopes[path], rtol=1e-3, atol=2e-7)


def test_weight_decay_is_not_clipped(params, gradients):
    """Clipping acts on the gradient: with next to nothing left of it, the decay is still whole."""
    found = trained(ours(name="sgd", b1=0.0, clip_norm=1e-8), params, gradients[:1])["token_embedding",]
    np.testing.assert_allclose(found, (1 - LR * DECAY) * leaves(params)["token_embedding",], rtol=1e-6)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam"}, r"optimizer\.name 'adam'.*adamw.*lion.*muon.*sgd"),
        ({"peak_lr": 0.0}, r"optimizer\.peak_lr is 0\.0"),
        ({"peak_lr": -1e-3}, r"optimizer\.peak_lr is -0\.001"),
        ({"peak_lr": float("nan")}, r"optimizer\.peak_lr is nan"),
        ({"peak_lr": float("inf")}, r"optimizer\.peak_lr is inf"),
        ({"b1": 1.0}, r"optimizer\.b1 is 1\.0; it must be at least 0 and below 1"),
        ({"b2": -0.1}, r"optimizer\.b2 is -0\.1"),
        ({"eps": -1e-8}, r"optimizer\.eps is -1e-08"),
        ({"weight_decay": -0.1}, r"optimizer\.weight_decay is -0\.1"),
        ({"weight_decay": float("nan")}, r"optimizer\.weight_decay is nan"),
        ({"clip_norm": -1.0}, r"optimizer\.clip_norm is -1\.0"),
        ({"name": "schedule_free", "b1": 0.0}, r"optimizer\.b1 is 0\.0; schedule_free interpolates"),
    ],
)
def test_settings_out_of_range(fields, message):
    with pytest.raises(UsageError, match=message):
        ours(**fields)
