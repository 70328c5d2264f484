"""What is to hold of every dense family: packed sequences, bfloat16, training, leaves, counts, refusals."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parameters import drawn
from wsm_jax.cli import config_flags
from wsm_jax.config import ModelConfig
from wsm_jax.errors import UsageError
from wsm_jax.models import family, layers, model
from wsm_jax.models.llama import LlamaFields
from wsm_jax.models.neox import NeoxFields

TINY = Path(__file__).parent.parent.parent / "configs" / "tiny.py"
CONTEXT, VOCABULARY = 24, 64
SMALL: Any = {"layers": 2, "d_model": 32, "heads": 4, "context": CONTEXT, "vocab_size": VOCABULARY}
FAMILIES = {
    "gpt2": ModelConfig(**SMALL, bias=True, activation="gelu_new"),
    "neox": NeoxFields(**SMALL),
    "llama": LlamaFields(**SMALL, kv_heads=2, head_dim=6, qkv_bias=True, qk_norm=True, tied=True),
}
every_family = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)


def tokens(rows: int) -> Any:
    return np.random.default_rng(0).integers(0, VOCABULARY, (rows, CONTEXT + 1)).astype(np.int32)


def parameters(config: Any) -> Any:
    """Initial ones, the matrices larger, so that it matters who sees whom."""
    params = drawn(model.build(config))
    return jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim == 3 else leaf, params)


@pytest.mark.integration
@every_family
def test_packed_documents_answer_as_each_alone(config):
    forward: Any = jax.jit(model.build(config).hidden)
    params, alone = parameters(config), tokens(2)[:, : CONTEXT // 2]
    places = np.arange(CONTEXT // 2)
    found, _ = forward(
        params,
        alone.reshape(1, CONTEXT),
        positions=np.concatenate([places, places])[None],
        segments=np.repeat([3, 1], CONTEXT // 2)[None],
    )
    expected, _ = forward(params, alone)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)
    unmarked, _ = forward(params, alone.reshape(1, CONTEXT))
    assert np.abs(unmarked.reshape(expected.shape)[1] - expected[1]).max() > 0.1


@pytest.mark.integration
@every_family
def test_it_learns_and_bfloat16_begins_where_it_begins(config):
    half, batch, params = dataclasses.replace(config, compute_dtype="bfloat16"), tokens(8), parameters(config)

    def losses(config: Any, params: Any) -> jax.Array:
        return model.loss_per_token(model.build(config), params, batch[:, :-1], batch[:, 1:])

    def mean(params: Any) -> tuple[jax.Array, jax.Array]:
        each = losses(config, params)
        return each.mean(), each

    @jax.jit
    def step(params: Any) -> tuple[Any, np.ndarray]:
        (_, each), gradients = jax.value_and_grad(mean, has_aux=True)(params)
        return jax.tree.map(lambda leaf, slope: leaf - 0.01 * jnp.sign(slope), params, gradients), each

    rounded, found = np.asarray(jax.jit(lambda params: losses(half, params))(params)), []
    for _ in range(10):
        params, each = step(params)
        found.append(np.asarray(each))
    assert 0 < np.abs(rounded - found[0]).mean() < 0.05 < np.std(found[0])
    assert found[-1].mean() < found[0].mean() - 0.5


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(**SMALL, bias=True),
        LlamaFields(**SMALL),
        LlamaFields(**SMALL, tied=True, qkv_bias=True, qk_norm=True),
    ],
)
def test_the_leaves_of_every_option_are_declared(config):
    built = model.build(config)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    family.check_leaves(built.leaves, shapes)
    vectors = {path for path in built.leaves if path.rpartition("/")[2] in ("bias", "scale")}
    assert {path for path, leaf in built.leaves.items() if not leaf.decayed} == vectors
    assert all(leaf.muon is None for path, leaf in built.leaves.items() if not leaf.stacked or path in vectors)


def test_flops_count_what_is_multiplied():
    D, L, V, T = SMALL["d_model"], SMALL["layers"], VOCABULARY, CONTEXT
    attention = 12 * L * D * T
    assert model.flops_per_token(NeoxFields(**SMALL), 10_000) == 6 * (10_000 - V * D) + attention
    assert model.flops_per_token(LlamaFields(**SMALL), 10_000) == 6 * (10_000 - V * D) + attention
    wide = LlamaFields(**SMALL, tied=True, head_dim=2 * D // SMALL["heads"])
    assert model.flops_per_token(wide, 10_000) == 6 * 10_000 + 2 * attention


def test_the_default_width_of_llamas_feed_forward_is_a_multiple_of_64():
    for d_model, width in ((32, 128), (96, 256), (768, 2048)):
        built = model.build(LlamaFields(**{**SMALL, "d_model": d_model}))
        shapes = jax.eval_shape(built.init, jax.random.key(0))
        assert shapes["blocks"]["mlp"]["up"]["kernel"].shape == (2, d_model, width)


@pytest.mark.parametrize(
    ("own", "reference"),
    [
        (lambda x: layers.gelu_new(x), lambda x: jax.nn.gelu(x, approximate=True)),
        (lambda x: layers.swiglu(x, x[::-1]), lambda x: jax.nn.silu(x) * x[::-1]),
    ],
)
def test_activations_and_their_slopes_are_jaxs(own, reference):
    x = jnp.linspace(-8, 8, 1001)
    np.testing.assert_allclose(own(x), reference(x), atol=1e-5)
    slope, expected = (jax.grad(lambda x, f=f: (f(x) * jnp.cos(x)).sum())(x) for f in (own, reference))
    np.testing.assert_allclose(slope, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(**SMALL, activation="relu"), "model.activation is 'relu'; choose gelu, gelu_new"),
        (NeoxFields(**SMALL, rotary_pct=0.4), "rotates 3 of the 8 features of a head; it must be an even number"),
        (NeoxFields(**SMALL, rotary_pct=0.0), "model.rotary_pct=0.0 rotates 0"),
        (NeoxFields(**SMALL, rotary_pct=1.5), "model.rotary_pct=1.5 rotates 12"),
        (NeoxFields(**SMALL | {"heads": 5}), "model.d_model=32 is not a multiple of model.heads=5"),
        (NeoxFields(**SMALL, norm_eps=0.0), "model.norm_eps is 0.0; it must be positive"),
        (LlamaFields(**SMALL, kv_heads=3), "model.heads=4 is not a multiple of model.kv_heads=3"),
        (LlamaFields(**SMALL, kv_heads=-1), "model.kv_heads is -1"),
        (LlamaFields(**SMALL, head_dim=7), "a head has 7 features; positions rotate pairs"),
        (LlamaFields(**SMALL | {"heads": 5}), "model.d_model=32 is not a multiple of model.heads=5"),
        (LlamaFields(**SMALL | {"heads": 0}), "model.heads is 0"),
        (LlamaFields(**SMALL, rope_theta=-1.0), "model.rope_theta is -1.0; it must be positive"),
        (LlamaFields(**SMALL, rope_low=4.0), "model.rope_low=4.0 must be below model.rope_high=4.0"),
        (LlamaFields(**SMALL, attention="cudnn"), "model.attention=cudnn needs an NVIDIA GPU"),
    ],
)
def test_fields_that_make_no_network_are_refused_in_one_line(config, message):
    with pytest.raises(UsageError) as error:
        model.build(config)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_options_are_those_of_the_chosen_family():
    def load(*options: str) -> Any:
        return config_flags.load([f"--config={TINY}", *(f"--config.model.{option}" for option in options)]).model

    chosen = load("family=llama", "kv_heads=2", "qk_norm=true")
    assert (type(chosen), chosen.kv_heads, chosen.qk_norm, chosen.context) == (LlamaFields, 2, True, 256)
    for options in (("rotary_pct=0.5",), ("family=llama", "rotary_pct=0.5"), ("family=neox", "kv_heads=2")):
        with pytest.raises(UsageError, match=f"unknown option --config.model.{options[-1].split('=')[0]}"):
            load(*options)
