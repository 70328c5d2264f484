"""Safetensors folders as Hugging Face keeps them: single file, or shards with an index.

The library checks every file; offsets come from its header (https://github.com/huggingface/safetensors#format: eight
bytes of length, JSON, data), so that any part of any tensor is one read.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from wsm_jax.checkpoints import model_folder
from wsm_jax.core.leaves import Leaf
from wsm_jax.errors import UsageError
from wsm_jax.io import hashes, places, publish

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
RECORD = "merge.json"

_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def is_folder(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a folder with a model in safetensors."""
    place = places.at(path)
    return any((place / name).is_file() for name in (SINGLE, INDEX)) and publish.is_whole(place)


def files(path: str | os.PathLike, single_name: str = SINGLE, index_name: str = INDEX) -> dict[Path, list[str]]:
    """The files of weights of a folder, in order of name, each with the tensors that the index has in it.

    As ``transformers`` reads them: a single file comes before an index of files that are gone. The files themselves may
    be links, as in the cache of Hugging Face.

    Raises:
      UsageError: an index that cannot be read, names a file that is not there or is outside the folder; a single file
        beside the files of an index.
    """
    folder = places.at(path)
    alone, index = folder / single_name, folder / index_name
    single = alone.is_file()
    if not index.is_file():
        return {alone: []}
    try:
        weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        kind = "safetensors" if index_name == INDEX else "weights"
        raise UsageError(f"{index}: not an index of {kind} ({type(error).__name__}: {error})") from error
    files: dict[Path, list[str]] = {}
    for tensor, name in sorted(weight_map.items(), key=lambda item: str(item[1])):
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or name in ("", ".."):
            raise UsageError(f"{index}: tensor {tensor} is in {name!r}, which is no file of the folder")
        files.setdefault(folder / name, []).append(tensor)
    missing = [file.name for file in files if not file.is_file()]
    if single and len(missing) == len(files):
        return {alone: []}
    if missing:
        raise UsageError(f"{folder} has no file {missing[0]}, which its index names; fetch it again")
    if single and alone not in files:
        raise UsageError(
            f"{folder} has both {single_name} and the files that {index_name} names; remove what is out of date"
        )
    return files


def is_stored(dtype: np.dtype) -> bool:
    """Whether safetensors hold arrays of a dtype."""
    return dtype in _NAMES


class Likeness(Protocol):
    """What a sink takes over of a source: its folder, and which tensor is in which file.

    Attributes:
      own_files: names of the files of the folder with its tensors, or with where they are.
    """

    path: Path
    leaves: dict[str, Leaf]
    aliases: dict[str, dict[str, str]]
    own_files: list[str]

    def file_of(self, path: str) -> str:
        """Name of the file that holds the tensor."""
        ...


