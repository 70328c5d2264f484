"""Checkpoints on disk; the only file that imports Orbax (its v1 API).

A *stream* is a folder with one complete checkpoint a step. A run has two: ``resume`` holds everything needed to go on,
for the last few steps and the branch points; ``merge`` holds only the parameters, float32, uncompressed, as plain files
of at most 64 MB or one layer, so that a merge can read any part of them at the disk's speed. Orbax writes to a
temporary name and renames, so a folder named by a step is whole; one in a bucket is where it has its marker.
"""

import functools
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wsm_jax.checkpoints.orbax_files import (
    COMPLETE,
    PARAMS,
    array_names,
    choose_item,
    complete_steps,
    hint,
    is_checkpoint,
    is_step,
    item_names,
    metadata,
    required,
    user_metadata,
)
from wsm_jax.checkpoints.quiet import quiet
from wsm_jax.errors import UsageError
from wsm_jax.io import places
from wsm_jax.io.files import parse_json
from wsm_jax.parallel import ranges

CHUNK_BYTES = 64 * 10**6

__all__ = [
    "COMPLETE", "PARAMS", "abstract_tree", "array_names", "check_whole", "choose_item", "complete_steps", "context",
    "hint", "is_checkpoint", "is_step", "item_names", "load_tree", "orbax", "save_tree", "user_metadata",
]  # fmt: skip


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
    the first, each row (a layer of stacked ones, say) is a chunk; and where rows are tiny the leaf stays whole. Where
    the devices share it along a later dimension, a chunk is what one of them holds of one index of those before.
    """
    del key
    if axis := ranges.cut_axis(value):
        piece = math.prod(value.sharding.shard_shape(value.shape)[axis:]) * value.dtype.itemsize
        return orbax().options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=piece, shard_axes=tuple(range(axis)))
    size, row = value.dtype.itemsize, math.prod(value.shape[1:]) * value.dtype.itemsize
    chunk, rows = max(CHUNK_BYTES, size), ()
    if value.size * size > CHUNK_BYTES and row * max(value.shape[1:], default=0) > CHUNK_BYTES:
        rows = (0,) if row >= CHUNK_BYTES / 64 else ()
        chunk = max(CHUNK_BYTES, row) if rows else value.size * size
    return orbax().options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=chunk, shard_axes=rows)


@quiet()
def abstract_tree(path: str | os.PathLike, item: str | None = None) -> Any:
    """Shapes and dtypes of a stored tree as jax.ShapeDtypeStruct on the first local device; reads metadata only.

    What was saved as a Python number or string is its type.

    Raises:
      UsageError: no complete checkpoint, no such item, or metadata that cannot be read.
    """
    from orbax.checkpoint import PyTreeCheckpointHandler  # v1 has no name for what it reads as bool

    root, name = required(path), choose_item(path, item)
    try:
        metadata: Any = PyTreeCheckpointHandler().metadata(root / name if name else root)  # pyrefly: ignore
        return jax.tree.map(_abstract, metadata.tree)
    except Exception as error:
        raise UsageError(
            f"{path}: unreadable checkpoint metadata ({type(error).__name__}: {_in_one_line(error)})"
        ) from error


def _abstract(leaf: Any) -> Any:
    """What makes Orbax load a leaf whole on the first local device; a type for what was no array when it was saved."""
    kind = type(leaf).__name__
    if kind == "StringMetadata":
        return str
    if kind == "ScalarMetadata":
        return {"b": bool, "i": int, "u": int}.get(leaf.dtype.kind, float)
    return _on_first_device(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))


def _on_first_device(leaf: Any) -> Any:
    """An abstract array that says no sharding, as jax.eval_shape makes it, with one; anything else as it is."""
    if not isinstance(leaf, jax.ShapeDtypeStruct) or leaf.sharding is not None:
        return leaf
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    )


@quiet()
def load_tree(path: str | os.PathLike, item: str | None = None, abstract: Any = None) -> Any:
    """The stored tree, placed as ``abstract`` says (default: whole, on the first local device).

    Leaves of ``abstract`` without a sharding, as ``jax.eval_shape`` and ``nnx.eval_shape`` make them, are placed as by
    default. By default integers of 64 bits come back as NumPy arrays where JAX would cut them (without jax_enable_x64).

    Raises:
      UsageError: no complete checkpoint, no such item, or data that cannot be read.
    """
    from wsm_jax.checkpoints import integrity  # which needs this module

    root, name = required(path), choose_item(path, item)
    integrity.check_together(path, (name or "",))
    if abstract is None:
        abstract = jax.tree.map(_uncut, abstract_tree(path, item))
    abstract = jax.tree.map(_on_first_device, abstract)
    _check_chunks(path, item)
    try:
        with warnings.catch_warnings():  # that the sharding of a full state is read from its file
            warnings.filterwarnings("ignore", message="Sharding info not provided when restoring", module="orbax")
            return orbax().load(root, abstract, checkpointable_name=name)
    except Exception as error:
        raise UsageError(f"{path}: cannot be read ({type(error).__name__}: {_in_one_line(error)})") from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _uncut(leaf: Any) -> Any:
    """What makes Orbax load a leaf in its own dtype."""
    cut = hasattr(leaf, "dtype") and jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype
    return np.broadcast_to(np.empty((), leaf.dtype), leaf.shape) if cut and leaf.dtype.kind in "iu" else leaf


def _check_chunks(path: str | os.PathLike, item: str | None) -> None:
    """As :func:`check_whole`, of the arrays of an item that are no OCDBT database, which knows its chunks."""
    import tensorstore as ts

    if metadata(path, item)[2].endswith("ocdbt"):
        return
    folder, names, layout = array_names(path, item)
    opening = {
        leaf: ts.open({"driver": layout, "kvstore": places.store(folder / name)}, open=True)
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
    if not parse_json((folder / "_METADATA").read_text()).get("store_array_data_equal_to_fill_value"):
        return
    asked = {leaf: array.storage_statistics(query_fully_stored=True) for leaf, array in arrays.items()}
    for leaf, future in asked.items():
        try:
            whole = future.result().fully_stored
        except ValueError as error:  # a chunk that is cut has no index of its parts
            raise UsageError(f"{path}: leaf {leaf} is damaged ({_in_one_line(error)})") from error
        if not whole:
            raise UsageError(f"{path}: leaf {leaf} is not whole: a file of it under {folder} is missing")


@quiet()
def save_tree(path: str | os.PathLike, tree: Any, metadata: dict[str, Any] | None = None, item: str = PARAMS) -> None:
    """Writes one checkpoint in the merge stream's layout; it appears whole under ``path`` or not at all.

    Raises:
      UsageError: ``path`` exists.
    """
    place = places.local(path).absolute()
    if place.exists():
        raise UsageError(f"{path} exists; choose another name or remove it")
    place.parent.mkdir(parents=True, exist_ok=True)
    with context(mergeable=True):
        orbax().save(place, tree, checkpointable_name=item, custom_metadata=metadata or {})
