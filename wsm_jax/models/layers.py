"""Layers shared by the model families, as Flax NNX modules with float32 parameters.

Shapes in names: B batch, T sequence, D d_model, F feed-forward width, H heads, G heads of keys and values, K head
dimension, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from wsm_jax.models import rotary
from wsm_jax.models.cache import Past, attend

INIT_STD = 0.02
PRODUCT = "product"  # what a policy of recomputation calls the results of matrices


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


@jax.custom_vjp
def gelu_new(x: jax.Array) -> jax.Array:
    """GELU as OpenAI's GPT-2 approximates it, 0.5 x (1 + tanh(...)); keeps its derivative as :func:`gelu` does."""
    return _gelu_new_forward(x)[0]


def _gelu_new_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x32, slope = x.astype(jnp.float32), (2.0 / jnp.pi) ** 0.5
    tanh = jnp.tanh(slope * (x32 + 0.044715 * x32**3))
    derivative = 0.5 * (1.0 + tanh) + 0.5 * x32 * (1.0 - tanh * tanh) * slope * (1.0 + 3 * 0.044715 * x32**2)
    return (0.5 * x32 * (1.0 + tanh)).astype(x.dtype), derivative.astype(x.dtype)


gelu_new.defvjp(_gelu_new_forward, _gelu_backward)

ACTIVATIONS = {"gelu": gelu, "gelu_new": gelu_new}


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """``silu(gate) * up``, computed in float32; keeps its two arguments for the backward pass and no more."""
    gate32 = gate.astype(jnp.float32)
    return (gate32 * jax.nn.sigmoid(gate32) * up.astype(jnp.float32)).astype(gate.dtype)


def _swiglu_forward(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return swiglu(gate, up), (gate, up)


def _swiglu_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate, up, g32 = *(x.astype(jnp.float32) for x in saved), g.astype(jnp.float32)
    share = jax.nn.sigmoid(gate)
    d_gate = g32 * up * share * (1.0 + gate * (1.0 - share))
    return d_gate.astype(g.dtype), (g32 * gate * share).astype(g.dtype)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


def zeros(size: int) -> nnx.Param:
    """A float32 bias."""
    return nnx.Param(jnp.zeros((size,), jnp.float32))


def along_last(parameter: nnx.Param, rank: int) -> jax.Array:
    """A parameter of one axis as the last one of ``rank``."""
    return jnp.reshape(parameter[...], (1,) * (rank - 1) + (-1,))


class LayerNorm(nnx.Module):
    """LayerNorm; statistics, scale and bias in float32 whatever the compute dtype."""

    def __init__(self, d_model: int, eps: float = 1e-5, bias: bool = False):
        self.scale = nnx.Param(jnp.ones((d_model,), jnp.float32))
        self.bias = zeros(d_model) if bias else None
        self.eps = eps

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        x = x_BxTxD.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps) * along_last(self.scale, x.ndim)
        if self.bias is not None:
            y = y + along_last(self.bias, x.ndim)
        return y.astype(x_BxTxD.dtype)