class Source:
    """The tensors of a folder, any part of which can be read; see :class:`wsm_jax.checkpoints.storage.Source`.

    Attributes:
      aliases: file -> names that stand for one of its tensors (a tied head), as ``transformers`` keeps them.

    Raises:
      UsageError: a file that is damaged or lacks a tensor of the index, or a dtype that has no counterpart here.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = places.at(path)
        self.leaves: dict[str, Leaf] = {}
        self.aliases: dict[str, dict[str, str]] = {}
        self._places: dict[str, tuple[Path, int]] = {}  # name -> file, offset of the data
        self.hashes = hashes.read(self.path)
        for file, expected in files(path).items():
            found = self._look_into(file)
            if lost := [name for name in expected if name not in found]:
                raise UsageError(f"{file} has no tensor {lost[0]}, which {INDEX} has in it; fetch the folder again")
        self.own_files = [*self.aliases, SINGLE, INDEX]

    def _look_into(self, file: Path) -> dict[str, Any]:
        try:
            with safe_open(file, framework="numpy"):  # checks header and length
                pass
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(length))
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{file}: cannot be read ({error})") from error
        beside = header.pop("__metadata__", None) or {}
        self.aliases[file.name] = {name: of for name, of in beside.items() if of in header and name not in header}
        # In the order of the file, so that a merge reads it from front to back.
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if entry["dtype"] not in _DTYPES:
                raise UsageError(
                    f"{file}: tensor {name} is {entry['dtype']}, which cannot be merged; convert it to bfloat16 first"
                )
            if name in self.leaves:
                raise UsageError(f"{file}: tensor {name} is in another file of the folder too")
            self.leaves[name] = Leaf(tuple(entry["shape"]), np.dtype(_DTYPES[entry["dtype"]]))
            self._places[name] = file, 8 + length + entry["data_offsets"][0]
        return header

    def tree(self) -> dict[str, Leaf]:
        """Name -> leaf: the tree that a merge of such folders has."""
        return dict(sorted(self.leaves.items()))

    def read(self, path: str, start: int, out: np.ndarray) -> None:
        """Fills ``out`` (1-D, of the leaf's dtype) with the leaf's elements from ``start`` on, in C order."""
        file, offset = self._places[path]
        read_exactly(file, offset + start * out.itemsize, out, f"{file}: tensor {path}")

    def rows(self, path: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of the tensor (a scalar: all of it), read by the safetensors library."""
        with safe_open(self.path / self.file_of(path), framework="numpy") as tensors:
            return tensors.get_slice(path)[start:stop] if self.leaves[path].shape else tensors.get_tensor(path)

    def held(self) -> dict[Path, list[tuple[int, int]]]:
        """File -> ranges of its bytes that hold elements: all after the header."""
        found = {}
        for file in {file for file, _ in self._places.values()}:
            with file.open("rb") as opened:
                found[file.absolute()] = [(8 + int.from_bytes(opened.read(8), "little"), file.stat().st_size)]
        return found

    def file_at(self, path: str, element: int) -> Path:
        """The file that holds an element of a tensor."""
        del element
        return self._places[path][0]

    def file_of(self, path: str) -> str:
        """Name of the file that holds the tensor."""
        return self._places[path][0].name

    def record(self) -> dict[str, Any]:
        """What identifies the checkpoint in a record."""
        return {"path": str(self.path), "format": "safetensors"}

    def close(self) -> None:
        """Nothing is kept open."""


def read_exactly(file: Path, offset: int, out: np.ndarray, what: str, *, size: int = 0) -> None:
    """Fills ``out`` from ``offset`` on. The file is open only meanwhile: many inputs have more files than may be open.

    Args:
      file: to read.
      offset: in bytes.
      out: 1-D, contiguous.
      what: its name in an error.
      size: bytes that the file must have at least.

    Raises:
      UsageError: the file is shorter, or cannot be read.
    """
    view = memoryview(out.view(np.uint8).data)
    try:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            whole = os.fstat(descriptor).st_size >= size
            while view.nbytes and whole:
                count = os.preadv(descriptor, [view], offset)
                view, offset, whole = view[count:], offset + count, count > 0
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UsageError(f"{what} cannot be read: {file} ({error.strerror})") from error
    if not whole:
        raise UsageError(f"{what} cannot be read: {file} is cut short")


class Sink:
    """Writes a folder that ``transformers`` loads, part by part and from several threads.

    Tensors are in the files, and have the aliases, that they have in ``like``. What else it holds (configuration,
    tokenizer) is copied, see :func:`wsm_jax.checkpoints.model_folder.copy`; the dtype that its configuration names
    follows that of the tensors, for ``transformers`` would load them in it.

    Args:
      folder: must not exist.
      leaves: name -> leaf to write.
      like: None, or a source whose files and configuration are taken over.
      create: make the files; on several processes one does.
      files: name -> file, where that is not as in ``like``; default: one file.
    """

    def __init__(
        self,
        folder: Path,
        leaves: Mapping[str, Leaf],
        like: Likeness | None,
        create: bool,
        files: Mapping[str, str] | None = None,
    ):
        self._folder = folder
        self._places: dict[str, tuple[Path, int]] = {}
        if create:
            folder.mkdir()
        if create and like is not None:
            model_folder.copy(like.path, folder, besides=[*like.own_files, RECORD, hashes.FILE])
            _name_dtypes(
                folder / model_folder.CONFIG,
                {like.leaves[name].dtype.name: leaf.dtype.name for name, leaf in leaves.items()},
            )
        groups: dict[str, list[str]] = {}
        for name in leaves:
            file = like.file_of(name) if like else (files or {}).get(name, SINGLE)
            groups.setdefault(file, []).append(name)
        for file, names in groups.items():
            aliases = like.aliases[file] if like else {}
            kept = {name: of for name, of in aliases.items() if of in names}
            self._begin(folder / file, {name: leaves[name] for name in names}, kept, create)
        if create and set(groups) != {SINGLE}:
            total = sum(leaf.nbytes for leaf in leaves.values())
            weight_map = {name: file for file, names in groups.items() for name in names}
            text = json.dumps(
                {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2
            )
            (folder / INDEX).write_text(text + "\n")

    def _begin(self, file: Path, leaves: Mapping[str, Leaf], aliases: Mapping[str, str], create: bool) -> None:
        header: dict[str, Any] = {"__metadata__": {**aliases, "format": "pt"}}  # transformers refuses a file without it
        end = 0
        # The largest elements first keep every tensor aligned, as the format asks for.
        for name, leaf in sorted(leaves.items(), key=lambda item: -item[1].dtype.itemsize):
            if leaf.dtype not in _NAMES:
                raise UsageError(f"leaf {name} is {leaf.dtype}, which safetensors cannot hold here")
            header[name] = {
                "dtype": _NAMES[leaf.dtype],
                "shape": list(leaf.shape),
                "data_offsets": [end, end + leaf.nbytes],
            }
            end += leaf.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        if create:
            with open(file, "wb") as out:
                out.write(len(text).to_bytes(8, "little") + text)
                out.truncate(8 + len(text) + end)
        for name in leaves:
            self._places[name] = file, 8 + len(text) + header[name]["data_offsets"][0]

    def write(self, path: str, start: int, values: np.ndarray) -> None:
        """Stores ``values`` (1-D, of the leaf's dtype) from element ``start`` of the leaf on."""
        file, offset = self._places[path]
        write_exactly(file, offset + start * values.itemsize, values)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Stores the record of the merge; the folder is complete then."""
        (self._folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _name_dtypes(config: Path, dtypes: Mapping[str, str]) -> None:
    """Puts new dtypes in the place of old ones where the configuration of a model says in which it is to be loaded."""

    def renewed(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        new = {key: renewed(value) for key, value in node.items()}
        named = {key: new[key] for key in ("dtype", "torch_dtype") if isinstance(new.get(key), str)}
        return new | {key: dtypes.get(dtype, dtype) for key, dtype in named.items()}

    if not config.is_file() or all(old == new for old, new in dtypes.items()):
        return
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return  # copied as it is
    config.write_text(json.dumps(renewed(found), indent=2) + "\n", encoding="utf-8")


def write_exactly(file: Path, offset: int, values: np.ndarray) -> None:
    """Writes the bytes of ``values`` (contiguous) into an existing file."""
    view = memoryview(values.view(np.uint8).data)
    descriptor = os.open(file, os.O_WRONLY)
    try:
        while view.nbytes:
            count = os.pwritev(descriptor, [view], offset)
            view, offset = view[count:], offset + count
    finally:
        os.close(descriptor)
