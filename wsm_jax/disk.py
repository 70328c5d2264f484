"""How much room trees, folders and streams take, and whether the disk has it."""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import jax

from wsm_jax.config import Config
from wsm_jax.errors import UsageError
from wsm_jax.run import Plan


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes when stored uncompressed."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def disk_bytes(directory: str | os.PathLike) -> int:
    """Bytes of the files under ``directory``; 0 where there is none. What goes meanwhile does not count."""
    total = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.path.getsize(os.path.join(folder, name))
    return total


def check_disk(directory: str | os.PathLike, needed: int, advice: str = "choose another disk") -> None:
    """Raises UsageError, ending in ``advice``, where its disk has less than ``needed`` bytes free."""
    free = shutil.disk_usage(_existing_parent(Path(directory).absolute())).free
    if needed > free:
        raise UsageError(
            f"{directory} needs {needed / 1e9:.3f} GB more but its disk has {free / 1e9:.3f} GB free; {advice}"
        )


def _existing_parent(path: Path) -> Path:
    return path if path.exists() else _existing_parent(path.parent)


def stream_bytes(tree: Any, saves: Iterable[int], keep: int, keep_steps: Collection[int] = ()) -> int:
    """Most bytes a stream will hold: kept checkpoints, and the one being written before an old one goes."""
    saves = sorted(set(saves))
    kept = len(saves) if not keep else min(len(saves), keep + 1 + len(set(keep_steps) & set(saves)))
    return kept * tree_bytes(tree)


def forecast(directory: Path, config: Config, plan: Plan, full: Any, merge_items: Any, start: int) -> str:
    """What the streams will hold at most, as a line to print.

    Raises:
      UsageError: the disk has less room than that.
    """
    settings = config.checkpoint
    merge_saves = [step for step in plan.merge_steps() if step > start]
    resume_saves = [step for step in plan.resume_steps() if step > start]
    merge = stream_bytes(merge_items, merge_saves, settings.merge_keep)
    resume = stream_bytes(full, resume_saves, settings.resume_keep, plan.branch_points)
    # What an earlier start has written is part of the whole and takes no room again.
    check_disk(
        directory,
        merge + resume - disk_bytes(directory / "checkpoints"),
        "lower checkpoint.merge_keep, raise checkpoint.merge_interval, or choose another disk",
    )
    kept = min(len(merge_saves), settings.merge_keep or len(merge_saves))
    held = tree_bytes(full.get("averages", {}))
    return (
        f"disk: up to {(merge + resume) / 1e9:.3f} GB under {directory} "
        f"(merge stream {kept} x {tree_bytes(merge_items) / 1e6:.1f} MB, one every "
        f"{plan.merge_interval} steps; full states {resume / 1e9:.3f} GB)"
        + (f"; averages take {held / 1e6:.1f} MB of memory" if held else "")
    )
