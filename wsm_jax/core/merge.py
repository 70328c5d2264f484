"""The weighted sum of pytrees in memory."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsm_jax.core import leaf_weights
from wsm_jax.core import leaves as leaves_lib
from wsm_jax.core.leaf_weights import Weights
from wsm_jax.core.leaves import AVERAGE, FIRST, LAST, SKIP, Rules
from wsm_jax.core.trees import named_leaves
from wsm_jax.errors import UsageError


def _add(total: Any, tree: Any, coefficients: Any) -> Any:
    return jax.tree.map(lambda t, x, c: t + c * x.astype(jnp.float32), total, tree, coefficients)


_add_jit = jax.jit(_add, donate_argnums=0)


@jax.jit
def _scale(tree: Any, coefficients: Any) -> Any:
    # Adding to zeros would turn -0.0 into 0.0; starting from the product keeps a single checkpoint exact.
    return jax.tree.map(lambda x, c: c * x.astype(jnp.float32), tree, coefficients)


def merge(trees: Sequence[Any], weights: Weights, *, rules: Rules = (), dtype: Any = None) -> Any:
    """The weighted sum of pytrees of arrays, jitted, accumulated in float32; sharded arrays stay where they are.

    Args:
      trees: pytrees of equal structure, shapes and dtypes, oldest first. With ``dtype`` floating leaves may differ in
        theirs.
      weights: one weight for each tree (e.g. of :func:`wsm_jax.merge_weights`), a mapping from each leaf's path
        ("blocks/mlp/up/kernel", see :func:`wsm_jax.named_leaves`) to such a vector, or (regular expression on the path,
        vector) pairs, of which the first that matches a leaf decides. Used as they are given: they may be negative and
        need not sum to 1.
      rules: (regular expression on the path, policy) pairs, see :func:`wsm_jax.core.leaves.leaf_policies`; by
        default floating arrays are averaged and the others, Python numbers too, come from the last tree that has a
        weight. A skipped leaf becomes None.
      dtype: of the averaged leaves of the result; None or ``same``: as in ``trees``.

    Returns:
      a pytree of the same structure.

    Raises:
      UsageError: no trees, trees that differ, weights that do not fit, a leaf that cannot be averaged.
    """
    if not trees:
        raise UsageError("nothing to merge: the list of trees is empty")
    named = [named_leaves(tree) for tree in trees]
    dtype = None if isinstance(dtype, str) and dtype == "same" else dtype
    names = [f"tree {i}" for i in range(len(trees))]
    found = leaves_lib.leaf_policies({path: leaf for tree in named for path, leaf in tree.items()}, rules)
    leaves_lib.check_same(named, names, found, any_float=dtype is not None)
    policies = {path: found[path] for path in named[0]}
    averaged = [path for path, policy in policies.items() if policy == AVERAGE]
    vectors = leaf_weights.weight_vectors(weights, averaged, len(trees))
    first, last = leaf_weights.window_ends(vectors, len(trees))
    total: Any = {}
    for index, leaves in enumerate(named):
        if any(vector[index] for vector in vectors.values()) or (not total and index == last):
            terms = {path: jnp.asarray(leaves[path]) for path in averaged}
            coefficients = {path: np.float32(vector[index]) for path, vector in vectors.items()}
            total = _scale(terms, coefficients) if not total else _add_jit(total, terms, coefficients)
    sources = {LAST: named[last], FIRST: named[first], SKIP: dict.fromkeys(policies)}
    merged = [
        total[path].astype(dtype or jnp.result_type(named[0][path])) if policy == AVERAGE else sources[policy][path]
        for path, policy in policies.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(trees[0]), merged)
