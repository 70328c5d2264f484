"""Checkpoints on disk; the only file that imports Orbax (its v1 API).

A *stream* is a folder with one complete checkpoint a step. A run has two: ``resume`` holds everything needed to go on,
for the last few steps and the branch points; ``merge`` holds only the parameters, float32, uncompressed, as plain files
of at most 64 MB or one layer, so that a merge can read any part of them at the disk's speed. Orbax writes to a
temporary name and renames, so a folder named by a step is whole; one in a bucket is where it has its marker.
"""

import functools
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wsm_jax.checkpoints.quiet import quiet
from wsm_jax.errors import UsageError
from wsm_jax.io import places, publish
from wsm_jax.io.files import parse_json
from wsm_jax.parallel import ranges

PARAMS = "params"
CHUNK_BYTES = 64 * 10**6
COMPLETE = "_CHECKPOINT_METADATA"  # written last
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of what is being written

# How Orbax keeps what is no plain array: the kinds of value in _METADATA, and files beside it.
SCALAR, STRING = "scalar", "string"
STRINGS = "_strings.json"
ARRAY_METADATAS, RANDOM_KEY = "array_metadatas", "random_key_impl"


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


def complete_steps(directory: str | os.PathLike) -> list[int]:
    """Steps of the complete checkpoints in a stream's folder, ascending; a save under way is not listed."""
    root = places.at(directory)
    if not root.is_dir():
        return []
    steps = [path for path in root.iterdir() if is_step(path.name)]
    return sorted(int(path.name) for path, whole in zip(steps, places.ask(is_checkpoint, steps), strict=True) if whole)


