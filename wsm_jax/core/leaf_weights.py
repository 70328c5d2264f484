"""Which checkpoint counts how much in which leaf: one vector for all, one a leaf, or one a rule on its path."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsm_jax.core.leaves import FIRST, LAST, Leaf, few
from wsm_jax.errors import UsageError

# One vector for all leaves, one for each leaf by its path ("blocks/mlp/up/kernel"), or (regular expression on the path,
# vector) pairs, of which the first that matches decides.
Weights = Any


def weight_vectors(weights: Weights, paths: Sequence[str], count: int) -> dict[str, np.ndarray]:
    """path -> float64 [count], checked.

    Args:
      weights: one vector, a mapping from every path to its vector, or (regular expression, vector) pairs.
      paths: leaves that are averaged.
      count: number of checkpoints.

    Raises:
      UsageError: a wrong length, a weight that is not finite, weights that are all zero, a path without weights.
    """
    if is_ruled(weights):
        weights = _vectors_by_rule(weights, paths)
    if isinstance(weights, Mapping):
        missing = [path for path in paths if path not in weights]
        if missing:
            raise UsageError(f"no weights for leaf {missing[0]}")
        per_path = {path: weights[path] for path in paths}
    else:
        per_path = dict.fromkeys(paths, weights)
    checked = {}
    for path, vector in per_path.items():
        checked[path] = np.asarray(vector, np.float64)
        if checked[path].shape != (count,):
            raise UsageError(f"{count} checkpoints need {count} weights, got shape {checked[path].shape} for {path}")
        bad = np.flatnonzero(~np.isfinite(checked[path]))
        if bad.size:
            raise UsageError(f"weight {bad[0]} for {path} is {checked[path][bad[0]]}; it must be a finite number")
        if not checked[path].any():
            raise UsageError(f"the weights for {path} are all zero; one at least must not be (a mean: {1 / count:.6g})")
    return checked


def with_texts(
    results: Mapping[str, Leaf],
    policies: Mapping[str, str],
    inputs: Sequence[Mapping[str, Leaf]],
    vectors: Mapping[str, np.ndarray],
) -> dict[str, Leaf]:
    """The leaves of one merge's result, strings with the value that the first or last input with a weight has."""
    first, last = window_ends(vectors, len(inputs))
    ends = {FIRST: inputs[first], LAST: inputs[last]}
    return {path: leaf if leaf.text is None else ends[policies[path]][path] for path, leaf in results.items()}


def is_ruled(weights: Weights) -> bool:
    """Whether ``weights`` are (regular expression, vector) pairs."""
    return (
        isinstance(weights, Sequence)
        and bool(weights)
        and all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in weights)
    )


def _vectors_by_rule(rules: Sequence[tuple[str, Any]], paths: Sequence[str]) -> dict[str, Any]:
    """path -> the vector of the first rule whose expression is found in it; a path that none matches is left out.

    Raises:
      UsageError: an expression that is none, or that matches no path.
    """
    for pattern, _ in rules:
        try:
            matches = any(re.search(pattern, path) for path in paths)
        except re.error as error:
            raise UsageError(f"weights for {pattern!r}: no regular expression ({error})") from error
        if not matches:
            raise UsageError(f"weights for {pattern!r}: no averaged leaf matches; they are {few(dict.fromkeys(paths))}")
    found = {path: next((v for pattern, v in rules if re.search(pattern, path)), None) for path in paths}
    return {path: vector for path, vector in found.items() if vector is not None}


def window_ends(vectors: Mapping[str, np.ndarray], count: int) -> tuple[int, int]:
    """The first and last of :func:`used`, where ``first`` and ``last`` leaves come from."""
    numbers = used(vectors, count)
    return numbers[0], numbers[-1]


def used(vectors: Mapping[str, np.ndarray], count: int) -> list[int]:
    """Which of ``count`` checkpoints have a weight.

    Args:
      vectors: path -> weights; where there is none, or all are zero, every checkpoint counts.
      count: number of checkpoints.
    """
    return [i for i in range(count) if any(vector[i] for vector in vectors.values())] or list(range(count))
