"""The model as a function: sizes, causality, equivalent formulations, gradients against a plain reference."""

import dataclasses
import functools
import math
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.parameters import drawn
from wsm_jax.config import ModelConfig
from wsm_jax.errors import UsageError
from wsm_jax.models import layers, model, presets
from wsm_jax.models.attention import BLOCK, causal_attention
from wsm_jax.parallel import sharding

SMALL = ModelConfig(layers=3, d_model=32, heads=4, context=80, vocab_size=128)  # 80 = one attention block and a part


def tokens(rows: int = 2, config: ModelConfig = SMALL, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, config.vocab_size, (rows, config.context + 1)).astype(np.int32)


def loss_and_grads(config: ModelConfig, params: Any, batch: Any) -> tuple[jax.Array, Any]:
    built = model.build(config)

    def mean_loss(params: Any) -> jax.Array:
        return model.mean_loss(built, params, batch[:, :-1], batch[:, 1:])

    return jax.jit(jax.value_and_grad(mean_loss))(params)


def initialised(config: ModelConfig, seed: int = 0) -> Any:
    return jax.jit(model.build(config).init)(jax.random.key(seed))


def trained_like(config: ModelConfig, seed: int = 0) -> Any:
    """Parameters ten times as large as fresh ones, so that attention and GELU leave their linear range."""
    params = drawn(model.build(config), seed)
    return jax.tree.map(lambda x: x * 10 if x.ndim > 2 else x, params)


