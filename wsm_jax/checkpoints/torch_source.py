"""Checkpoints of PyTorch, read without it: a file of ``torch.save``, or a folder with ``pytorch_model.bin``.

Of a file the dictionary of tensors is read that ``item`` names; else the one called ``state_dict`` (Lightning),
``model`` (nanoGPT) or ``model_state_dict``; else the file itself or the only one in it. Names stay as they are.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsm_jax.checkpoints import huggingface, torch_file
from wsm_jax.checkpoints.torch_file import Range
from wsm_jax.checkpoints.torch_values import DTYPES, Tensor
from wsm_jax.core.leaves import Leaf, few
from wsm_jax.errors import UsageError
from wsm_jax.io import places

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
_FIRST = ("state_dict", "model", "model_state_dict")
_MOST_AXES = 16

# Who writes parts of a model for each of many processes, and what makes one file of them.
_PARTS = {
    r"\.metadata|.*\.distcp": "a distributed checkpoint of PyTorch, in parts: python -m "
    "torch.distributed.checkpoint.format_utils dcp_to_torch {folder} OUT.pt makes one file of it",
    r"(bf16_)?zero_pp_rank_.*|mp_rank_\d+_model_states\.pt|zero_to_fp32\.py|global_step\d+": "a checkpoint of "
    "DeepSpeed, in parts: python zero_to_fp32.py {folder} OUT, a script that lies beside it, makes one of it",
    r"mp_rank_\d+.*|latest_checkpointed_iteration\.txt": "a checkpoint of Megatron, in parts: python "
    "examples/conversion/convert_checkpoints.py export --hf-model MODEL --megatron-path {folder} --hf-path OUT, of "
    "Megatron-Bridge, makes a model folder of it",
}


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a folder with a model of PyTorch, or a whole file of ``torch.save``, on this machine."""
    place = places.at(path)
    return is_meant(place) and (place.is_dir() or torch_file.is_file(place))


def is_meant(path: str | os.PathLike) -> bool:
    """The same by name, of a file that may be cut short."""
    place = places.at(path)
    if places.on_bucket(place):
        return False
    if any((place / name).is_file() for name in (SINGLE, INDEX)):
        return True
    return place.suffix in torch_file.SUFFIXES and place.is_file() and not _hint_of_file(place)


def hint(place: Path) -> str:
    """What to do with a checkpoint that lies in parts, or a folder around files; empty where it is neither."""
    if place.is_file():
        return _hint_of_file(place)
    inside = sorted(place.iterdir())
    deeper = [file for folder in inside if folder.is_dir() for file in sorted(folder.iterdir())]
    found = (_hint_of(file.name, file.parent) for file in [place, *inside, *deeper])
    if said := next(filter(None, found), ""):
        return said
    file = next((file for file in inside if torch_file.is_file(file)), None)
    return f"; it has {file.name}: name the file itself, {file}" if file else ""


def _hint_of_file(file: Path) -> str:
    if file.name == SINGLE:
        return ""
    return _hint_of(file.name, file.parent) or _hint_of(file.parent.name, file.parent.parent)


def _hint_of(name: str, folder: Path) -> str:
    said = next((text for pattern, text in _PARTS.items() if re.fullmatch(pattern, name)), "")
    return said and f"; it is {said.format(folder=folder)}"


