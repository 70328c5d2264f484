"""The training loss in blocks of the sequence, so that the logits of a batch never exist as a whole."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from wsm_jax.models.layers import matmul

Saved = tuple[jax.Array, jax.Array]


def token_cross_entropy(x: jax.Array, kernel: jax.Array, targets: jax.Array, blocks: int) -> jax.Array:
    """Cross-entropy in nats of every target, float32 [B, T]; arguments as for :func:`mean_cross_entropy`."""

    def block(part: Saved) -> jax.Array:
        x, targets = part
        logits: Any = matmul(x, kernel, jnp.dtype("float32"))
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - picked

    if blocks <= 1:
        return block((x, targets))
    parts = jax.tree.map(lambda a: jnp.stack(jnp.split(a, blocks, axis=1)), (x, targets))
    return jnp.moveaxis(jax.lax.map(jax.checkpoint(block), parts), 0, 1).reshape(targets.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def mean_cross_entropy(x: jax.Array, kernel: jax.Array, targets: jax.Array, blocks: int) -> jax.Array:
    """Mean over all tokens of the cross-entropy of ``x @ kernel``, with its gradient computed on the way.

    Both directions of a block are done while its logits are in the cache; what is kept for the backward pass has the
    size of ``x`` and of ``kernel``, where the logits of the whole batch are V / D times as large as ``x``.

    Args:
      x: [B, T, D], the network's last hidden states.
      kernel: [D, V] of the dtype of ``x``.
      targets: int [B, T].
      blocks: parts into which T is cut, a divisor of T. Cutting T and not B leaves a batch on its devices.

    Returns:
      nats a token, float32 scalar.
    """
    return _forward(x, kernel, targets, blocks)[0]


def _forward(x: jax.Array, kernel: jax.Array, targets: jax.Array, blocks: int) -> tuple[jax.Array, Saved]:
    B, T, D = x.shape
    share = 1.0 / (B * T)

    def cut(array: jax.Array) -> jax.Array:
        return jnp.moveaxis(array.reshape(B, blocks, T // blocks, *array.shape[2:]), 1, 0)

    def block(carry: Saved, part: Saved) -> tuple[Saved, jax.Array]:
        (loss, d_kernel), (x, targets) = carry, part
        rows, targets = x.reshape(-1, D), targets.reshape(-1, 1)
        logits = jnp.matmul(rows, kernel, preferred_element_type=jnp.float32)
        shifted = logits - logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(shifted)
        total = weights.sum(axis=-1, keepdims=True)
        loss += jnp.sum(jnp.log(total) - jnp.take_along_axis(shifted, targets, axis=-1))
        hit = jnp.arange(logits.shape[-1])[None] == targets
        d_logits = (weights * (share / total) - jnp.where(hit, share, 0.0)).astype(rows.dtype)
        d_kernel += jax.lax.dot_general(rows, d_logits, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return (loss, d_kernel), (d_logits @ kernel.T).reshape(x.shape)

    start = (jnp.zeros(()), jnp.zeros(kernel.shape, jnp.float32))
    (loss, d_kernel), d_x = jax.lax.scan(block, start, (cut(x), cut(targets)))
    return loss * share, (jnp.moveaxis(d_x, 0, 1).reshape(x.shape), d_kernel.astype(kernel.dtype))


def _backward(blocks: int, saved: Saved, g: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    del blocks
    d_x, d_kernel = saved
    return g.astype(d_x.dtype) * d_x, g.astype(d_kernel.dtype) * d_kernel, None


mean_cross_entropy.defvjp(_forward, _backward)
