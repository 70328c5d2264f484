"""Checkpoints on disk; the only file that imports Orbax (its v1 API).

A *stream* is a folder with one complete checkpoint a step. A run has two: ``resume`` holds everything needed to go on,
for the last few steps and the branch points; ``merge`` holds only the parameters, float32, uncompressed, as plain files
of at most 64 MB or one layer, so that a merge can read any part of them at the disk's speed. Orbax writes to a
temporary name and renames, so a folder named by a step is whole.
"""

import functools
import json
import logging as stdlib_logging
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from wsm_jax.errors import UsageError

PARAMS = "params"
CHUNK_BYTES = 64 * 10**6
COMPLETE = "_CHECKPOINT_METADATA"  # written last

# Orbax logs every save and restore, and warns when a sharding is read from the file; neither tells a user anything.
logging.set_verbosity(logging.ERROR)
warnings.filterwarnings("ignore", message="Sharding info not provided when restoring", module="orbax")
# It looks for OCDBT and zarr2 only, and doubts every checkpoint in plain zarr3 files.
stdlib_logging.getLogger().addFilter(lambda record: "TensorStore data files not found" not in str(record.msg))


@functools.cache
def orbax() -> Any:
    """Orbax's v1 API, imported by what needs it: that takes a second, and a merge of safetensors needs none of it."""
    from orbax.checkpoint import v1

    return v1


def context(mergeable: bool) -> Any:
    """How arrays are stored: ``mergeable`` is uncompressed, every chunk a file that a merge can read any part of.

    Without this Orbax puts all arrays in one OCDBT database, whose reads are several times slower.
    """
    how = orbax().Context()
    if mergeable:
        how.array.saving.use_compression = False
        how.array.saving.use_ocdbt = False
        # Several devices with the same array would each write a part of it, cut so that it is no range of the leaf.
        how.array.saving.use_replica_parallel = False
        how.array.saving.scoped_storage_options_creator = _storage_options
    return how


def _storage_options(key: Any, value: Any) -> Any:
    """Chunks that are ranges of the leaf, so that a merge reads raw bytes, any part of them.

    A leaf is cut along its first dimension, whatever its rank. Orbax halves the longest side: where that might not be
    the first, each row (a layer of stacked ones, say) is a chunk; and where rows are tiny the leaf stays whole.
    """
    del key
    size, row = value.dtype.itemsize, math.prod(value.shape[1:]) * value.dtype.itemsize
    chunk, rows = max(CHUNK_BYTES, size), ()
    if value.size * size > CHUNK_BYTES and row * max(value.shape[1:], default=0) > CHUNK_BYTES:
        rows = (0,) if row >= CHUNK_BYTES / 64 else ()
        chunk = max(CHUNK_BYTES, row) if rows else value.size * size
    return orbax().options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=chunk, shard_axes=rows)


