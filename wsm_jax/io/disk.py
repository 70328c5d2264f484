"""How much room trees, folders and streams take, and whether the disk has it."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import jax

from wsm_jax.errors import UsageError


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