def is_step(text: str) -> bool:
    """Whether ``text`` is a step as folders are named by: plain digits (``²`` is one to str.isdigit, not to int)."""
    return re.fullmatch("0|[1-9][0-9]{0,17}", text) is not None


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a complete Orbax checkpoint: it is renamed to its name once all of it is there."""
    root = places.at(path).absolute()
    # Orbax's own check takes 20 ms, as it starts a loop and threads, and an empty folder for one of its old format.
    if _TEMPORARY in root.name:
        return False
    if places.on_bucket(root):  # Orbax writes there under the name that stays
        return publish.is_draft(root) or publish.is_whole(root)
    if (root / COMPLETE).exists():
        return True
    is_item = (root.parent / COMPLETE).exists()
    return not is_item and ((root / "_METADATA").exists() or any(root.glob("*/_METADATA")))


def _require(path: str | os.PathLike) -> Path:
    if not is_checkpoint(path):
        raise UsageError(f"{path} is not a complete Orbax checkpoint")
    return places.at(path).absolute()


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


def hint(path: Path) -> str:
    """What to type where ``path`` is an item of a checkpoint and no checkpoint; else empty."""
    parent = path.absolute().parent
    if not ((path / "_METADATA").exists() and is_checkpoint(parent)):
        return ""
    return f"; it is an item of the checkpoint {path.parent}: give that, and --item={path.absolute().name}"


@quiet()
def abstract_tree(path: str | os.PathLike, item: str | None = None) -> Any:
    """Shapes and dtypes of a stored tree as jax.ShapeDtypeStruct on the first local device; reads metadata only.

    What was saved as a Python number or string is its type.

    Raises:
      UsageError: no complete checkpoint, no such item, or metadata that cannot be read.
    """
    from orbax.checkpoint import PyTreeCheckpointHandler  # v1 has no name for what it reads as bool

    root, name = _require(path), choose_item(path, item)
    try:
        metadata: Any = PyTreeCheckpointHandler().metadata(root / name if name else root)  # pyright: ignore[reportArgumentType]
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

    root, name = _require(path), choose_item(path, item)
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

    if _metadata(path, item)[2].endswith("ocdbt"):
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


def array_names(path: str | os.PathLike, item: str | None = None) -> tuple[Path, dict[str, str], str]:
    """Where the arrays of a checkpoint are stored, for those who read parts of them without Orbax.

    Returns:
      the item's folder; leaf's path ("blocks/mlp/up/kernel") -> name of its array there; and the TensorStore driver and
      key-value store that read it, ``"zarr3"``, ``"zarr"``, ``"zarr3+ocdbt"`` or ``"zarr+ocdbt"``.

    Raises:
      UsageError: no complete checkpoint, no such item, metadata that cannot be read, or two leaves of one name.
    """
    folder, kinds, layout = _metadata(path, item)
    paths = ["/".join(key) for key, _ in kinds]
    stored = [".".join(key) for key, _ in kinds]
    for names in (paths, stored):
        if twice := next((name for name, count in Counter(names).items() if count > 1), None):
            raise UsageError(f"{path} has two leaves called {twice}; rename a key with / or . in it and save it again")
    strings = {name for name, (_, kind) in zip(paths, kinds, strict=True) if kind == STRING}
    arrays = zip(paths, stored, strict=True)
    return folder, {name: array for name, array in arrays if name not in strings}, layout


def others(path: str | os.PathLike, item: str | None = None) -> tuple[set[str], dict[str, str], dict[str, str]]:
    """What of a stored tree was no plain array when it was saved.

    Returns:
      paths of Python numbers, which are stored as arrays; path -> string; path -> implementation of the random keys
      whose bits an array holds.

    Raises:
      UsageError: as :func:`array_names`.
    """
    folder, kinds, _ = _metadata(path, item)
    paths = {".".join(key): "/".join(key) for key, _ in kinds}
    scalars = {"/".join(key) for key, kind in kinds if kind == SCALAR}
    try:
        has_text = any(kind == STRING for _, kind in kinds)
        texts = parse_json((folder / STRINGS).read_text(encoding="utf-8")) if has_text else {}
        strings = {"/".join(key): str(texts[".".join(key)]) for key, kind in kinds if kind == STRING}
        keys = {}
        for file in sorted((folder / ARRAY_METADATAS).glob("process_*")):
            for entry in parse_json(file.read_text(encoding="utf-8"))["array_metadatas"]:
                array = entry["array_metadata"]
                if implementation := (array.get("ext_metadata") or {}).get(RANDOM_KEY):
                    keys[paths[array["param_name"]]] = str(implementation)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UsageError(f"{folder}: unreadable checkpoint metadata ({type(error).__name__}: {error})") from error
    return scalars, strings, keys


def _metadata(path: str | os.PathLike, item: str | None) -> tuple[Path, list[tuple[list[str], str]], str]:
    """An item's folder; keys and kind of value of each leaf; the layout as :func:`array_names` gives it."""
    root, name = _require(path), choose_item(path, item)
    folder = root / name if name else root
    try:
        metadata = parse_json((folder / "_METADATA").read_text())
        entries = [entry for entry in metadata["tree_metadata"].values() if not is_empty(entry)]
        kinds = [
            ([str(key["key"]) for key in entry["key_metadata"]], str(entry["value_metadata"].get("value_type")))
            for entry in entries
        ]
        ocdbt = metadata.get("use_ocdbt")
        if ocdbt is None:  # old versions of Orbax did not say so
            ocdbt = (folder / "manifest.ocdbt").exists()
        layout = ("zarr3" if metadata.get("use_zarr3") else "zarr") + ("+ocdbt" if ocdbt else "")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UsageError(f"{folder}: unreadable checkpoint metadata ({type(error).__name__}: {error})") from error
    return folder, kinds, layout


def is_empty(entry: dict[str, Any]) -> bool:
    """Whether a stored node is an empty container or None, which has no array."""
    return bool(entry["value_metadata"].get("skip_deserialize"))


def user_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What was stored beside the arrays of the checkpoint at ``path``; old ones of Orbax have nothing.

    Raises:
      UsageError: no complete checkpoint, or metadata that cannot be read.
    """
    file = _require(path) / COMPLETE
    if not file.exists():
        return {}
    try:
        return parse_json(file.read_text()).get("custom_metadata") or {}
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{file}: unreadable checkpoint metadata ({type(error).__name__}: {error})") from error
