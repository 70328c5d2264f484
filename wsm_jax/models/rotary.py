"""Rotary position embedding (Su et al. 2021) in the half-split layout of GPT-NeoX and Llama."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

Tables = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the slow rotations to a longer context.

    Attributes:
      factor: what rotations that turn fewer than ``low`` times in the original context are slowed down by.
      low: turns in the original context up to which a rotation is slowed down by the whole factor.
      high: turns from which on it is left alone; between the two the change is gradual.
      original_context: tokens of the context before.
    """

    factor: float
    low: float
    high: float
    original_context: int


def frequencies(width: int, theta: float, scaling: Llama3Scaling | None = None) -> np.ndarray:
    """Angle of each pair of features per token, float32 [width / 2], computed as transformers does.

    Args:
      width: features that are rotated, an even number.
      theta: base of the geometric series of wavelengths.
      scaling: None, or how the slow ones change.
    """
    found = (1.0 / np.float32(theta) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))).astype(
        "float32"
    )
    if scaling is None:
        return found
    turns = scaling.original_context * found.astype(np.float64) / (2 * np.pi)
    kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
    return ((1 - kept) * found / scaling.factor + kept * found).astype(np.float32)


def places(tokens: jax.Array, positions: jax.Array | None) -> jax.Array:
    """``positions``, int [B, T], or 0, 1, 2, ... for every sequence of ``tokens``, int [1, T]."""
    return jnp.arange(tokens.shape[1])[None] if positions is None else positions


def tables(positions: jax.Array, angles: np.ndarray, dtype: jnp.dtype) -> Tables:
    """Cosines and sines [B, T, 1, R / 2] of the rotations at ``positions`` (int [B, T]); computed in float32."""
    turned = positions.astype(jnp.float32)[..., None, None] * jnp.asarray(angles)[None, None, None]
    return jnp.cos(turned).astype(dtype), jnp.sin(turned).astype(dtype)


def rotate(x: jax.Array, rotation: Tables) -> jax.Array:
    """``x`` [B, T, H, K] with its first R features turned: feature i together with feature i + R / 2."""
    cos, sin = rotation
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*turned, rest] if rest.shape[-1] else turned, axis=-1)
