"""Attention by backend: what ``auto`` is where, and a kernel for TPUs that lowers without one."""

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