class RMSNorm(nnx.Module):
    """RMSNorm of Llama: the mean square in float32, the scale multiplied in the compute dtype."""

    def __init__(self, size: int, eps: float):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(axis=-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * along_last(self.scale, x.ndim).astype(x.dtype)


class Linear(nnx.Module):
    """Matrix product, with or without a bias, computed in the dtype of its input."""

    def __init__(self, d_in: int, d_out: int, rngs: nnx.Rngs, std: float = INIT_STD, bias: bool = False):
        self.kernel = normal(rngs.params(), (d_in, d_out), std)
        self.bias = zeros(d_out) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = checkpoint_name(matmul(x, self.kernel[...].astype(x.dtype)), PRODUCT)
        return y if self.bias is None else y + along_last(self.bias, y.ndim).astype(x.dtype)


class CausalAttention(nnx.Module):
    """Multi-head causal self-attention with one fused projection for queries, keys and values."""

    def __init__(
        self, d_model: int, heads: int, implementation: str, out_std: float, rngs: nnx.Rngs, bias: bool = False
    ):
        self.qkv = Linear(d_model, 3 * d_model, rngs, bias=bias)
        self.out = Linear(d_model, d_model, rngs, out_std, bias)
        self.heads = heads
        self.implementation = implementation

    def __call__(
        self, x_BxTxD: jax.Array, segments: jax.Array | None = None, past: Past | None = None
    ) -> tuple[jax.Array, Past | None]:
        B, T, D = x_BxTxD.shape
        qkv = self.qkv(x_BxTxD).reshape(B, T, 3, -1, D // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        y_BxTxHxK, past = attend(q, k, v, self.implementation, segments, past)
        return self.out(y_BxTxHxK.reshape(B, T, -1)), past


class RotaryAttention(nnx.Module):
    """Causal self-attention with rotary positions; each of its heads of keys and values serves a group of queries.

    The projections are apart, so that each can be cut by heads.

    Args:
      d_model, heads, kv_heads, head_dim: D, H, G and K.
      implementation: as :func:`causal_attention` has it.
      out_std: standard deviation of the last projection's initial values.
      rngs: source of the initial values.
      qkv_bias, out_bias: whether the projections have biases.
      qk_norm: epsilon of an RMSNorm over each head's queries and keys, before they are turned; None: no such norm.
      std: as ``out_std``, of the other projections.
    """

    def __init__(
        self, d_model: int, heads: int, kv_heads: int, head_dim: int, implementation: str, out_std: float,
        rngs: nnx.Rngs, *, qkv_bias: bool = False, out_bias: bool = False, qk_norm: float | None = None,
        std: float = INIT_STD,
    ):  # fmt: skip
        self.q = Linear(d_model, heads * head_dim, rngs, std, qkv_bias)
        self.k = Linear(d_model, kv_heads * head_dim, rngs, std, qkv_bias)
        self.v = Linear(d_model, kv_heads * head_dim, rngs, std, qkv_bias)
        self.out = Linear(heads * head_dim, d_model, rngs, out_std, out_bias)
        self.q_norm = None if qk_norm is None else RMSNorm(head_dim, qk_norm)
        self.k_norm = None if qk_norm is None else RMSNorm(head_dim, qk_norm)
        self.head_dim = head_dim
        self.implementation = implementation

    def __call__(
        self, x_BxTxD: jax.Array, rotation: rotary.Tables, segments: jax.Array | None, past: Past | None
    ) -> tuple[jax.Array, Past | None]:
        B, T, _ = x_BxTxD.shape
        q, k, v = (project(x_BxTxD).reshape(B, T, -1, self.head_dim) for project in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotary.rotate(q, rotation), rotary.rotate(k, rotation)
        y_BxTxHxK, past = attend(q, k, v, self.implementation, segments, past)
        return self.out(y_BxTxHxK.reshape(B, T, -1)), past


class GeluMLP(nnx.Module):
    """Two linear layers of width 4 D with a GELU between them."""

    def __init__(self, d_model: int, out_std: float, rngs: nnx.Rngs, *, bias: bool = False, activation: str = "gelu"):
        self.up = Linear(d_model, 4 * d_model, rngs, bias=bias)
        self.down = Linear(4 * d_model, d_model, rngs, out_std, bias)
        self.activation = activation

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.activation](self.up(x_BxTxD)))


class SwiGLU(nnx.Module):
    """Gated feed-forward of width F: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, d_model: int, d_ff: int, out_std: float, rngs: nnx.Rngs, std: float = INIT_STD):
        self.gate = Linear(d_model, d_ff, rngs, std)
        self.up = Linear(d_model, d_ff, rngs, std)
        self.down = Linear(d_ff, d_model, rngs, out_std)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        return self.down(swiglu(self.gate(x_BxTxD), self.up(x_BxTxD)))