class Source:
    """The tensors of a file or a folder, any part of which can be read; see
    :class:`wsm_jax.checkpoints.storage.Source`.

    Attributes:
      left_out: what else in the file holds tensors, such as the state of the optimizer.
      aliases: as of :class:`wsm_jax.checkpoints.huggingface.Source`; here none.

    Args:
      path: the file, or the folder of ``pytorch_model.bin`` or its parts.
      item: which dictionary of tensors of a file is meant; default: see above.

    Raises:
      UsageError: a file that is damaged, holds more than data or no such dictionary; a tensor that cannot be read.
    """

    def __init__(self, path: str | os.PathLike, item: str | None = None):
        self.path = places.at(path)
        self.leaves: dict[str, Leaf] = {}
        self.hashes = None
        self.left_out: list[str] = []
        self._item = item
        self._tensors: dict[str, tuple[Path, Range, Tensor]] = {}
        folder = self.path.is_dir()
        files = huggingface.files(self.path, SINGLE, INDEX) if folder else {self.path: []}
        for file, expected in files.items():
            self._look_into(file)
            if lost := [name for name in expected if name not in self._tensors]:
                raise UsageError(f"{file} has no tensor {lost[0]}, which {INDEX} has in it; fetch the folder again")
        # In the order of the files, so that a merge reads them from front to back.
        order = sorted(self._tensors.items(), key=lambda one: (str(one[1][0]), one[1][1].start, one[1][2].offset))
        self.leaves = {name: Leaf(tensor.shape, DTYPES[tensor.dtype]) for name, (_, _, tensor) in order}
        self.aliases: dict[str, dict[str, str]] = {self.file_of(name): {} for name in self.leaves}
        self.own_files = [*(file.name for file in files), SINGLE, INDEX]

    def _look_into(self, file: Path) -> None:
        contents = torch_file.read(file)
        chosen, self._item = _choose(contents.value, self._item, file)
        rest = contents.value if self._item else {}
        seen: set[int] = set()
        for name, value in chosen.items():
            if isinstance(value, Tensor):
                what = f"{file}: tensor {_checked_name(name, file)}"
                if name in self._tensors:
                    raise UsageError(f"{what} is in another file of the folder too")
                self._tensors[name] = file, _checked(value, contents.ranges, what), value
            elif _holds_tensors(value, seen):
                raise UsageError(
                    f"{file}: {_shown(name)} holds tensors in turn, beside tensors; --item=NAME reads one of "
                    f"{few(_tables(contents.value)) or 'none'}"
                )
        self.left_out += [
            _shown(key) for key, value in rest.items() if key != self._item and _holds_tensors(value, seen)
        ]

    def tree(self) -> dict[str, Leaf]:
        """Name -> leaf: the tree that a merge of such files has."""
        return dict(sorted(self.leaves.items()))

    def read(self, path: str, start: int, out: np.ndarray) -> None:
        """Fills ``out`` (1-D, of the leaf's dtype) with the leaf's elements from ``start`` on, in C order."""
        file, place, tensor = self._tensors[path]
        if _is_contiguous(tensor):
            offset = place.start + (tensor.offset + start) * out.itemsize
            huggingface.read_exactly(file, offset, out, f"{file}: tensor {path}")
            return
        index = np.unravel_index(np.arange(start, start + out.size), tensor.shape)
        elements = sum((i * step for i, step in zip(index, tensor.stride, strict=True)), np.int64(tensor.offset))
        out.view(_bits(out.dtype))[:] = _mapped(file, place, out.dtype)[elements]

    def rows(self, path: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of the tensor (a scalar: all of it), mapped into memory as PyTorch lays it out."""
        file, place, tensor = self._tensors[path]
        dtype = self.leaves[path].dtype
        if not self.leaves[path].size:
            return np.zeros(tensor.shape, dtype)[start:stop]
        steps = [step * dtype.itemsize for step in tensor.stride]
        view = np.lib.stride_tricks.as_strided(
            _mapped(file, place, dtype)[tensor.offset :], tensor.shape, steps, writeable=False
        )
        return np.array(view[start:stop] if tensor.shape else view).view(dtype)

    def held(self) -> dict[Path, list[tuple[int, int]]]:
        """File -> ranges of its bytes that hold elements."""
        found: dict[Path, set[tuple[int, int]]] = {}
        for file, place, _ in self._tensors.values():
            found.setdefault(file.absolute(), set()).add((place.start, place.start + place.nbytes))
        return {file: sorted(ranges) for file, ranges in found.items()}

    def file_at(self, path: str, element: int) -> Path:
        """The file that holds an element of a tensor."""
        del element
        return self._tensors[path][0]

    def file_of(self, path: str) -> str:
        """Name of the file of safetensors that a merge has the tensor in."""
        name = self._tensors[path][0].name if self.path.is_dir() else SINGLE
        return re.sub(r"\.[^.]*$", "", name).replace("pytorch_model", "model", 1) + ".safetensors"

    def record(self) -> dict[str, Any]:
        """What identifies the checkpoint in a record."""
        return {"path": str(self.path), "format": "torch"} | ({"item": self._item} if self._item else {})

    def close(self) -> None:
        """Nothing is kept open."""


def _tables(value: Any) -> dict[str, dict[Any, Any]]:
    """The dictionaries of tensors that a dictionary has."""
    named = value.items() if isinstance(value, dict) else ()
    tables = ((key, table) for key, table in named if type(key) is str and key.isprintable())
    return {key: table for key, table in tables if isinstance(table, dict) and _has_tensors(table)}


def _has_tensors(table: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in table.values())


def _choose(value: Any, item: str | None, file: Path) -> tuple[dict[Any, Any], str | None]:
    """The dictionary of tensors to read of a file, and what it is called; None: the file itself."""
    tables = _tables(value)
    if item is not None:
        if item not in tables:
            raise UsageError(f"{file} has no tensors called {item}; it has {few(tables) or 'none with a name'}")
        return tables[item], item
    if name := next((name for name in _FIRST if name in tables), None):
        return tables[name], name
    if isinstance(value, dict) and _has_tensors(value):
        return value, None
    if len(tables) > 1:
        raise UsageError(f"{file} holds tensors as {few(tables)}; say which are meant, --item=NAME")
    if not tables:
        raise UsageError(f"{file} holds no dictionary of tensors, such as the state_dict() of a model")
    return next(iter(tables.values())), next(iter(tables))


def _holds_tensors(value: Any, seen: set[int]) -> bool:
    """Whether a value has a tensor in it, however deep; what ``seen`` has is not looked into again."""
    ahead = [value]
    while ahead:
        one = ahead.pop()
        if isinstance(one, Tensor):
            return True
        if isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            ahead += one.values() if isinstance(one, dict) else one
    return False


def _checked_name(name: Any, file: Path) -> str:
    if type(name) is not str or not name.isprintable() or name == "__metadata__":
        raise UsageError(f"{file}: a tensor is called {_shown(name)}, which safetensors cannot hold")
    return name


def _shown(name: Any) -> str:
    return name if type(name) is str and name.isprintable() else repr(name)[:100]


def _checked(tensor: Tensor, ranges: Mapping[str, Range], what: str) -> Range:
    """Where the storage of a tensor lies; that the tensor lies in it.

    Raises:
      UsageError: no such storage, or another size; numbers that lead out of it; a dtype that a merge cannot write.
    """
    place = ranges.get(tensor.storage.key)
    if place is None:
        raise UsageError(f"{what} has no data in the file, which is damaged; fetch it again")
    if place.nbytes != tensor.storage.nbytes:
        raise UsageError(f"{what} needs {tensor.storage.nbytes:,} bytes and has {place.nbytes:,}; fetch the file again")
    if not huggingface.is_stored(DTYPES[tensor.dtype]):
        raise UsageError(f"{what} is {tensor.dtype}, which cannot be merged; convert it first")
    shape, stride = tensor.shape, tensor.stride
    if len(shape) != len(stride) or len(shape) > _MOST_AXES or min((tensor.offset, *shape, *stride)) < 0:
        raise UsageError(f"{what} has offset {tensor.offset}, shape {shape} and stride {stride}; the file is damaged")
    elements = place.nbytes // DTYPES[tensor.dtype].itemsize
    size = math.prod(shape)
    last = tensor.offset + sum((axis - 1) * step for axis, step in zip(shape, stride, strict=True))
    if (size and last >= elements) or max(shape, default=0) > 2**40:
        raise UsageError(f"{what}, shape {shape}, leads out of its data; the file is damaged")
    if size > elements:
        raise UsageError(f"{what} repeats its data (it was expanded); save it as tensor.contiguous()")
    return place


def _is_contiguous(tensor: Tensor) -> bool:
    step = 1
    for axis, stride in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if axis != 1 and stride != step:
            return not math.prod(tensor.shape)
        step *= axis
    return True


def _bits(dtype: np.dtype) -> np.dtype:
    """What NumPy can pick from at any address; it knows nothing of bfloat16."""
    return np.dtype(f"u{dtype.itemsize}")


def _mapped(file: Path, place: Range, dtype: np.dtype) -> np.ndarray:
    """The elements of a storage as bits, mapped into memory.

    Raises:
      UsageError: the file is shorter than it was.
    """
    try:
        whole = place.nbytes // dtype.itemsize * dtype.itemsize
        return np.memmap(file, np.uint8, "r", place.start, (whole,)).view(_bits(dtype))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read ({error})") from error
