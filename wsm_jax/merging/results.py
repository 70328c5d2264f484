"""Results of merges in host memory, and from there onto the devices that want them."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from wsm_jax.core.leaves import Leaf
from wsm_jax.core.trees import named_leaves
from wsm_jax.errors import UsageError
from wsm_jax.merging.engine import aligned


class Results:
    """Takes the parts of several merges and gives each merge as a tree of jax arrays.

    Args:
      leaves: path -> leaf of the results.
      tree: the structure of the inputs; what ``leaves`` lacks becomes None.
      shardings: a Sharding for all leaves, a tree of them, or None for the first local device.
      count: number of merges.

    Attributes:
      ranges: path -> first and last element, in C order, of the rows that this process's devices hold.

    Raises:
      UsageError: a tree of shardings that lacks a leaf; in :meth:`take` an integer that does not fit.
    """

    def __init__(self, leaves: Mapping[str, Leaf], tree: Any, shardings: Any, count: int):
        self._leaves = leaves = {path: leaf for path, leaf in leaves.items() if leaf.text is None}
        self._tree = tree
        if shardings is None:
            shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        one = isinstance(shardings, jax.sharding.Sharding)
        self._shardings = dict.fromkeys(leaves, shardings) if one else named_leaves(shardings)
        missing = [path for path in leaves if path not in self._shardings]
        if missing:
            raise UsageError(f"no sharding for leaf {missing[0]}")
        self.ranges = {path: _held(leaf, self._shardings[path]) for path, leaf in leaves.items()}
        sizes = {path: stop - start for path, (start, stop) in self.ranges.items()}
        self._parts = [{path: aligned(sizes[path], leaf.dtype) for path, leaf in leaves.items()} for _ in range(count)]

    def write(self, number: int, path: str, start: int, values: np.ndarray) -> None:
        """Keeps what this process holds of ``values``, elements of leaf ``path`` from ``start`` on."""
        first, last = self.ranges[path]
        low, high = max(start, first), min(start + values.size, last)
        if low < high:
            self._parts[number][path][low - first : high - first] = values[low - start : high - start]

    def take(self, number: int, leaves: Mapping[str, Leaf]) -> Any:
        """The merged tree, on its devices; the host lets go of it.

        Args:
          number: of the merge.
          leaves: those of its result, with the values of its strings.
        """
        parts, self._parts[number] = self._parts[number], {}
        arrays: dict[str, Any] = {path: leaf.text for path, leaf in leaves.items() if leaf.text is not None}
        arrays |= {path: self._place(path, parts.pop(path)) for path in list(parts)}
        return jax.tree.unflatten(
            jax.tree.structure(self._tree), [arrays.get(path) for path in named_leaves(self._tree)]
        )

    def _place(self, path: str, part: np.ndarray) -> Any:
        leaf, sharding = self._leaves[path], self._shardings[path]
        if leaf.scalar:
            return part.item()
        if leaf.key is not None:
            return jax.random.wrap_key_data(jax.device_put(part.reshape(leaf.shape), sharding), impl=leaf.key)
        kept = jax.dtypes.canonicalize_dtype(part.dtype)  # without jax_enable_x64 JAX has no 64 bits
        if part.dtype.kind in "iu" and kept != part.dtype and not np.array_equal(part.astype(kept), part):
            raise UsageError(
                f"leaf {path} holds numbers that do not fit into {kept}, which JAX makes of {part.dtype}; set "
                "jax_enable_x64, leave it out by a rule (its path, 'skip'), or merge from disk to disk"
            )
        if not leaf.shape or not leaf.size:
            return jax.device_put(part.reshape(leaf.shape), sharding)
        first = self.ranges[path][0] // math.prod(leaf.shape[1:])
        rows = part.reshape(-1, *leaf.shape[1:])

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # only asked for shards of this process
            start, stop, _ = index[0].indices(leaf.shape[0])
            return rows[(slice(start - first, stop - first), *index[1:])]

        return jax.make_array_from_callback(leaf.shape, sharding, shard)


def _held(leaf: Leaf, sharding: jax.sharding.Sharding) -> tuple[int, int]:
    if not leaf.shape or not leaf.size:
        return 0, leaf.size
    indices = sharding.addressable_devices_indices_map(leaf.shape).values()
    rows = [index[0].indices(leaf.shape[0]) for index in indices if index is not None]
    across = math.prod(leaf.shape[1:])
    return min(start for start, _, _ in rows) * across, max(stop for _, stop, _ in rows) * across
