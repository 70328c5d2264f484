"""What a merge does with each leaf, and whether several trees can be merged at all."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsm_jax.errors import UsageError
from wsm_jax.sharding import path_name

AVERAGE = "average"
NON_FLOATING = ("error", "last", "first")

# One vector for all leaves, or one for each leaf by its path ("blocks/mlp/up/kernel").
Weights = Any


def named_leaves(tree: Any) -> dict[str, Any]:
    """``{"blocks/mlp/up/kernel": leaf, ...}`` in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def check_same_leaves(trees: Sequence[Any], names: Sequence[str]) -> None:
    """Checks that all trees hold the same leaves with the same shapes and dtypes.

    Args:
      trees: arrays or shapes.
      names: what to call each tree in the error.

    Raises:
      UsageError: naming the tree and the first leaf that departs from the first tree's.
    """
    first = named_leaves(trees[0])
    for tree, name in zip(trees[1:], names[1:], strict=True):
        leaves = named_leaves(tree)
        for path in first:
            if path not in leaves:
                raise UsageError(f"{name} has no leaf {path}, which {names[0]} has")
        for path, leaf in leaves.items():
            if path not in first:
                raise UsageError(f"{name} has a leaf {path}, which {names[0]} lacks")
            if (leaf.shape, leaf.dtype) != (first[path].shape, first[path].dtype):
                raise UsageError(
                    f"{name}: leaf {path} is {leaf.dtype}{list(leaf.shape)}, "
                    f"in {names[0]} it is {first[path].dtype}{list(first[path].shape)}"
                )


def leaf_policies(tree: Any, non_floating: str = "error") -> dict[str, str]:
    """path -> ``average`` for floating leaves; for the others ``last`` or ``first``, as asked.

    Raises:
      UsageError: a leaf that is not floating and no policy for it, naming it; an unknown policy.
    """
    if non_floating not in NON_FLOATING:
        raise UsageError(
            f"the policy for leaves that are not floating is {non_floating!r}; choose {', '.join(NON_FLOATING)}"
        )
    policies = {}
    for path, leaf in named_leaves(tree).items():
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        if not floating and non_floating == "error":
            raise UsageError(
                f"leaf {path} is {leaf.dtype}, which has no average; pass non_floating=last or first to copy it"
            )
        policies[path] = AVERAGE if floating else non_floating
    return policies


def weight_vectors(weights: Weights, paths: Sequence[str], count: int) -> dict[str, np.ndarray]:
    """path -> float64 [count], checked.

    Args:
      weights: one vector, or a mapping from every path to its vector.
      paths: leaves that are averaged.
      count: number of checkpoints.

    Raises:
      UsageError: a wrong length, a weight that is not finite, a path without weights.
    """
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
    return checked
