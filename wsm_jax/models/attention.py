"""Causal self-attention: ``jax.nn.dot_product_attention`` (xla, cudnn), or query blocks for CPUs (blocks)."""

from typing import Any

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("xla", "cudnn", "blocks")
BLOCK = 64  # queries; 32 and 128 are slower at contexts of 128 and 256


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str) -> jax.Array:
    """Softmax attention of every position to itself and the positions before it.

    Args:
      q, k, v: [B, T, H, K] each.
      implementation: one of ``IMPLEMENTATIONS``; ``blocks`` suits CPUs and contexts up to a few thousand.

    Returns:
      [B, T, H, K] in the dtype of ``v``; the softmax is float32.
    """
    if implementation == "blocks":
        return _blockwise(q, k, v)
    library: Any = implementation  # its type lists the names one by one
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=library)


def _blockwise(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Blocks of queries against the keys they may see: the scores above the diagonal blocks are never computed.

    Forward and backward 68 instead of 141 CPU-ms (16 sequences, 8 heads of 32, context 256, two cores).
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    ends = [min(start + BLOCK, q.shape[2]) for start in range(0, q.shape[2], BLOCK)]
    blocks = [_last_queries(q[:, :, e - 1 - (e - 1) % BLOCK : e], k[:, :, :e], v[:, :, :e]) for e in ends]
    return jnp.swapaxes(jnp.concatenate(blocks, axis=2), 1, 2)


@jax.custom_vjp
def _last_queries(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention of q [B, H, T, K], the last T of S positions, to k and v [B, H, S, K]."""
    return _forward(q, k, v)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array):
    T, S, K = q.shape[2], k.shape[2], q.shape[3]
    visible = jnp.arange(S - T, S)[:, None] >= jnp.arange(S)[None]
    scores = jnp.einsum("bhtk,bhsk->bhts", q * K**-0.5, k, preferred_element_type=jnp.float32)
    scores = scores + jnp.where(visible, 0.0, jnp.finfo(jnp.float32).min / 2)[None, None]
    weight = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    # Dividing by the sum is left to the [T, K] side, which saves passes over the [T, S] side in both directions.
    total = weight.sum(axis=-1, keepdims=True)
    weight = weight.astype(v.dtype)
    y = (jnp.einsum("bhts,bhsk->bhtk", weight, v, preferred_element_type=jnp.float32) / total).astype(v.dtype)
    return y, (q, k, v, weight, total, y)


def _backward(saved: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v, weight, total, y = saved
    scale = q.shape[3] ** -0.5
    g = (g / total).astype(v.dtype)
    inner = (g * y).sum(axis=-1, keepdims=True, dtype=jnp.float32)
    d_weight = jnp.einsum("bhtk,bhsk->bhts", g, v, preferred_element_type=jnp.float32)
    d_scores = (weight * (d_weight - inner)).astype(q.dtype)
    d_q = jnp.einsum("bhts,bhsk->bhtk", d_scores, k) * scale
    d_k = jnp.einsum("bhts,bhtk->bhsk", d_scores, q * scale)
    return d_q, d_k, jnp.einsum("bhts,bhtk->bhsk", weight, g)


_last_queries.defvjp(_forward, _backward)
