"""What depends on the backend: the attention that ``auto`` is, a kernel for TPUs, moves to the host's memory."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from wsm_jax import UsageError
from wsm_jax.config import ModelConfig
from wsm_jax.models import attention, model


@pytest.mark.parametrize(
    ("backend", "length", "dtype", "name"),
    [
        ("gpu", 100, "bfloat16", "cudnn"),
        ("gpu", 100, "float32", "xla"),
        ("tpu", 256, "float32", "splash"),
        ("tpu", 100, "float32", "xla"),
        ("cpu", 256, "bfloat16", "xla"),
    ],
)
def test_auto_is_the_kernel_of_the_backend(monkeypatch, backend, length, dtype, name):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert attention.chosen("auto", length, dtype) == name
    assert attention.chosen("blocks", length, dtype) == "blocks"


@pytest.mark.parametrize(("name", "needs"), [("cudnn", "an NVIDIA GPU"), ("splash", "a TPU")])
def test_a_kernel_of_another_backend_is_refused_and_evaluated_by_xla(name, needs):
    fields = ModelConfig(vocab_size=128, attention=name, compute_dtype="bfloat16")
    with pytest.raises(UsageError, match=rf"model.attention={name} needs {needs}, this is cpu; choose xla"):
        model.check(fields)
    assert model.family.of(fields).portable(fields).attention == "xla"


@pytest.mark.parametrize("segments", [False, True])
def test_splash_lowers_for_a_tpu_forward_and_backward(segments):
    q, k = (jax.ShapeDtypeStruct((2, 256, heads, 64), jnp.bfloat16) for heads in (4, 2))
    marks = jnp.zeros((2, 256), jnp.int32) if segments else None

    def total(q, k, v):
        return attention.causal_attention(q, k, v, "splash", marks).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, k)
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") == 2


@pytest.mark.integration
@pytest.mark.parametrize(("platform", "moves"), [("cuda", 2), ("tpu", 2), ("cpu", 0)])
def test_offload_moves_the_stream_between_layers_to_the_host_and_back(platform, moves):
    """In one scan of layers forward and one backward; a CPU has one memory, so nothing moves there."""
    fields = ModelConfig(layers=3, d_model=32, heads=4, context=16, vocab_size=128, remat="offload")

    def lowered(fields):
        built = model.build(fields)
        params, tokens = jax.eval_shape(built.init, jax.random.key(0)), jax.ShapeDtypeStruct((2, 16), jnp.int32)
        gradient = jax.jit(jax.grad(lambda params, tokens: model.mean_loss(built, params, tokens, tokens)))
        return gradient.trace(params, tokens).lower(lowering_platforms=(platform,)).as_text()

    text = lowered(fields)
    assert text.count("annotate_device_placement") == moves
    assert ("pinned_host" in text) == (moves > 0)
    assert "annotate_device_placement" not in lowered(dataclasses.replace(fields, remat="full"))
