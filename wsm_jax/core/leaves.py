"""What a merge does with each leaf, and whether several checkpoints can be merged at all."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from wsm_jax.errors import UsageError

AVERAGE, LAST, FIRST, SKIP, ERROR = POLICIES = ("average", "last", "first", "skip", "error")

# One vector for all leaves, one for each leaf by its path ("blocks/mlp/up/kernel"), or (regular expression on the path,
# vector) pairs, of which the first that matches decides.
Weights = Any

# (regular expression on the path, policy); the first that matches decides.
Rules = Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A stored array.

    Attributes:
      shape: as stored.
      dtype: as stored; unlike jax.ShapeDtypeStruct it keeps 64-bit dtypes as they are.
      quantum: elements, in C order, that can only be read together (the rows of a stored chunk); 1 for raw bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    quantum: int = 1

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes, uncompressed."""
        return self.size * self.dtype.itemsize


def parse_rule(text: str) -> tuple[str, str]:
    """``REGEX=POLICY``, split at the last ``=``.

    Raises:
      UsageError: another form, a regular expression that does not compile, an unknown policy.
    """
    pattern, equals, policy = text.rpartition("=")
    if not equals or policy not in POLICIES:
        raise UsageError(f"--leaves={text}: write REGEX=POLICY with a policy of {', '.join(POLICIES)}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--leaves={text}: {pattern!r} is not a regular expression ({error})") from error
    return pattern, policy


def leaf_policies(leaves: Mapping[str, Any], rules: Rules = ()) -> dict[str, str]:
    """path -> policy: of the first rule whose expression is found in the path, else the default.

    The default is ``average`` for floating leaves and ``last`` for the others: counters, masks and token ids have no
    average, and the newest is the one that goes with the end of the window. The expert bias of loss-free balancing in
    mixtures of experts (``expert_bias``, ``e_score_correction_bias``) is floating and averaged like the router that it
    corrects; ``expert_bias=last`` keeps the newest, whose loads it was set for. Which is better is open.

    Args:
      leaves: path -> anything with a dtype.
      rules: (expression, policy) pairs.

    Raises:
      UsageError: a leaf whose policy is ``error``; an average of a leaf that has none; a complex leaf without a rule; a
        rule that matches nothing.
    """
    # A rule may be idle because an earlier one takes all its leaves; one that fits no path at all is a mistake.
    idle = [pattern for pattern, _ in rules if not any(re.search(pattern, path) for path in leaves)]
    if idle:
        raise UsageError(f"no leaf matches {idle[0]!r}; the leaves are {_few(leaves)}")
    policies = {}
    for path, leaf in leaves.items():
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        rule = next((i for i, (pattern, _) in enumerate(rules) if re.search(pattern, path)), None)
        if rule is None and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise UsageError(f"leaf {path} is {leaf.dtype}, which is not averaged here; choose last, first or skip")
        policies[path] = (AVERAGE if floating else LAST) if rule is None else rules[rule][1]
        if policies[path] not in POLICIES:
            raise UsageError(f"leaf {path}: unknown policy {policies[path]!r}; choose {', '.join(POLICIES)}")
        if policies[path] == ERROR:
            raise UsageError(
                f"leaf {path} ({leaf.dtype}) is not to be merged: the rule {rules[rule or 0][0]!r} says so"
            )
        if policies[path] == AVERAGE and not floating:
            raise UsageError(f"leaf {path} is {leaf.dtype}, which has no average; choose last, first or skip for it")
    return policies


def check_same(leaves: Sequence[Mapping[str, Any]], names: Sequence[str], rules: Rules = ()) -> None:
    """Checks that all checkpoints hold the same leaves with the same shapes and dtypes.

    Leaves that the rules skip may differ or be missing.

    Args:
      leaves: for each checkpoint path -> anything with shape and dtype.
      names: what to call each of them in the error.
      rules: as for :func:`leaf_policies`.

    Raises:
      UsageError: naming the checkpoint and the first leaf that departs from the first checkpoint's.
    """

    def skipped(path: str) -> bool:
        return next((policy for pattern, policy in rules if re.search(pattern, path)), "") == SKIP

    first = {path: leaf for path, leaf in leaves[0].items() if not skipped(path)}
    for other, name in zip(leaves[1:], names[1:], strict=True):
        missing = [path for path in first if path not in other]
        if missing:
            raise UsageError(f"{name} has no leaf {missing[0]}, which {names[0]} has")
        for path, leaf in other.items():
            if skipped(path):
                continue
            if path not in first:
                raise UsageError(f"{name} has a leaf {path}, which {names[0]} lacks")
            if (leaf.shape, leaf.dtype) != (first[path].shape, first[path].dtype):
                raise UsageError(
                    f"{name}: leaf {path} is {leaf.dtype}{list(leaf.shape)}, "
                    f"in {names[0]} it is {first[path].dtype}{list(first[path].shape)}"
                )


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
        weights = _by_rule(weights, paths)
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


def is_ruled(weights: Weights) -> bool:
    """Whether ``weights`` are (regular expression, vector) pairs."""
    return (
        isinstance(weights, Sequence)
        and bool(weights)
        and all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in weights)
    )


def _by_rule(rules: Sequence[tuple[str, Any]], paths: Sequence[str]) -> dict[str, Any]:
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
            raise UsageError(
                f"weights for {pattern!r}: no averaged leaf matches; they are {_few(dict.fromkeys(paths))}"
            )
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


def _few(paths: Mapping[str, Any]) -> str:
    names = list(paths)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
