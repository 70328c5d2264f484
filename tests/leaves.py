"""What a family would declare of small trees that tests make up."""

from typing import Any

from wsm_jax.core.trees import named_leaves
from wsm_jax.models.family import Leaf, Leaves


def declared(tree: Any) -> Leaves:
    """The leaves under ``blocks`` are stacked by layer; matrices decay, and Muon takes those of the blocks.

    Args:
      tree: of arrays, or of anything with a ``shape``.
    """
    found = {}
    for path, leaf in named_leaves(tree).items():
        stacked, rank = path.startswith("blocks/"), len(leaf.shape)
        axes = tuple("layer" if stacked and not i else f"axis{i}" for i in range(rank))
        found[path] = Leaf(axes, decayed=rank - stacked >= 2, muon=(1, 2) if stacked and rank == 3 else None)
    return found
