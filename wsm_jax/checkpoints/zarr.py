"""Orbax checkpoints read and written array by array, any part of them, without the tree in memory.

Arrays that lie in plain files, uncompressed, are read and written as raw bytes: so it is with our merge stream and with
every merge. Others (OCDBT, compressed, cut along other axes, in a bucket) are read through TensorStore, whole chunks at
a time.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from wsm_jax.checkpoints import orbax, orbax_files, orbax_tree
from wsm_jax.checkpoints.huggingface import read_exactly, write_exactly
from wsm_jax.core.leaves import Leaf
from wsm_jax.errors import UsageError
from wsm_jax.io import hashes, places
from wsm_jax.parallel.processes import all_succeed


class Source:
    """The arrays of one item of a checkpoint; see :class:`wsm_jax.checkpoints.storage.Source`.

    Raises:
      UsageError: no complete checkpoint, no such item, an array that cannot be opened or is not numeric.
    """

    def __init__(self, path: str | os.PathLike, item: str | None = None):
        self.path, self._item = places.at(path), item
        self._folder, self._names, layout = orbax_files.array_names(path, item)
        scalars, texts, keys = orbax_files.others(path, item)
        self.hashes = hashes.read(self.path, "" if self._folder == self.path.absolute() else self._folder.name)
        driver, _, ocdbt = layout.partition("+")

        def spec(name: str) -> dict[str, Any]:
            if ocdbt:
                base = places.store(self._folder)
                return {"driver": driver, "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
            return {"driver": driver, "kvstore": places.store(self._folder / name)}

        opening = {leaf: ts.open(spec(name), open=True, read=True) for leaf, name in self._names.items()}
        self._arrays: dict[str, ts.TensorStore] = {}
        self.leaves: dict[str, Leaf] = {}
        self._raw: dict[str, Chunks] = {}  # leaf -> its chunks, where they are raw files
        for leaf, future in opening.items():
            try:
                array = future.result()
                dtype = np.dtype(array.dtype.numpy_dtype)
            except (ValueError, TypeError) as error:
                reason = str(error).split(" [")[0]
                raise UsageError(f"{path}: leaf {leaf} is no array that can be read ({reason})") from error
            chunk = array.chunk_layout.read_chunk.shape
            rows = int(chunk[0] or 1) if chunk else 1
            across = math.prod(array.shape[1:])
            raw = None if ocdbt or places.on_bucket(self.path) else _raw(array)
            if raw is not None:
                self._raw[leaf] = raw
            quantum = 1 if raw else min(rows * across, math.prod(array.shape))
            self._arrays[leaf] = array
            self.leaves[leaf] = Leaf(tuple(array.shape), dtype, max(quantum, 1), leaf in scalars, keys.get(leaf))
        self.leaves |= {leaf: Leaf((), np.dtype(str), text=text) for leaf, text in texts.items()}
        if not ocdbt:  # what is read raw misses its files by itself
            others = {leaf: array for leaf, array in self._arrays.items() if leaf not in self._raw}
            orbax.check_whole(path, self._folder, others)

    def tree(self) -> Any:
        """The tree that was saved, with a leaf of shape and dtype for each array."""
        return orbax.abstract_tree(self.path, self._item)

    def read(self, path: str, start: int, out: np.ndarray) -> None:
        """Fills ``out`` (1-D, of the leaf's dtype) with the leaf's elements from ``start`` on, in C order.

        Where the leaf's quantum is not 1, both ends are multiples of it, or the leaf's end.
        """
        chunks = self._raw.get(path)
        if chunks is None:
            self._read_rows(path, start, out)
            return
        while out.size:
            index, inside = divmod(start, chunks.elements)
            part = out[: chunks.elements - inside]
            self._read_file(path, index, inside, part)
            start, out = start + part.size, out[part.size :]

    def _read_file(self, path: str, index: int, inside: int, out: np.ndarray) -> None:
        file = self._file(path, index)
        what = f"{self.path}: leaf {path}"
        read_exactly(file, inside * out.itemsize, out, what, size=self._raw[path].elements * out.itemsize)

    def _read_rows(self, path: str, start: int, out: np.ndarray) -> None:
        across = max(math.prod(self.leaves[path].shape[1:]), 1)
        out[:] = self.rows(path, start // across, (start + out.size) // across).reshape(-1)

    def held(self) -> dict[Path, list[tuple[int, int]]]:
        """File -> ranges of its bytes that hold elements; of leaves in plain files."""
        found = {}
        for path, chunks in self._raw.items():
            leaf = self.leaves[path]
            for index in range(math.prod(chunks.counts)):
                elements = min(chunks.elements, leaf.size - index * chunks.elements)
                found[self._file(path, index)] = [(0, elements * leaf.dtype.itemsize)]
        return found

    def file_at(self, path: str, element: int) -> Path:
        """The file that holds an element of a leaf; its folder where it is not in plain files."""
        chunks = self._raw.get(path)
        return self._file(path, element // chunks.elements) if chunks else self._folder / self._names[path]

    def _file(self, path: str, index: int) -> Path:
        return self._folder / self._names[path] / self._raw[path].name(index)

    def rows(self, path: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of the array (a scalar: all of it), read by TensorStore."""
        array = self._arrays[path]
        try:
            return np.asarray((array[start:stop] if array.rank else array).read().result())
        except ValueError as error:
            reason = str(error).split(" [")[0]
            raise UsageError(f"{self.path}: leaf {path} cannot be read ({reason})") from error

    def record(self) -> dict[str, Any]:
        """What identifies the checkpoint in a record: its step and item, where it has them, and what lies beside it."""
        beside = orbax.user_metadata(self.path)
        # Of a merge that is merged again the names and figures, not its own list of inputs.
        plain = {name: value for name, value in beside.items() if isinstance(value, (str, int, float))}
        step = {"step": int(self.path.name)} if orbax.is_step(self.path.name) else {}
        item = {} if self._folder == self.path.absolute() else {"item": self._folder.name}
        return {"path": str(self.path), "format": "orbax", **item, **step, **plain}

    def close(self) -> None:
        """Lets go of the arrays."""
        self._arrays.clear()


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Chunks that one after the other are the array in C order.

    Attributes:
      elements: of each; the last may reach past the array's end.
      counts: how many there are along each axis.
    """

    elements: int
    counts: tuple[int, ...]

    @classmethod
    def of(cls, shape: Sequence[int], chunk: Sequence[int]) -> "Chunks | None":
        """Those of an array cut into blocks of shape ``chunk``; None where they are no ranges of it in C order."""
        axis = next((i for i, size in enumerate(chunk) if size != 1), 0)
        chunk = [max(size, 1) for size in chunk]  # of an empty array
        if list(chunk[axis + 1 :]) != list(shape[axis + 1 :]) or (axis and shape[axis] % chunk[axis]):
            return None
        return cls(math.prod(chunk), tuple(-(-size // each) for size, each in zip(shape, chunk, strict=True)))

    def name(self, index: int) -> str:
        """File of the ``index``-th of them, in zarr3's default encoding."""
        place = np.unravel_index(index, self.counts) if self.counts else ()
        return "/".join(["c", *map(str, place)])


def _raw(array: ts.TensorStore) -> Chunks | None:
    """The array's chunks where each is a file that begins with its elements in C order, and a range of the array."""
    metadata = array.spec().to_json()["metadata"]
    if metadata.get("zarr_format") != 3 or metadata["chunk_key_encoding"]["name"] != "default":
        return None
    if metadata["chunk_key_encoding"].get("configuration", {}).get("separator", "/") != "/":
        return None
    chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    codecs = metadata["codecs"]
    if len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed":
        inner = codecs[0]["configuration"]
        # One chunk a shard, its index after it: that is how Orbax stores what is not compressed.
        if inner["chunk_shape"] != chunk or inner.get("index_location", "end") != "end":
            return None
        codecs = inner["codecs"]
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    plain = codecs in ([little], [{"name": "bytes"}])
    return Chunks.of(array.shape, chunk) if plain else None


class Sink:
    """Writes a checkpoint part by part and from several threads, in the layout of our merge stream.

    On several processes each makes one, at the same time.

    Args:
      folder: must not exist.
      leaves: path -> leaf to write.
      tree: nested dictionaries and lists with these leaves.
      create: make the files; on several processes one does.
      item: what the tree is called.
    """

    def __init__(self, folder: Path, leaves: Mapping[str, Leaf], tree: Any, *, create: bool, item: str = orbax.PARAMS):
        self._folder = folder
        arrays, names = orbax_tree.begin_tree(folder, tree, item)
        self._places: dict[str, tuple[Path, Chunks]] = {}  # leaf -> folder, its chunks
        with all_succeed():
            for path, leaf in leaves.items():
                if leaf.text is not None:
                    continue
                rows = leaf.shape[0] if leaf.shape else 1
                across = math.prod(leaf.shape[1:])
                chunks = max(1, -(-leaf.nbytes // orbax.CHUNK_BYTES))
                rows_each = max(1, -(-rows // min(chunks, max(rows, 1))))
                counts = (-(-rows // rows_each), *[1 if leaf.size else 0] * (len(leaf.shape) - 1)) if leaf.shape else ()
                self._places[path] = arrays / names[path], Chunks(rows_each * across, counts)
                if create:
                    self._begin(path, leaf, rows_each)

    def _begin(self, path: str, leaf: Leaf, rows: int) -> None:
        folder, chunks = self._places[path]
        metadata = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(leaf.shape),
            "data_type": leaf.dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [rows, *(max(n, 1) for n in leaf.shape[1:])] if leaf.shape else []},
            },
            "chunk_key_encoding": {"name": "default"},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            "fill_value": [0, 0] if leaf.dtype.kind == "c" else False if leaf.dtype == np.bool_ else 0,
        }
        folder.mkdir(parents=True)
        (folder / "zarr.json").write_text(json.dumps(metadata))
        for index in range(math.prod(chunks.counts)):
            file = folder / chunks.name(index)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            os.truncate(file, chunks.elements * leaf.dtype.itemsize)

    def write(self, path: str, start: int, values: np.ndarray) -> None:
        """Stores ``values`` (1-D, of the leaf's dtype) from element ``start`` of the leaf on."""
        folder, chunks = self._places[path]
        while values.size:
            index, inside = divmod(start, chunks.elements)
            part = values[: chunks.elements - inside]
            write_exactly(folder / chunks.name(index), inside * values.itemsize, part)
            start, values = start + part.size, values[part.size :]

    def finish(self, record: Mapping[str, Any]) -> None:
        """Stores the record of the merge; the checkpoint is complete then."""
        orbax_tree.complete_tree(self._folder, dict(record))
