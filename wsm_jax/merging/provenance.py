"""The record of a merge: what went in, with which weights, made by what."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsm_jax.core.leaf_weights import Weights
from wsm_jax.io import machine


def record(weights: Weights, **more: Any) -> dict[str, Any]:
    """A JSON-ready record of a merge; ``offline.write`` adds the inputs with their fingerprints.

    Args:
      weights: one vector, or a mapping path -> vector.
      more: whatever else identifies the merge, e.g. curve, count, interval, steps.
    """
    return {**more, "weights": as_lists(weights), **machine.environment()}


def as_lists(weights: Weights, inputs: Sequence[int] | None = None) -> Any:
    """Weights, those of ``inputs`` (default: all), as JSON holds them."""
    chosen = slice(None) if inputs is None else list(inputs)
    if isinstance(weights, Mapping):
        return {path: np.asarray(vector)[chosen].tolist() for path, vector in weights.items()}
    return np.asarray(weights)[chosen].tolist()


def weight_of(weights: Weights, number: int) -> dict[str, float]:
    """``{"weight": that of the input}``; nothing where every leaf has weights of its own."""
    return {} if isinstance(weights, Mapping) else {"weight": float(weights[number])}
