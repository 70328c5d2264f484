"""Attention with grouped heads and with segments, in every implementation that a CPU runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsm_jax.models.attention import BLOCK, causal_attention

B, T, H, G, K = 2, BLOCK + 6, 6, 2, 8


@pytest.mark.parametrize("with_segments", [False, True])
def test_grouped_heads_and_segments_are_those_of_the_plain_formula(with_segments):
    q, k, v, g = (jax.random.normal(jax.random.key(i), (B, T, heads, K)) for i, heads in enumerate((H, G, G, H)))
    segments = jnp.asarray(np.arange(T)[None] // np.array([[9], [BLOCK]]))  # borders inside a block and between two
    given = segments if with_segments else None

    def plain(q, k, v):
        k, v = (jnp.stack([x[:, :, head * G // H] for head in range(H)], axis=2) for x in (k, v))
        seen = jnp.tril(jnp.ones((T, T), bool))[None]
        if with_segments:
            seen = seen & (segments[:, :, None] == segments[:, None])
        scores = jnp.where(seen[:, None], jnp.einsum("bthk,bshk->bhts", q, k) * K**-0.5, -jnp.inf)
        return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores, axis=-1), v)

    def value_and_gradients(attend):
        y, pull = jax.vjp(attend, q, k, v)
        return y, *pull(g)

    expected = jax.jit(lambda: value_and_gradients(plain))()
    for kind in ("xla", "blocks"):
        found = jax.jit(lambda kind=kind: value_and_gradients(lambda q, k, v: causal_attention(q, k, v, kind, given)))()
        for own, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(own, other, atol=2e-5, err_msg=kind)
