"""What the files of an Orbax checkpoint say, read without Orbax: steps, items, leaves, and where their arrays lie."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from wsm_jax.errors import UsageError
from wsm_jax.io import places, publish
from wsm_jax.io.files import parse_json

PARAMS = "params"
COMPLETE = "_CHECKPOINT_METADATA"  # written last
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of what is being written

# How Orbax keeps what is no plain array: the kinds of value in _METADATA, and files beside it.
SCALAR, STRING = "scalar", "string"
STRINGS = "_strings.json"
ARRAY_METADATAS, RANDOM_KEY = "array_metadatas", "random_key_impl"


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


def required(path: str | os.PathLike) -> Path:
    """The absolute path of a checkpoint; UsageError where no complete one is there."""
    if not is_checkpoint(path):
        raise UsageError(f"{path} is not a complete Orbax checkpoint")
    return places.at(path).absolute()


def item_names(path: str | os.PathLike) -> list[str]:
    """Names of the items in the checkpoint at ``path``, sorted.

    Raises:
      UsageError: no complete checkpoint there.
    """
    root = required(path)
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


def array_names(path: str | os.PathLike, item: str | None = None) -> tuple[Path, dict[str, str], str]:
    """Where the arrays of a checkpoint are stored, for those who read parts of them without Orbax.

    Returns:
      the item's folder; leaf's path ("blocks/mlp/up/kernel") -> name of its array there; and the TensorStore driver and
      key-value store that read it, ``"zarr3"``, ``"zarr"``, ``"zarr3+ocdbt"`` or ``"zarr+ocdbt"``.

    Raises:
      UsageError: no complete checkpoint, no such item, metadata that cannot be read, or two leaves of one name.
    """
    folder, kinds, layout = metadata(path, item)
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
    folder, kinds, _ = metadata(path, item)
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


def metadata(path: str | os.PathLike, item: str | None) -> tuple[Path, list[tuple[list[str], str]], str]:
    """An item's folder; keys and kind of value of each leaf; the layout as :func:`array_names` gives it."""
    root, name = required(path), choose_item(path, item)
    folder = root / name if name else root
    try:
        stored = parse_json((folder / "_METADATA").read_text())
        entries = [entry for entry in stored["tree_metadata"].values() if not is_empty(entry)]
        kinds = [
            ([str(key["key"]) for key in entry["key_metadata"]], str(entry["value_metadata"].get("value_type")))
            for entry in entries
        ]
        ocdbt = stored.get("use_ocdbt")
        if ocdbt is None:  # old versions of Orbax did not say so
            ocdbt = (folder / "manifest.ocdbt").exists()
        layout = ("zarr3" if stored.get("use_zarr3") else "zarr") + ("+ocdbt" if ocdbt else "")
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
    file = required(path) / COMPLETE
    if not file.exists():
        return {}
    try:
        return parse_json(file.read_text()).get("custom_metadata") or {}
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{file}: unreadable checkpoint metadata ({type(error).__name__}: {error})") from error
