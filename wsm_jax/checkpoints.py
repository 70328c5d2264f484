"""Checkpoints on disk; the only file that imports Orbax (its v1 API).

A *stream* is a folder with one complete checkpoint a step. A run has two: ``resume`` holds everything needed to go on,
for the last few steps and the branch points; ``merge`` holds only the parameters, float32, uncompressed, in chunks of
at most 64 MB, so that a merge can read any part of them at the disk's speed. Orbax writes to a temporary name and
renames, so a folder named by a step is whole.
"""

import json
import os
import shutil
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import jax
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from wsm_jax.errors import UsageError

PARAMS = "params"
CHUNK_BYTES = 64 * 10**6
_DELETED = ".deleted-"  # begins the name of a checkpoint that is being removed
_UNFINISHED = ".orbax-checkpoint-tmp"  # Orbax's mark of one that is being written

# Orbax logs every save and restore, and warns when a sharding is read from the file; neither tells a user anything.
logging.set_verbosity(logging.ERROR)
warnings.filterwarnings("ignore", message="Sharding info not provided when restoring", module="orbax")


def _context(mergeable: bool) -> ocp.Context:
    """How arrays are stored: ``mergeable`` is uncompressed in chunks that a merge can read one by one."""
    context = ocp.Context()
    if mergeable:
        context.array.saving.use_compression = False
        context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    return context


class Stream:
    """Asynchronous writer of the checkpoints of one folder; use as a context manager, or call :meth:`close`.

    Args:
      directory: created if missing; leftovers of killed saves in it are removed.
      mergeable: store uncompressed in small chunks (the merge stream).
      keep: newest checkpoints kept; 0 keeps all.
      keep_steps: steps kept for ever beside them.
      read_only: leave everything in the folder alone, e.g. the saves under way of the run that writes it.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        mergeable: bool,
        keep: int = 0,
        keep_steps: Collection[int] = (),
        read_only: bool = False,
    ):
        self._directory = Path(directory).absolute()
        self._keep, self._keep_steps = keep, frozenset(keep_steps)
        self._removed: set[int] = set()
        if not read_only and jax.process_index() == 0:
            # Orbax would do it in a thread that outlives a short run and complains at exit.
            for leftover in [*self._directory.glob(f"{_DELETED}*"), *self._directory.glob(f"*{_UNFINISHED}*")]:
                shutil.rmtree(leftover)
        self._checkpointer = ocp.training.Checkpointer(epath.Path(self._directory), context=_context(mergeable))

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def directory(self) -> Path:
        """The folder, absolute."""
        return self._directory

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return [c.step for c in self._checkpointer.checkpoints if c.step not in self._removed]

    def save(self, step: int, items: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
        """Starts writing ``items`` (name -> pytree) for ``step``; returns once the arrays may be donated.

        A step that is there already is left alone: a resumed run writes the same bits again.
        """
        if step in self.steps:
            return
        self.wait()
        self._checkpointer.save_checkpointables_async(step, items, force=True, custom_metadata=metadata or {})

    def load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """The items of ``abstract`` (name -> tree of ShapeDtypeStruct with shardings) saved at ``step``."""
        return self._checkpointer.load_checkpointables(step, abstract)

    def wait(self) -> None:
        """Returns when the save under way is on disk and what it replaces is gone; raises what it raised."""
        self._checkpointer.wait()
        self._remove_old()

    def close(self) -> None:
        """Waits, then releases the folder."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def _remove_old(self) -> None:
        """Removes what need not be kept. Orbax would delete in place, and a kill then leaves half a checkpoint that
        looks whole; so each one is first renamed to what is no step."""
        for step in self.steps[: -self._keep] if self._keep else []:
            if step in self._keep_steps:
                continue
            self._removed.add(step)
            if jax.process_index() == 0:
                doomed = self._directory / f"{_DELETED}{step}"
                os.replace(self._directory / str(step), doomed)
                shutil.rmtree(doomed)


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
    marks = (root / "_CHECKPOINT_METADATA", root / "_METADATA")
    return ocp.is_orbax_checkpoint(root) and (any(mark.exists() for mark in marks) or any(root.glob("*/_METADATA")))


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
        raise UsageError(f"{path} has the items {', '.join(names)}; say which one to read")
    return names[0] if names else None


def abstract_tree(path: str | os.PathLike, item: str | None = None) -> Any:
    """Shapes and dtypes of a stored tree as jax.ShapeDtypeStruct on the first local device; reads metadata only.

    Raises:
      UsageError: no complete checkpoint, no such item, or metadata that cannot be read.
    """
    root = _require(path)
    try:
        metadata = ocp.metadata(root, choose_item(path, item)).metadata
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

    Raises:
      UsageError: no complete checkpoint, no such item, or data that cannot be read.
    """
    root, name = _require(path), choose_item(path, item)
    abstract = abstract_tree(path, item) if abstract is None else abstract
    try:
        return ocp.load(root, abstract, checkpointable_name=name)
    except Exception as error:
        raise UsageError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def save_tree(path: str | os.PathLike, tree: Any, metadata: dict[str, Any] | None = None, item: str = PARAMS) -> None:
    """Writes one checkpoint in the merge stream's layout; it appears whole under ``path`` or not at all.

    Raises:
      UsageError: ``path`` exists.
    """
    if os.path.exists(path):
        raise UsageError(f"{path} exists; choose another name or remove it")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with _context(mergeable=True):
        ocp.save(epath.Path(path).absolute(), tree, checkpointable_name=item, custom_metadata=metadata or {})


def user_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What was stored beside the arrays of the checkpoint at ``path``."""
    text = (_require(path) / "_CHECKPOINT_METADATA").read_text()
    return json.loads(text).get("custom_metadata") or {}


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes when stored uncompressed."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def disk_bytes(directory: str | os.PathLike) -> int:
    """Bytes of the files under ``directory``; 0 where there is none."""
    return sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file())


def check_disk(directory: str | os.PathLike, needed: int) -> None:
    """Raises UsageError where the disk under ``directory`` has less than ``needed`` bytes free."""
    free = shutil.disk_usage(_existing_parent(Path(directory).absolute())).free
    if needed > free:
        raise UsageError(
            f"{directory} needs {needed / 1e9:.3f} GB more but its disk has {free / 1e9:.3f} GB free; "
            "lower checkpoint.merge_keep, raise checkpoint.merge_interval, or choose another disk"
        )


def _existing_parent(path: Path) -> Path:
    return path if path.exists() else _existing_parent(path.parent)


def stream_bytes(tree: Any, saves: Iterable[int], keep: int, keep_steps: Collection[int] = ()) -> int:
    """Most bytes a stream will hold: kept checkpoints, and the one being written before an old one goes."""
    saves = sorted(set(saves))
    kept = len(saves) if not keep else min(len(saves), keep + 1 + len(set(keep_steps) & set(saves)))
    return kept * tree_bytes(tree)
