"""Causal self-attention: ``jax.nn.dot_product_attention`` (xla, cudnn), JAX's kernel for TPUs (splash), or query blocks
for CPUs (blocks)."""

from typing import Any

import jax
import jax.numpy as jnp

from wsm_jax.parallel import activations, chips
from wsm_jax.parallel.sharding import BATCH

AUTO = "auto"
IMPLEMENTATIONS = (AUTO, "xla", "cudnn", "splash", "blocks")
BACKENDS = {"cudnn": "gpu", "splash": "tpu"}  # what needs which
TILE = 128  # positions, at least, of a block of splash, and what they are a multiple of
BLOCK = 64  # queries; 32 and 128 are slower at contexts of 128 and 256


def chosen(implementation: str, length: int, dtype: Any) -> str:
    """What computes attention where ``auto`` is asked for: this backend's kernel, or xla; any other name is itself.

    Args:
      implementation: one of ``IMPLEMENTATIONS``.
      length: T.
      dtype: of queries, keys and values.
    """
    if implementation != AUTO:
        return implementation
    backend = chips.backend()
    if backend == "gpu" and jnp.dtype(dtype) == jnp.bfloat16:
        return "cudnn"
    return "splash" if backend == "tpu" and length % TILE == 0 else "xla"


def causal_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, implementation: str, segments: jax.Array | None = None
) -> jax.Array:
    """Softmax attention of every position to itself and the positions before it.

    Args:
      q: [B, T, H, K].
      k, v: [B, T, G, K]; head h of the queries sees head h // (H / G) of these.
      implementation: one of ``IMPLEMENTATIONS``; ``blocks`` suits CPUs and contexts up to a few thousand.
      segments: int [B, T]; a position sees those of its own segment only. None: one segment.

    Returns:
      [B, T, H, K] in the dtype of ``v``; the softmax is float32.
    """
    implementation = chosen(implementation, q.shape[1], q.dtype)
    if implementation == "blocks":
        return _blockwise(q, k, v, segments)
    if implementation == "splash":
        return activations.by_device(_splash, q, k, v, segments, like=k, axes=(BATCH, None, "heads"))
    library: Any = implementation  # its type lists the names one by one
    mask = None if segments is None else (segments[:, :, None] == segments[:, None])[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation=library)


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None) -> jax.Array:
    """JAX's flash attention for TPUs; its kernel cannot be partitioned, so each device runs it on its own part."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    length, heads = q.shape[1:3]
    block = next(size for size in (512, 256, TILE, length) if length % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    blocks: dict[str, Any] = dict.fromkeys(names, block)
    sizes = library.BlockSizes(**blocks, use_fused_bwd_kernel=True)
    mask = library.MultiHeadMask([library.CausalMask((length, length))] * heads)
    kernel = library.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * q.shape[3] ** -0.5, k, v))
    marks = () if segments is None else (library.SegmentIds(segments, segments),)
    y: Any = jax.vmap(kernel)(q, k, v, *marks)
    return jnp.swapaxes(y, 1, 2)


def _blockwise(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None) -> jax.Array:
    """Blocks of queries against the keys they may see: the scores above the diagonal blocks are never computed.

    Forward and backward 68 instead of 141 CPU-ms (16 sequences, 8 heads of 32, context 256, two cores).
    """
    B, T, H, K = q.shape
    G = k.shape[2]
    q = jnp.moveaxis(q.reshape(B, T, G, H // G, K), 1, 3)
    k, v = (jnp.swapaxes(x, 1, 2) for x in (k, v))
    blocks = []
    for start in range(0, T, BLOCK):
        end = min(start + BLOCK, T)
        seen = None if segments is None else segments[:, start:end, None] == segments[:, None, :end]
        blocks.append(_last_queries(q[:, :, :, start:end], k[:, :, :end], v[:, :, :end], seen))
    return jnp.moveaxis(jnp.concatenate(blocks, axis=3), 3, 1).reshape(B, T, H, K)


@jax.custom_vjp
def _last_queries(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array | None) -> jax.Array:
    """Attention of q [B, G, R, T, K], the last T of S positions, to k and v [B, G, S, K]; R query heads share a key.

    ``seen``, boolean [B, T, S], says which of the positions before they may see.
    """
    return _forward(q, k, v, seen)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array | None):
    B, G, R, T, K = q.shape
    S = k.shape[2]
    visible = (jnp.arange(S - T, S)[:, None] >= jnp.arange(S)[None])[None]
    visible = visible if seen is None else visible & seen
    rows = q.reshape(B, G, R * T, K)  # the queries that share keys are rows of one product
    scores = jnp.einsum("bhtk,bhsk->bhts", rows * K**-0.5, k, preferred_element_type=jnp.float32)
    hidden = jnp.where(visible, 0.0, jnp.finfo(jnp.float32).min / 2)
    scores = scores + jnp.tile(hidden, (1, R, 1))[:, None]
    weight = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    # Dividing by the sum is left to the [T, K] side, which saves passes over the [T, S] side in both directions.
    total = weight.sum(axis=-1, keepdims=True)
    weight = weight.astype(v.dtype)
    y = (jnp.einsum("bhts,bhsk->bhtk", weight, v, preferred_element_type=jnp.float32) / total).astype(v.dtype)
    return y.reshape(q.shape), (rows, k, v, weight, total, y)


def _backward(saved: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, weight, total, y = saved
    shape, scale = g.shape, q.shape[3] ** -0.5
    g = (g.reshape(y.shape) / total).astype(v.dtype)
    inner = (g * y).sum(axis=-1, keepdims=True, dtype=jnp.float32)
    d_weight = jnp.einsum("bhtk,bhsk->bhts", g, v, preferred_element_type=jnp.float32)
    d_scores = (weight * (d_weight - inner)).astype(q.dtype)
    d_q = jnp.einsum("bhts,bhsk->bhtk", d_scores, k) * scale
    d_k = jnp.einsum("bhts,bhtk->bhsk", d_scores, q * scale)
    return d_q.reshape(shape), d_k, jnp.einsum("bhts,bhtk->bhsk", weight, g), None


_last_queries.defvjp(_forward, _backward)
