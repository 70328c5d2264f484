"""Checkpoints to merge, whatever their format: Orbax or Hugging Face safetensors."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsm_jax import checkpoints
from wsm_jax.errors import UsageError
from wsm_jax.merging import huggingface


def check(paths: Sequence[str | os.PathLike]) -> None:
    """Raises UsageError for a path that is no complete checkpoint, or formats that are mixed."""
    for path in paths:
        if not (huggingface.is_folder(path) or checkpoints.is_checkpoint(path)):
            raise UsageError(f"{path} is neither a complete Orbax checkpoint nor a folder with {huggingface.SINGLE}")
    other = [path for path in paths if huggingface.is_folder(path) != huggingface.is_folder(paths[0])]
    if other:
        raise UsageError(f"{paths[0]} and {other[0]} differ in format; all inputs must have one format")


def abstract_tree(path: str | os.PathLike, item: str | None = None) -> Any:
    """Shapes and dtypes of what is stored at ``path``; ``item`` is for Orbax."""
    return huggingface.abstract_tree(path) if huggingface.is_folder(path) else checkpoints.abstract_tree(path, item)


def load_tree(path: str | os.PathLike, item: str | None, abstract: Any) -> Any:
    """The arrays stored at ``path``."""
    return huggingface.load_tree(path) if huggingface.is_folder(path) else checkpoints.load_tree(path, item, abstract)


def save_tree(path: str | os.PathLike, tree: Any, record: dict[str, Any], like: str | os.PathLike) -> None:
    """Writes the result in the format of the input ``like``; it appears whole under ``path`` or not at all."""
    checkpoints.check_disk(Path(path).parent, checkpoints.tree_bytes(tree))
    if huggingface.is_folder(like):
        huggingface.save_tree(path, tree, record, like)
    else:
        checkpoints.save_tree(path, tree, record)


def user_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What an Orbax checkpoint carries beside its arrays; nothing for safetensors."""
    return {} if huggingface.is_folder(path) else checkpoints.user_metadata(path)