def complete_steps(directory: str | os.PathLike) -> list[int]:
    """Steps of the complete checkpoints in a stream's folder, ascending; a save under way is not listed."""
    root = Path(directory)
    if not root.is_dir():
        return []
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit() and is_checkpoint(p))


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a complete Orbax checkpoint."""
    root = epath.Path(path).absolute()
    # Orbax takes any folder whose name is not temporary, even an empty one, for a checkpoint of its old format.
    marks = (root / COMPLETE, root / "_METADATA")
    return orbax().is_orbax_checkpoint(root) and (any(mark.exists() for mark in marks) or any(root.glob("*/_METADATA")))


def _require(path: str | os.PathLike) -> epath.Path:
    if not is_checkpoint(path):
        raise UsageError(f"{path} is not a complete Orbax checkpoint")
    return epath.Path(path).absolute()


def item_names(path: str | os.PathLike) -> list[str]:
    """Names of the items in the checkpoint at ``path``, sorted.

    Raises:
      UsageError: no complete checkpoint there.
    """
    root = _require(path)
    return sorted(p.name for p in root.iterdir() if p.is_dir() and (p / "_METADATA").exists())


def choose_item(path: str | os.PathLike, item: str | None = None) -> str | None:
    """The item to read: ``item``, else ``params``, else the only one; None where the pytree lies at the top (v0).

    Raises:
      UsageError: no such item, or several and none is called ``params``.
    """
    names = item_names(path)
    if item is not None:
        if item not in names:
            raise UsageError(f"{path} has no item {item!r}; it has {', '.join(names) or 'a pytree at the top'}")
        return item
    if PARAMS in names:
        return PARAMS
    if len(names) > 1:
        raise UsageError(f"{path} has the items {', '.join(names)}; say which one to read, item=NAME or --item=NAME")
    return names[0] if names else None


def abstract_tree(path: str | os.PathLike, item: str | None = None) -> Any:
    """Shapes and dtypes of a stored tree as jax.ShapeDtypeStruct on the first local device; reads metadata only.

    Raises:
      UsageError: no complete checkpoint, no such item, or metadata that cannot be read.
    """
    root = _require(path)
    try:
        metadata = orbax().metadata(root, choose_item(path, item)).metadata
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{path}: unreadable checkpoint metadata ({type(error).__name__}: {error})") from error
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) if hasattr(leaf, "shape") else leaf,
        metadata,
    )


def load_tree(path: str | os.PathLike, item: str | None = None, abstract: Any = None) -> Any:
    """The stored tree, placed as ``abstract`` says (default: whole, on the first local device).

    By default integers of 64 bits come back as NumPy arrays where JAX would cut them (without jax_enable_x64).

    Raises:
      UsageError: no complete checkpoint, no such item, or data that cannot be read.
    """
    root, name = _require(path), choose_item(path, item)
    abstract = jax.tree.map(_uncut, abstract_tree(path, item)) if abstract is None else abstract
    _check_chunks(path, item)
    try:
        return orbax().load(root, abstract, checkpointable_name=name)
    except Exception as error:
        raise UsageError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def _uncut(leaf: Any) -> Any:
    """What makes Orbax load a leaf in its own dtype."""
    cut = hasattr(leaf, "dtype") and jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype
    return np.broadcast_to(np.empty((), leaf.dtype), leaf.shape) if cut and leaf.dtype.kind in "iu" else leaf


def _check_chunks(path: str | os.PathLike, item: str | None) -> None:
    """As :func:`check_whole`, of the arrays of an item that are no OCDBT database, which knows its chunks."""
    import tensorstore as ts

    folder, names, layout = array_names(path, item)
    if layout.endswith("ocdbt"):
        return
    opening = {
        leaf: ts.open({"driver": layout, "kvstore": file_store(folder / name)}, open=True)
        for leaf, name in names.items()
    }
    arrays = {}
    for leaf, future in opening.items():
        try:
            arrays[leaf] = future.result()
        except ValueError as error:
            raise UsageError(f"{path}: leaf {leaf} cannot be read ({error})") from error
    check_whole(path, folder, arrays)


def check_whole(path: str | os.PathLike, folder: Path, arrays: Mapping[str, Any]) -> None:
    """Raises UsageError for a chunk that is not there: from plain files TensorStore would read it as zeros.

    Orbax stores zeros as it stores other numbers; old versions, whose metadata do not say so, left them out.

    Args:
      path: the checkpoint, for the message.
      folder: that of its item.
      arrays: leaf -> open tensorstore.TensorStore.
    """
    if not json.loads((folder / "_METADATA").read_text()).get("store_array_data_equal_to_fill_value"):
        return
    asked = {leaf: array.storage_statistics(query_fully_stored=True) for leaf, array in arrays.items()}
    for leaf, future in asked.items():
        if not future.result().fully_stored:
            raise UsageError(f"{path}: leaf {leaf} is not whole: a file of it under {folder} is missing")


def save_tree(path: str | os.PathLike, tree: Any, metadata: dict[str, Any] | None = None, item: str = PARAMS) -> None:
    """Writes one checkpoint in the merge stream's layout; it appears whole under ``path`` or not at all.

    Raises:
      UsageError: ``path`` exists.
    """
    if os.path.exists(path):
        raise UsageError(f"{path} exists; choose another name or remove it")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with context(mergeable=True):
        orbax().save(epath.Path(path).absolute(), tree, checkpointable_name=item, custom_metadata=metadata or {})


def array_names(path: str | os.PathLike, item: str | None = None) -> tuple[Path, dict[str, str], str]:
    """Where the arrays of a checkpoint are stored, for those who read parts of them without Orbax.

    Returns:
      the item's folder; leaf's path ("blocks/mlp/up/kernel") -> name of its array there; and the TensorStore driver and
      key-value store that read it, ``"zarr3"``, ``"zarr"``, ``"zarr3+ocdbt"`` or ``"zarr+ocdbt"``.

    Raises:
      UsageError: no complete checkpoint, no such item, or metadata that cannot be read.
    """
    root, name = Path(_require(path)), choose_item(path, item)
    folder = root / name if name else root
    try:
        metadata = json.loads((folder / "_METADATA").read_text())
        entries = [entry["key_metadata"] for entry in metadata["tree_metadata"].values() if not is_empty(entry)]
        keys = [[str(key["key"]) for key in entry] for entry in entries]
        ocdbt = metadata.get("use_ocdbt")
        if ocdbt is None:  # old versions of Orbax did not say so
            ocdbt = (folder / "manifest.ocdbt").exists()
        layout = ("zarr3" if metadata.get("use_zarr3") else "zarr") + ("+ocdbt" if ocdbt else "")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(f"{folder}: unreadable checkpoint metadata ({type(error).__name__}: {error})") from error
    return folder, {"/".join(key): ".".join(key) for key in keys}, layout


def file_store(folder: Path) -> dict[str, str]:
    """TensorStore's key-value store of a folder. In a URL a ``#``, ``?`` or ``%`` of the path would mean something."""
    return {"driver": "file", "path": f"{folder.absolute()}/"}


def is_empty(entry: dict[str, Any]) -> bool:
    """Whether a stored node is an empty container or None, which has no array."""
    return bool(entry["value_metadata"].get("skip_deserialize"))


def user_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What was stored beside the arrays of the checkpoint at ``path``; old ones of Orbax have nothing.

    Raises:
      UsageError: no complete checkpoint, or metadata that cannot be read.
    """
    file = Path(_require(path)) / COMPLETE
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text()).get("custom_metadata") or {}
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{file}: unreadable checkpoint metadata ({type(error).__name__}: {error})") from error
