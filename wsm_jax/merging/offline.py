"""The weighted sum of checkpoints: in memory, from disk, or many at once from one pass over the disk.

All of them take the same jitted step, total + c x in float32 and in the order of the checkpoints, so they agree bit
for bit. From disk, one checkpoint is in memory at a time beside the running totals.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsm_jax.errors import UsageError
from wsm_jax.merging import leaves as leaves_lib
from wsm_jax.merging import storage
from wsm_jax.merging.leaves import Weights


def _add(total: Any, tree: Any, coefficients: Any) -> Any:
    return jax.tree.map(lambda t, x, c: t + c * x.astype(jnp.float32), total, tree, coefficients)


_add_jit = jax.jit(_add, donate_argnums=0)


@jax.jit
def _scale(tree: Any, coefficients: Any) -> Any:
    # Adding to zeros would turn -0.0 into 0.0; starting from the product keeps a single checkpoint exact.
    return jax.tree.map(lambda x, c: c * x.astype(jnp.float32), tree, coefficients)


class _Sum:
    """One merge in progress: takes the checkpoints in order, skips those of zero weight, gives the merged tree."""

    def __init__(self, weights: Weights, tree: Any, count: int, non_floating: str, dtype: Any = None):
        self._policies = leaves_lib.leaf_policies(tree, non_floating)
        averaged = [path for path, policy in self._policies.items() if policy == leaves_lib.AVERAGE]
        self._vectors = leaves_lib.weight_vectors(weights, averaged, count)
        self._structure = jax.tree.structure(tree)
        self._dtypes = {path: leaf.dtype for path, leaf in leaves_lib.named_leaves(tree).items()}
        self._dtype = dtype
        self._total: dict[str, Any] | None = None
        self._copied: dict[str, Any] = {}

    def needs(self, index: int) -> bool:
        """Whether checkpoint ``index`` adds anything to this merge."""
        return any(vector[index] != 0 for vector in self._vectors.values()) or bool(
            set(self._policies.values()) - {leaves_lib.AVERAGE}
        )

    def add(self, index: int, tree: Any) -> None:
        named = leaves_lib.named_leaves(tree)
        for path, policy in self._policies.items():
            if policy == "last" or (policy == "first" and path not in self._copied):
                self._copied[path] = named[path]
        averaged = {path: named[path] for path in self._vectors}
        coefficients = {path: np.float32(vector[index]) for path, vector in self._vectors.items()}
        if self._total is None:
            self._total = _scale(averaged, coefficients)
        else:
            self._total = _add_jit(self._total, averaged, coefficients)

    def result(self) -> Any:
        total = self._total or {}
        merged = [
            self._copied[path] if path in self._copied else total[path].astype(self._dtype or self._dtypes[path])
            for path in self._policies
        ]
        return jax.tree.unflatten(self._structure, merged)


def merge(trees: Sequence[Any], weights: Weights, *, non_floating: str = "error", dtype: Any = None) -> Any:
    """The weighted sum of pytrees of arrays, jitted, accumulated in float32.

    Args:
      trees: pytrees of equal structure, shapes and dtypes, oldest first.
      weights: one weight for each tree (e.g. of :func:`wsm_jax.merge_weights`), or a mapping from each leaf's path
        ("blocks/mlp/up/kernel") to such a vector.
      non_floating: what to do with integer and boolean leaves: ``error``, ``last`` or ``first`` (copied).
      dtype: of the floating leaves of the result; default: as in ``trees``.

    Returns:
      a pytree of the same structure.

    Raises:
      UsageError: no trees, trees that differ, weights that do not fit, a leaf that cannot be averaged.
    """
    if not trees:
        raise UsageError("nothing to merge: the list of trees is empty")
    leaves_lib.check_same_leaves(trees, [f"tree {i}" for i in range(len(trees))])
    total = _Sum(weights, trees[0], len(trees), non_floating, dtype)
    for index, tree in enumerate(trees):
        if total.needs(index) or index == 0:
            total.add(index, tree)
    return total.result()


def merge_checkpoints(
    paths: Sequence[str | Path],
    weights: Weights,
    *,
    item: str | None = None,
    output: str | Path | None = None,
    metadata: dict[str, Any] | None = None,
    non_floating: str = "error",
    dtype: Any = None,
) -> Any:
    """:func:`merge` for checkpoints on disk, Orbax or Hugging Face safetensors, reading one at a time.

    Args:
      paths: checkpoint folders, oldest first.
      weights: as for :func:`merge`.
      item: which item of Orbax checkpoints; default ``params``, else their only one.
      output: also write the result there, in the format of the inputs; it appears whole or not at all.
      metadata: stored beside the arrays of ``output``.
      non_floating: as for :func:`merge`.
      dtype: as for :func:`merge`.

    Returns:
      the merged pytree.

    Raises:
      UsageError: before any array is read: a missing or incomplete checkpoint, leaves that differ, an ``output`` that
        exists, too little disk. While reading: an array that cannot be read, a result that is not finite.
    """
    if output is not None and Path(output).exists():
        raise UsageError(f"{output} exists; choose another name or remove it")
    merged = merge_many(paths, {"merged": weights}, item=item, non_floating=non_floating, dtype=dtype)["merged"]
    if output is not None:
        storage.save_tree(output, merged, metadata or {}, like=paths[-1])
    return merged


def merge_many(
    paths: Sequence[str | Path],
    weights: Mapping[str, Weights],
    *,
    item: str | None = None,
    non_floating: str = "error",
    dtype: Any = None,
) -> dict[str, Any]:
    """Several merges of the same checkpoints from one pass over the disk, without writing them.

    Memory: the results and one checkpoint.

    Args:
      paths: checkpoint folders, oldest first.
      weights: name -> weights over all ``paths``, as for :func:`merge`; zeros leave checkpoints out.
      item, non_floating, dtype: as for :func:`merge_checkpoints`.

    Returns:
      name -> merged pytree.

    Raises:
      UsageError: as :func:`merge_checkpoints`.
    """
    if not paths:
        raise UsageError("nothing to merge: no checkpoints were given")
    storage.check(paths)
    shapes = [storage.abstract_tree(path, item) for path in paths]
    leaves_lib.check_same_leaves(shapes, [str(path) for path in paths])
    sums = {name: _Sum(w, shapes[0], len(paths), non_floating, dtype) for name, w in weights.items()}
    for index, path in enumerate(paths):
        waiting = [total for total in sums.values() if total.needs(index) or index == 0]
        if waiting:
            tree = storage.load_tree(path, item, shapes[index])
            _check_finite(tree, path)
            for total in waiting:
                total.add(index, tree)
    return {name: total.result() for name, total in sums.items()}


@jax.jit
def _finite(named: dict[str, Any]) -> dict[str, jax.Array]:
    return {name: jnp.isfinite(leaf).all() for name, leaf in named.items()}


def _check_finite(tree: Any, path: str | Path) -> None:
    named = leaves_lib.named_leaves(tree)
    floating = {name: leaf for name, leaf in named.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
    bad = [name for name, fine in _finite(floating).items() if not fine]
    if bad:
        raise UsageError(f"{path}: leaf {bad[0]} holds a NaN or an infinity")
