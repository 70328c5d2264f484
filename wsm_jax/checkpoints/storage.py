"""Checkpoints to merge, whatever their format, and the place where a merge appears: whole or not at all."""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from wsm_jax.checkpoints import huggingface, model_folder, orbax, torch_source
from wsm_jax.core.leaves import Leaf
from wsm_jax.core.trees import named_leaves
from wsm_jax.errors import UsageError, warn
from wsm_jax.io import hashes, places, publish
from wsm_jax.parallel.processes import all_succeed

ORBAX, SAFETENSORS = FORMATS = ("orbax", "safetensors")
FLAT = (huggingface.Source, torch_source.Source)  # names with dots, and merges of them are written as safetensors

# The item to read of every Orbax checkpoint, or one for each; None: `params`, else the only one.
Items = str | Sequence[str | None] | None


class Source(Protocol):
    """A checkpoint on disk.

    Attributes:
      path: its folder.
      leaves: path -> leaf, in the order in which reading is best.
      hashes: path -> digest of each unit, see :mod:`wsm_jax.io.hashes`; None where the checkpoint has none.
    """

    path: Path
    leaves: dict[str, Leaf]
    hashes: dict[str, list[str]] | None

    def tree(self) -> Any:
        """The tree that was saved, with something of shape and dtype for each array."""
        ...

    def read(self, path: str, start: int, out: np.ndarray) -> None:
        """Fills ``out`` (1-D, of the leaf's dtype) from element ``start`` on; ends lie on multiples of the quantum."""
        ...

    def rows(self, path: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of the leaf (a scalar: all of it), read by the format's own library."""
        ...

    def record(self) -> dict[str, Any]:
        """What identifies the checkpoint in a record."""
        ...

    def held(self) -> dict[Path, list[tuple[int, int]]]:
        """File -> ascending ranges [start, stop) of its bytes that hold elements of leaves that are raw bytes."""
        ...

    def file_at(self, path: str, element: int) -> Path:
        """The file, or the folder, that holds an element of a leaf."""
        ...

    def close(self) -> None:
        """Lets go of its files."""
        ...


class Sink(Protocol):
    """A checkpoint being written, with the hashes of what is stored."""

    def write(self, path: str, start: int, values: np.ndarray) -> None:
        """Stores ``values`` (1-D, of the leaf's dtype) from element ``start`` of the leaf on; from any thread."""
        ...

    def share(self) -> None:
        """Called by every process when its part is written, before the first one finishes."""
        ...

    def finish(self, record: Mapping[str, Any]) -> None:
        """Stores the hashes and the record; the checkpoint is complete then."""
        ...


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a complete checkpoint of a known format."""
    return huggingface.is_folder(path) or torch_source.is_checkpoint(path) or orbax.is_checkpoint(path)


def open_source(path: str | os.PathLike, item: str | None = None) -> Source:
    """The checkpoint at ``path``; reads metadata only.

    Raises:
      UsageError: no complete checkpoint of a known format, or its metadata is damaged.
    """
    if huggingface.is_folder(path):
        return huggingface.Source(publish.at_hand(places.at(path)))
    if torch_source.is_meant(path):
        return torch_source.Source(path, item)
    if orbax.is_checkpoint(path):
        from wsm_jax.checkpoints import zarr  # and with it TensorStore

        return zarr.Source(path, item)
    place = places.at(path)
    wanted = f"a complete Orbax checkpoint nor a folder with {huggingface.SINGLE}"
    if not place.exists():
        hint = "; there is nothing at that path"
    elif place.is_file():
        hint = torch_source.hint(place) or f"; a single file goes into a folder of its own, as {huggingface.SINGLE}"
    elif (place / "run.json").is_file():
        hint = f"; it is a run: --run={path}"
    else:
        steps = orbax.complete_steps(place)
        hint = f"; it holds those of steps {steps[0]} to {steps[-1]}: name them, oldest first" if steps else ""
        hint = hint or orbax.hint(place) or model_folder.hint(place) or torch_source.hint(place)
        inside = [] if hint else [child for child in sorted(place.iterdir()) if is_checkpoint(child)]
        hint = f"; there are checkpoints in it, e.g. {inside[0]}" if inside else hint
    raise UsageError(f"{path} is neither {wanted}{hint}")


def items_of(item: Items, count: int) -> list[str | None]:
    """The item to read of each of ``count`` checkpoints.

    Raises:
      UsageError: a sequence of another length, or of something that is neither a name nor None.
    """
    if item is None or isinstance(item, str):
        return [item] * count
    items = list(item)
    if len(items) != count:
        raise UsageError(f"{count} checkpoints need one item for all or {count} of them, got {len(items)}")
    if wrong := [name for name in items if not (name is None or isinstance(name, str))]:
        raise UsageError(f"item {wrong[0]!r} is no name; give a string, or None for `params` or the only one")
    return items


@contextlib.contextmanager
def open_sources(paths: Sequence[str | os.PathLike], item: Items = None) -> Iterator[list[Source]]:
    """All checkpoints at ``paths``, closed at the end. An item of a path given twice is opened once.

    Args:
      paths: folders, at least one.
      item: of Orbax checkpoints: one for all paths, or one for each.

    Raises:
      UsageError: as :func:`open_source` and :func:`items_of`; no paths; formats that are mixed.
    """
    if not paths:
        raise UsageError("nothing to merge: no checkpoints were given")
    keys = [(str(path), name) for path, name in zip(paths, items_of(item, len(paths)), strict=True)]
    opened: dict[tuple[str, str | None], Source] = {}
    try:
        for path, name in dict.fromkeys(keys):
            opened[path, name] = open_source(path, name)
        first = opened[keys[0]]
        other = [source.path for source in opened.values() if type(source) is not type(first)]
        if other:
            raise UsageError(f"{first.path} and {other[0]} differ in format; all inputs must have one format")
        if isinstance(first, FLAT) and (folders := [one.path for one in opened.values() if one.path.is_dir()]):
            model_folder.check_inputs(folders)
        if isinstance(first, torch_source.Source) and first.left_out:
            warn(f"only the tensors of the model are read of {first.path}: {', '.join(first.left_out)} is left out")
        yield [opened[key] for key in keys]
    finally:
        for source in opened.values():
            source.close()


def create_sink(
    path: Path,
    leaves: Mapping[str, Leaf],
    like: Source,
    form: str | None = None,
    item: str | None = None,
    files: Mapping[str, str] | None = None,
) -> Sink:
    """A sink for ``leaves`` at ``path``, which does not exist. On several processes all call it together.

    Args:
      path: the folder to be.
      leaves: path -> leaf to write, as the inputs name them.
      like: the newest input; where the format stays, its tree, its files and its configuration are taken over. Where it
        changes, ``a/b`` in a tree and ``a.b`` in safetensors are one name.
      form: ``orbax`` or ``safetensors``; default: as ``like``.
      item: what the tree is called in an Orbax checkpoint; default ``params``.
      files: leaf -> file of safetensors, where ``like`` is no such folder; default: one file.

    Raises:
      UsageError: two leaves that would have one name, a dtype that the form cannot hold, an item that it has not.
    """
    was = SAFETENSORS if isinstance(like, FLAT) else ORBAX
    form = form or was
    texts = [name for name, leaf in leaves.items() if leaf.text is not None and form == SAFETENSORS]
    if texts:
        warn(f"safetensors hold no strings; left out: {', '.join(texts)}")
        leaves = {name: leaf for name, leaf in leaves.items() if leaf.text is None}
    if item is not None and form == SAFETENSORS:
        raise UsageError(f"output_item={item}: a folder of safetensors has no items")
    if item is not None and not re.fullmatch(r"\w[\w.-]*", item):
        raise UsageError(f"output_item={item!r} is no name: letters, digits, _, - and . make one")
    names = {name: output_name(name, like, form) for name in leaves}
    renamed = {names[name]: leaf for name, leaf in leaves.items()}
    if len(renamed) < len(leaves):
        raise UsageError(f"two leaves of {like.path} have one name in {form}; merge into {was}")
    first = jax.process_index() == 0
    if form == SAFETENSORS:
        with all_succeed():
            folder = like if isinstance(like, FLAT) and like.path.is_dir() else None  # a file has nothing beside it
            inner = huggingface.Sink(path, renamed, folder, first, files)
        return _Hashed(inner, path, "", names, renamed)
    from wsm_jax.checkpoints import zarr

    with all_succeed():
        # A leaf that is not written becomes None, which a tree does not count as a leaf.
        tree = like.tree() if form == was else _nested(renamed)
        kept = [renamed.get(name) for name in named_leaves(tree)]
        tree = jax.tree.unflatten(jax.tree.structure(tree), kept)
    item = item or orbax.PARAMS
    return _Hashed(zarr.Sink(path, renamed, tree, create=first, item=item), path, item, names, renamed)


def output_name(name: str, like: Source, form: str | None = None) -> str:
    """What the leaf ``name`` of ``like`` is called when written as ``form``."""
    if form in (None, SAFETENSORS if isinstance(like, FLAT) else ORBAX):
        return name
    return name.replace("/", ".") if form == SAFETENSORS else name.replace(".", "/")


class _Hashed:
    """A sink whose leaves may have other names than the inputs', and which hashes what it is given."""

    def __init__(self, sink: Any, folder: Path, item: str, names: Mapping[str, str], leaves: Mapping[str, Leaf]):
        self._sink, self._folder, self._item, self._names = sink, folder, item, names
        self._units = hashes.Units({name: leaf.size for name, leaf in leaves.items()})
        self._table: dict[str, list[Any]] = {name: [None] * hashes.count(leaf.size) for name, leaf in leaves.items()}

    def write(self, path: str, start: int, values: np.ndarray) -> None:
        name = self._names[path]
        for number, digest in self._units.add(name, start, values):
            self._table[name][number] = digest
        self._sink.write(name, start, values)

    def share(self) -> None:
        if jax.process_index():
            self._part(jax.process_index()).write_text(json.dumps(self._table))

    def finish(self, record: Mapping[str, Any]) -> None:
        for process in range(1, jax.process_count()):
            for name, found in json.loads(self._part(process).read_text()).items():
                self._table[name] = [ours or theirs for ours, theirs in zip(self._table[name], found, strict=True)]
            self._part(process).unlink()
        hashes.write(self._folder, {self._item: self._table})
        self._sink.finish(record)

    def _part(self, process: int) -> Path:
        return self._folder / f".{hashes.FILE}.{process}"


def _nested(leaves: Mapping[str, Leaf]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node: Any = tree
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or name in node:
            raise UsageError(
                f"a tree cannot hold leaf {path} and another one inside it or around it; merge into {SAFETENSORS}"
            )
        node[name] = leaf
    return tree
