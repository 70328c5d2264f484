"""How the next token is chosen from its logits: the largest, or a draw from the likeliest."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsm_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of the choice; the default takes the token with the largest logit.

    Attributes:
      temperature: what logits are divided by; 0 = no draw, the largest is taken.
      top_k: tokens that are drawn from, the likeliest; 0 = all.
      top_p: of these, the fewest likeliest whose probabilities sum to so much; 1 = all.
      seed: of the draws; a prompt's depend on this and its number alone, not on what it is in a batch with.

    Raises:
      UsageError: a value out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature is {self.temperature}; it must be at least 0 (0 takes the likeliest token)")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; it must be at least 0 (0 draws from all tokens)")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (1 draws from all tokens)")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed is {self.seed}; it must be from 0 to {2**32 - 1}")

    @property
    def kind(self) -> "Kind":
        """What has to be compiled for it."""
        return Kind(self.temperature == 0, self.top_k, self.top_p < 1)

    @property
    def values(self) -> "Values":
        """What the same program is given."""
        numbers = {"temperature": np.float32(self.temperature), "top_p": np.float32(self.top_p)}
        return {**numbers, "seed": np.uint32(self.seed)}


Values = Mapping[str, Any]  # temperature, top_p and seed, scalars


class Kind(NamedTuple):
    """The part of the settings that programs differ in."""

    greedy: bool
    top_k: int
    nucleus: bool


def row_keys(seed: jax.Array, numbers: jax.Array) -> jax.Array:
    """A key for each row, of the seed and the number of its prompt, int [B]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)


def choose(logits: jax.Array, keys: jax.Array, kind: Kind, values: Values) -> jax.Array:
    """A token for each row, int32 [B].

    Args:
      logits: float32 [B, V].
      keys: of this token, one for each row.
      kind, values: the two parts of a :class:`Sampling`.
    """
    if kind.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / values["temperature"]
    if not kind.top_k and not kind.nucleus:
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    # Sorted, the likeliest first; tokens that are equally likely in the order of their numbers.
    logits, tokens = jax.lax.top_k(logits, min(kind.top_k or logits.shape[-1], logits.shape[-1]))
    if kind.nucleus:
        share = jax.nn.softmax(logits, axis=-1)
        logits = jnp.where(jnp.cumsum(share, axis=-1) - share < values["top_p"], logits, -jnp.inf)
    drawn = jax.vmap(jax.random.categorical)(keys, logits)
    return jnp.take_along_axis(tokens, drawn[:, None], axis=-1)[:, 0]
