"""Layers shared by the model families, as Flax NNX modules with float32 parameters.

Shapes in names: B batch, T sequence, D d_model, F feed-forward width, H heads, K head dimension, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from wsm_jax.models.attention import causal_attention

INIT_STD = 0.02


def normal(key: jax.Array, shape: tuple[int, ...], std: float = INIT_STD) -> nnx.Param:
    """A float32 parameter drawn from N(0, std^2)."""
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """``x @ kernel`` for x [..., in] and kernel [in, out] of one dtype, with a gradient that runs fast on CPU.

    JAX's own rule computes the kernel's gradient transposed and turns it back; XLA:CPU then writes the incoming
    gradient out column by column, together with the elementwise work that made it. Written as x^T g over flat rows
    nothing is transposed: forward and backward of one feed-forward layer 302 -> 128 CPU-ms (width 256, 4,096 tokens).

    Args:
      x: left operand.
      kernel: right operand.
      dtype: of the result, default that of ``x``; the gradient is multiplied in the dtype of ``x`` either way.
    """
    return jnp.matmul(x, kernel, preferred_element_type=dtype)


def _matmul_forward(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype | None):
    return matmul(x, kernel, dtype), (x, kernel)


def _matmul_backward(dtype: jnp.dtype | None, saved: tuple[jax.Array, jax.Array], g: jax.Array):
    x, kernel = saved
    g = g.astype(x.dtype)
    # Contracting two axes at once instead of flat rows costs XLA:CPU a copy (195 against 137 CPU-ms).
    rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return (g_rows @ kernel.T).reshape(x.shape), jax.lax.dot_general(rows, g_rows, (((0,), (0,)), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x Phi(x); its derivative is computed in the forward pass and saved in the place of x.

    One tensor is kept, as for x itself, where JAX's rule keeps three on CPU: a feed-forward layer 128 -> 111 CPU-ms.
    """
    return _gelu_forward(x)[0]


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x32 = x.astype(jnp.float32)
    cdf = 0.5 * (1.0 + jax.lax.erf(x32 * 0.5**0.5))
    density = jnp.exp(-0.5 * jnp.square(x32)) * (2.0 * jnp.pi) ** -0.5
    return (x32 * cdf).astype(x.dtype), (cdf + x32 * density).astype(x.dtype)


def _gelu_backward(derivative: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (derivative * g,)


gelu.defvjp(_gelu_forward, _gelu_backward)


class LayerNorm(nnx.Module):
    """LayerNorm without bias; statistics in float32 whatever the compute dtype."""

    def __init__(self, d_model: int, eps: float = 1e-5):
        self.scale = nnx.Param(jnp.ones((d_model,), jnp.float32))
        self.eps = eps

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        x = x_BxTxD.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        scale = jnp.reshape(self.scale[...], (1, 1, -1))
        return (centred * jax.lax.rsqrt(variance + self.eps) * scale).astype(x_BxTxD.dtype)


class Linear(nnx.Module):
    """Matrix product without bias, computed in the dtype of its input."""

    def __init__(self, d_in: int, d_out: int, rngs: nnx.Rngs, std: float = INIT_STD):
        self.kernel = normal(rngs.params(), (d_in, d_out), std)

    def __call__(self, x: jax.Array) -> jax.Array:
        return matmul(x, self.kernel[...].astype(x.dtype))


class CausalAttention(nnx.Module):
    """Multi-head causal self-attention with one fused projection for queries, keys and values."""

    def __init__(self, d_model: int, heads: int, implementation: str, out_std: float, rngs: nnx.Rngs):
        self.qkv = Linear(d_model, 3 * d_model, rngs)
        self.out = Linear(d_model, d_model, rngs, out_std)
        self.heads = heads
        self.implementation = implementation

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        B, T, D = x_BxTxD.shape
        qkv = self.qkv(x_BxTxD).reshape(B, T, 3, self.heads, D // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        y_BxTxHxK = causal_attention(q, k, v, self.implementation)
        return self.out(y_BxTxHxK.reshape(B, T, D))


class GeluMLP(nnx.Module):
    """Two linear layers of width 4 D with an exact GELU between them."""

    def __init__(self, d_model: int, out_std: float, rngs: nnx.Rngs):
        self.up = Linear(d_model, 4 * d_model, rngs)
        self.down = Linear(4 * d_model, d_model, rngs, out_std)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        return self.down(gelu(self.up(x_BxTxD)))
