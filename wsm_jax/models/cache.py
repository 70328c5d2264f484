"""Keys and values of the tokens before, kept so that the next token need not compute them again.

Rows of a batch end at the same slot: a shorter one has padding before its first token, on the left. So new keys and
values go to one slot, and who sees whom is told by where each row begins.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from wsm_jax.models.attention import causal_attention
from wsm_jax.parallel.activations import spread
from wsm_jax.parallel.sharding import BATCH


class Past(NamedTuple):
    """Of one layer.

    Attributes:
      keys, values: [B, G, S, K], a slot for each token; None before the prompt.
      first: int32 [B], the slot of each row's first token; those before are padding.
      filled: int32 scalar, slots that are taken.
    """

    keys: jax.Array | None
    values: jax.Array | None
    first: jax.Array
    filled: jax.Array


class Cache(NamedTuple):
    """Of all layers, as a pytree; a layer's arrays are its own, so that no step copies them out of a stack.

    Attributes:
      keys, values: a layer each [B, G, S, K], in the compute dtype; empty before the prompt.
      first, filled: as :class:`Past`.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    first: jax.Array
    filled: jax.Array

    def layer(self, i: int) -> Past:
        """What layer ``i`` has kept."""
        kept = (self.keys[i], self.values[i]) if self.keys else (None, None)
        return Past(*kept, self.first, self.filled)


def empty(first: jax.Array) -> Cache:
    """Before the prompt, whose rows begin at ``first``, int32 [B]."""
    return Cache((), (), first, jnp.zeros((), jnp.int32))


def gathered(layers: list[Past], tokens: int) -> Cache:
    """The cache after ``tokens`` more, of what each layer has kept."""
    keys, values = (tuple(part) for part in zip(*((past.keys, past.values) for past in layers), strict=True))
    return Cache(keys, values, layers[0].first, layers[0].filled + tokens)


def with_slots(cache: Cache, slots: int) -> Cache:
    """``cache`` with empty slots after its own, ``slots`` in all."""

    def padded(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, slots - x.shape[2]), (0, 0)))

    return cache._replace(keys=tuple(map(padded, cache.keys)), values=tuple(map(padded, cache.values)))


def positions(cache: Cache, tokens: int) -> jax.Array:
    """Of the next ``tokens`` tokens of each row, int32 [B, T], counted from its first; 0 at padding."""
    slots = cache.filled + jnp.arange(tokens, dtype=jnp.int32)
    return jnp.maximum(slots[None] - cache.first[:, None], 0)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, implementation: str, segments: jax.Array | None, past: Past | None
) -> tuple[jax.Array, Past | None]:
    """Causal attention of tokens to themselves and to those in ``past``.

    Args:
      q: [B, T, H, K].
      k, v: [B, T, G, K].
      implementation: as :func:`causal_attention` has it; tokens after a prompt have one of their own.
      segments: int [B, T], as there; not with tokens after a prompt.
      past: the tokens before; None where nothing is kept, as in training.

    Returns:
      [B, T, H, K] in the dtype of ``v``, and ``past`` with the keys and values of these tokens.
    """
    if past is None:
        return causal_attention(q, k, v, implementation, segments), None
    new_k, new_v = (spread(jnp.swapaxes(x, 1, 2), BATCH, "kv") for x in (k, v))
    if past.keys is None or past.values is None:
        return causal_attention(q, k, v, implementation, segments), past._replace(keys=new_k, values=new_v)
    keys, values = (
        jax.lax.dynamic_update_slice_in_dim(kept, new, past.filled, axis=2)
        for kept, new in ((past.keys, new_k), (past.values, new_v))
    )
    past = past._replace(keys=keys, values=values)
    return _to_slots(q, keys, values, past), past


def _to_slots(q: jax.Array, keys: jax.Array, values: jax.Array, past: Past) -> jax.Array:
    """Attention of q [B, T, H, K], at the slots from ``past.filled`` on, to what its row has up to there."""
    B, T, H, K = q.shape
    G, S = keys.shape[1:3]
    # The queries that share a head of keys are rows of one product.
    rows = jnp.moveaxis(q.reshape(B, T, G, H // G, K), 1, 3).reshape(B, G, H // G * T, K)
    scores = jnp.einsum("bgrk,bgsk->bgrs", rows * K**-0.5, keys, preferred_element_type=jnp.float32)
    slot, own = jnp.arange(S)[None, None], past.filled + jnp.arange(T)[None, :, None]
    seen = (slot >= past.first[:, None, None]) & (slot <= own)
    hidden = jnp.tile(jnp.where(seen, 0.0, jnp.finfo(jnp.float32).min / 2), (1, H // G, 1))
    weight = jax.nn.softmax(scores + hidden[:, None], axis=-1).astype(values.dtype)
    y = jnp.einsum("bgrs,bgsk->bgrk", weight, values, preferred_element_type=jnp.float32).astype(values.dtype)
    return jnp.moveaxis(y.reshape(B, G, H // G, T, K), 3, 1).reshape(B, T, H, K)
