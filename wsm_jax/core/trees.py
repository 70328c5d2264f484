"""The leaves of a pytree by the names of their paths."""

from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
    """``"blocks/mlp/up/kernel"`` from a key path of ``jax.tree_util``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """``{"blocks/mlp/up/kernel": leaf, ...}`` in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