def assert_close(a: Any, b: Any, rtol: float) -> None:
    """Every leaf of ``a`` within ``rtol`` of ``b``, relative to the largest element of the leaf."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(y).max())


def plain_logits(params: Any, inputs: Any, heads: int) -> jax.Array:
    """GPT-2 written out with nothing but jax.numpy, one layer at a time."""

    def norm(x, scale):
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale

    x = params["token_embedding"][inputs] + params["position_embedding"][: inputs.shape[1]]
    B, T, D = x.shape
    for i in range(params["blocks"]["norm1"]["scale"].shape[0]):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        h = norm(x, block["norm1"]["scale"]) @ block["attention"]["qkv"]["kernel"]
        q, k, v = (part.reshape(B, T, heads, -1) for part in jnp.split(h, 3, axis=-1))
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / jnp.sqrt(D // heads)
        scores = jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -jnp.inf)
        y = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores, axis=-1), v).reshape(B, T, D)
        x = x + y @ block["attention"]["out"]["kernel"]
        h = norm(x, block["norm2"]["scale"]) @ block["mlp"]["up"]["kernel"]
        x = x + (h * 0.5 * (1 + jax.scipy.special.erf(h / math.sqrt(2)))) @ block["mlp"]["down"]["kernel"]
    return norm(x, params["final_norm"]["scale"]) @ params["token_embedding"].T


@pytest.mark.parametrize("attention", [pytest.param("xla", marks=pytest.mark.integration), "blocks"])
def test_loss_and_gradients_equal_a_plain_reference(attention):
    params, batch = trained_like(SMALL), tokens()

    def reference(params):
        logp = jax.nn.log_softmax(plain_logits(params, batch[:, :-1], SMALL.heads))
        return -jnp.take_along_axis(logp, batch[:, 1:, None], axis=-1).mean()

    loss, grads = loss_and_grads(dataclasses.replace(SMALL, attention=attention), params, batch)
    with jax.numpy_rank_promotion("allow"):
        expected_loss, expected = jax.jit(jax.value_and_grad(reference))(params)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert_close(grads, expected, 1e-4)


@pytest.mark.integration
@pytest.mark.parametrize(
    "change",
    [
        {"scan_unroll": 3},
        {"remat": "full"},
        {"attention": "blocks", "remat": "dots"},
        {"remat": "offload"},
        {"loss_blocks": 4},
        {"loss_blocks": 80},
    ],
)
def test_equivalent_formulations_agree(change):
    params, batch = trained_like(SMALL), tokens()
    loss, grads = loss_and_grads(dataclasses.replace(SMALL, **change), params, batch)
    expected_loss, expected = loss_and_grads(SMALL, params, batch)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert_close(grads, expected, 1e-4)


MORE = [pytest.param(length, marks=pytest.mark.integration) for length in (BLOCK - 1, BLOCK, 3 * BLOCK)]


@pytest.mark.parametrize("length", [1, BLOCK + 1, *MORE])
def test_block_attention_equals_dot_product_attention(length):
    q, k, v, g = jax.random.normal(jax.random.key(0), (4, 2, length, 3, 8))

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(kind, q, k, v, g):
        y, pull = jax.vjp(lambda q, k, v: causal_attention(q, k, v, kind), q, k, v)
        return y, pull(g)

    (y, mine), (expected, theirs) = (value_and_gradients(kind, q, 10 * k, v, g) for kind in ("blocks", "xla"))
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for own, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-4)


def test_gelu_equals_jax_nn_gelu():
    x = jnp.linspace(-8, 8, 1001)
    np.testing.assert_allclose(layers.gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    grad, expected = (jax.grad(lambda x, f=f: f(x).sum())(x) for f in (layers.gelu, lambda x: jax.nn.gelu(x, False)))
    np.testing.assert_allclose(grad, expected, atol=1e-6)


@pytest.mark.parametrize("attention", ["xla", "blocks"])
def test_future_tokens_cannot_change_logits(attention):
    config = dataclasses.replace(SMALL, attention=attention)
    params, apply = trained_like(config), jax.jit(model.build(config).apply)
    first = tokens()[:, :-1]
    for cut in (1, 63, 64, 70):
        second = first.copy()
        second[:, cut:] = (second[:, cut:] + 1) % config.vocab_size
        a, b = apply(params, first), apply(params, second)
        np.testing.assert_array_equal(a[:, :cut], b[:, :cut])
        assert not np.allclose(a[:, cut], b[:, cut])


@pytest.mark.integration
@pytest.mark.parametrize(("attention", "loss_blocks"), [("xla", 1), ("blocks", 4)])
def test_bfloat16_is_close_to_float32_and_logits_stay_float32(attention, loss_blocks):
    config = dataclasses.replace(SMALL, attention=attention, loss_blocks=loss_blocks)
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    params, batch = initialised(config), tokens(4)
    assert jax.eval_shape(model.build(half).apply, params, batch[:, :-1]).dtype == jnp.float32
    loss, grads = loss_and_grads(half, params, batch)
    expected_loss, expected = loss_and_grads(config, params, batch)
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-3)
    assert_close(grads, expected, 5e-2)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


@pytest.mark.integration
def test_blocks_of_the_loss_keep_no_logits_of_the_whole_batch():
    config = dataclasses.replace(SMALL, vocab_size=8192, loss_blocks=8)
    params, batch = drawn(model.build(config)), tokens(8, config)

    def held(config: ModelConfig) -> int:
        built = model.build(config)
        step = jax.jit(jax.grad(lambda p: model.mean_loss(built, p, batch[:, :-1], batch[:, 1:])))
        analysis = step.lower(params).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    logits = 4 * 8 * config.context * config.vocab_size
    assert held(config) < 0.8 * logits < held(dataclasses.replace(config, loss_blocks=1))


@pytest.mark.integration
def test_gradients_do_not_depend_on_the_number_of_devices():
    program = "from tests.models import test_model as t; [t.compare_devices(*a) for a in (('xla', 1), ('blocks', 4))]"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    root = pathlib.Path(__file__).parent.parent.parent
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=root, check=True)


@pytest.mark.integration
def test_the_loss_of_each_token_comes_of_blocks_too():
    config = dataclasses.replace(SMALL, vocab_size=8192)
    params, batch = drawn(model.build(config)), tokens(8, config)
    losses, held = [], []
    for blocks in (1, 8):
        built = model.build(dataclasses.replace(config, loss_blocks=blocks))
        step = (
            jax.jit(functools.partial(model.loss_per_token, built)).lower(params, batch[:, :-1], batch[:, 1:]).compile()
        )
        losses.append(step(params, batch[:, :-1], batch[:, 1:]))
        analysis = step.memory_analysis()
        assert analysis is not None
        held.append(analysis.temp_size_in_bytes)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    logits = 4 * 8 * config.context * config.vocab_size
    assert held[1] < 0.8 * logits < held[0]


def compare_devices(attention: str, loss_blocks: int) -> None:
    """Gradients on eight devices against those on one; runs in a process that has eight."""
    assert jax.device_count() == 8
    config = dataclasses.replace(SMALL, attention=attention, loss_blocks=loss_blocks)
    params, batch = trained_like(config), tokens(jax.device_count())
    mesh = sharding.make_mesh()
    spread = jax.device_put(batch, NamedSharding(mesh, P(sharding.DATA)))
    loss, grads = loss_and_grads(config, jax.device_put(params, sharding.replicated(mesh)), spread)
    expected_loss, expected = loss_and_grads(config, params, batch)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert_close(grads, expected, 1e-4)


def test_initial_loss_is_that_of_a_uniform_guess():
    loss, _ = loss_and_grads(SMALL, initialised(SMALL, 1), tokens(8))
    assert float(loss) == pytest.approx(math.log(SMALL.vocab_size), abs=0.05)


def test_the_embedding_is_also_the_output_projection():
    built = model.build(SMALL)
    params = drawn(built)
    row = 7
    changed = params | {"token_embedding": params["token_embedding"].at[row].multiply(2.0)}
    inputs: Any = np.where(tokens()[:, :-1] == row, 0, tokens()[:, :-1])  # the row is never looked up
    before, after = built.apply(params, inputs), built.apply(changed, inputs)
    np.testing.assert_allclose(after[..., row], 2 * before[..., row], rtol=1e-5, atol=1e-6)
    others = np.arange(SMALL.vocab_size) != row
    np.testing.assert_allclose(after[..., others], before[..., others], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gpt2_small", 124_373_760), ("gpt2_medium", 354_599_936), ("gpt2_large", 773_582_080)],
)
def test_preset_parameter_counts(name, expected):
    shapes = jax.eval_shape(model.build(presets.preset(name)).init, jax.random.key(0))
    assert model.parameter_count(shapes) == expected


def test_only_runs_of_old_pad_a_vocabulary_that_is_given():
    given, none = (dataclasses.replace(SMALL, vocab_size=size) for size in (300, 0))
    assert presets.with_vocabulary(given, 257).vocab_size == 300
    assert presets.with_vocabulary(given, 257, pad_given=True).vocab_size == 384
    assert (
        presets.with_vocabulary(none, 257).vocab_size == presets.with_vocabulary(none, 257, pad_given=True).vocab_size
    )
    with pytest.raises(UsageError, match="smaller than the tokenizer's 301"):
        presets.with_vocabulary(given, 301)


def test_flops_per_token_of_gpt2_small():
    config = presets.gpt2_small()
    expected = 6 * (124_373_760 - 1024 * 768) + 12 * 12 * 768 * 1024
    assert model.flops_per_token(config, 124_373_760) == expected


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"family": "no-such"}, "model.family"),
        ({"layers": 0}, "model.layers"),
        ({"vocab_size": 0}, "model.vocab_size"),
        ({"heads": 5}, "model.heads"),
        ({"compute_dtype": "float16"}, "model.compute_dtype"),
        ({"attention": "flash"}, "model.attention"),
        ({"loss_blocks": 3}, "model.loss_blocks"),
        ({"loss_blocks": 0}, "model.loss_blocks"),
        ({"scan_unroll": 0}, "model.scan_unroll"),
    ],
)
def test_a_shape_that_cannot_work_names_its_field(change, field):
    with pytest.raises(UsageError, match=field):
        model.build(dataclasses.replace(SMALL, **change))
