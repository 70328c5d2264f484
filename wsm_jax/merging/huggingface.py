"""Safetensors folders as Hugging Face keeps them: single file, or shards with an index."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wsm_jax.errors import UsageError

SINGLE = "model.safetensors"
RECORD = "merge.json"
INDEX = "model.safetensors.index.json"

_WEIGHTS = (".safetensors", ".bin", ".pt", ".msgpack", ".h5")

_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Shape and dtype of a stored tensor; unlike jax.ShapeDtypeStruct it keeps 64-bit dtypes as they are."""

    shape: tuple[int, ...]
    dtype: np.dtype


def is_folder(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a folder with a model in safetensors."""
    return any((Path(path) / name).is_file() for name in (SINGLE, INDEX))


def files(path: str | os.PathLike) -> list[Path]:
    """The safetensors files of a folder, in order of name.

    Raises:
      UsageError: an index that cannot be read or names a file that is not there.
    """
    folder = Path(path)
    if not (folder / INDEX).is_file():
        return [folder / SINGLE]
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{folder / INDEX}: not an index of safetensors ({type(error).__name__}: {error})") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{folder} has no file {missing[0]}, which its index names")
    return [folder / name for name in names]


def abstract_tree(path: str | os.PathLike) -> dict[str, Tensor]:
    """Name -> shape and dtype of every tensor; reads the headers only.

    Raises:
      UsageError: a file that is damaged, or a dtype that has no counterpart here.
    """
    found = {}
    for file in files(path):
        with _open(file) as tensors:
            for name in tensors.keys():
                view = tensors.get_slice(name)
                if view.get_dtype() not in _DTYPES:
                    raise UsageError(f"{file}: tensor {name} is {view.get_dtype()}, which cannot be merged")
                found[name] = Tensor(tuple(view.get_shape()), np.dtype(_DTYPES[view.get_dtype()]))
    return dict(sorted(found.items()))


def load_tree(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Name -> array, in order of name.

    Raises:
      UsageError: a file that is damaged.
    """
    found = {}
    for file in files(path):
        with _open(file) as tensors:
            for name in tensors.keys():
                found[name] = tensors.get_tensor(name)
    return dict(sorted(found.items()))


def save_tree(path: str | os.PathLike, tree: dict[str, Any], record: dict[str, Any], like: str | os.PathLike) -> None:
    """Writes a folder that ``transformers`` loads: one safetensors file, merge.json, and what else ``like`` holds.

    Args:
      path: the folder; it appears whole or not at all.
      tree: name -> array.
      record: the merge's provenance.
      like: folder whose configuration and tokenizer files are copied.

    Raises:
      UsageError: ``path`` exists.
    """
    path, like = Path(path), Path(like)
    if path.exists():
        raise UsageError(f"{path} exists; choose another name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for file in like.iterdir():
            weights = file.suffix in (".safetensors", ".bin", ".pt", ".msgpack", ".h5") or file.name.endswith(
                ".index.json"
            )
            if file.is_file() and not weights and file.name != "merge.json":
                shutil.copy(file, temporary)
        arrays = {name: np.asarray(array) for name, array in tree.items()}
        save_file(arrays, temporary / SINGLE, metadata={"format": "pt"})  # transformers refuses a file without it
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file}: cannot be read ({error})") from error
