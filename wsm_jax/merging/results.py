"""Results of merges in host memory, and from there onto the devices that want them."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from wsm_jax.core.leaves import Leaf
from wsm_jax.core.trees import named_leaves
from wsm_jax.errors import UsageError
from wsm_jax.merging.engine import aligned
from wsm_jax.parallel import ranges
from wsm_jax.parallel.ranges import Index


@dataclasses.dataclass(frozen=True)
class _Block:
    """What a device holds of a leaf while the merge is read: ranges of ``length`` elements from ``starts`` on."""

    shape: tuple[int, ...]
    starts: np.ndarray
    length: int

    def copy(self, held: np.ndarray, start: int, values: np.ndarray) -> None:
        """Into ``held`` [ranges, length] what it has of ``values``, elements of the leaf from ``start`` on."""
        stop = start + values.size
        near = np.searchsorted(self.starts, [start - self.length, stop])
        for i in range(*near):
            first = int(self.starts[i])
            low, high = max(start, first), min(stop, first + self.length)
            held[i, low - first : high - first] = values[low - start : high - start]


class Results:
    """Takes the parts of several merges and gives each merge as a tree of jax arrays.

    Args:
      leaves: path -> leaf of the results.
      tree: the structure of the inputs; what ``leaves`` lacks becomes None.
      shardings: a Sharding for all leaves, a tree of them, or None for the first local device.
      count: number of merges.

    Attributes:
      ranges: path -> (first, last) elements in C order that this process's devices hold while the merge is read.

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
        # Each device holds ranges first, and the devices exchange them: the host never holds what it need not read.
        self._read = {path: ranges.as_ranges(self._shardings[path], leaf.shape) for path, leaf in leaves.items()}
        self._blocks = {path: _blocks(leaf, self._read[path]) for path, leaf in leaves.items()}
        self.ranges = {path: _joined(blocks.values()) for path, blocks in self._blocks.items()}
        self._parts = [{path: self._buffers(path) for path in leaves} for _ in range(count)]

    def _buffers(self, path: str) -> dict[Any, np.ndarray]:
        """Not zeroed: NumPy asks for large pages only then, and many merges fill many gigabytes."""
        dtype = self._leaves[path].dtype
        return {
            key: aligned(len(block.starts) * block.length, dtype, np.empty).reshape(len(block.starts), block.length)
            for key, block in self._blocks[path].items()
        }

    def write(self, number: int, path: str, start: int, values: np.ndarray) -> None:
        """Keeps what this process holds of ``values``, elements of leaf ``path`` from ``start`` on."""
        for key, block in self._blocks[path].items():
            block.copy(self._parts[number][path][key], start, values)

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

    def _place(self, path: str, parts: dict[Any, np.ndarray]) -> Any:
        leaf, sharding = self._leaves[path], self._shardings[path]
        part = next(iter(parts.values()))  # of what lies whole on every device: all
        if leaf.scalar:
            return part.item()
        if leaf.key is not None:
            return jax.random.wrap_key_data(jax.device_put(part.reshape(leaf.shape), sharding), impl=leaf.key)
        kept = jax.dtypes.canonicalize_dtype(part.dtype)  # without jax_enable_x64 JAX has no 64 bits
        cut = part.dtype.kind in "iu" and kept != part.dtype
        if cut and not all(np.array_equal(one.astype(kept), one) for one in parts.values()):
            raise UsageError(
                f"leaf {path} holds numbers that do not fit into {kept}, which JAX makes of {part.dtype}; set "
                "jax_enable_x64, leave it out by a rule (its path, 'skip'), or merge from disk to disk"
            )
        if not leaf.shape or not leaf.size:
            return jax.device_put(part.reshape(leaf.shape), sharding)
        blocks = self._blocks[path]

        def shard(index: Index | None) -> np.ndarray:
            assert index is not None  # only asked for shards of this process
            key = _key(leaf.shape, index)
            return parts[key].reshape(blocks[key].shape)

        made = jax.make_array_from_callback(leaf.shape, self._read[path], shard)
        return made if sharding == self._read[path] else jax.block_until_ready(jax.device_put(made, sharding))


def _key(shape: tuple[int, ...], index: Index) -> tuple[tuple[int, int], ...]:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _blocks(leaf: Leaf, sharding: jax.sharding.Sharding) -> dict[Any, _Block]:
    """The distinct blocks of this process's devices."""
    found = {}
    for index in sharding.addressable_devices_indices_map(leaf.shape).values():
        if index is not None:
            key = _key(leaf.shape, index)
            found[key] = _Block(tuple(stop - start for start, stop in key), *ranges.of(leaf.shape, index))
    return found


def _joined(blocks: Iterable[_Block]) -> list[tuple[int, int]]:
    """The ranges of some blocks, ascending; neighbours are one."""
    found: list[tuple[int, int]] = []
    for first, last in sorted((int(s), int(s) + block.length) for block in blocks for s in block.starts):
        if found and first <= found[-1][1]:
            before, until = found.pop()
            first, last = before, max(last, until)
        found.append((first, last))
    return found
