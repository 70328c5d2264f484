"""An Orbax checkpoint whose arrays somebody else writes: begun without them, complete once they are there."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wsm_jax.checkpoints import orbax, orbax_files
from wsm_jax.checkpoints.orbax_files import COMPLETE
from wsm_jax.core.leaves import Leaf
from wsm_jax.core.trees import named_leaves
from wsm_jax.parallel.processes import all_succeed


def begin_tree(path: str | os.PathLike, tree: Any, item: str = orbax.PARAMS) -> tuple[Path, dict[str, str]]:
    """Everything of a checkpoint but its arrays, which somebody else writes as zarr3 under the names returned.

    It is no complete checkpoint until :func:`complete_tree`. On several processes all call it together.

    Args:
      path: must not exist.
      tree: nested dictionaries and lists of :class:`wsm_jax.core.leaves.Leaf`.
      item: name of the item.

    Returns:
      as :func:`wsm_jax.checkpoints.orbax_files.array_names`, without the layout.
    """
    path = Path(path).absolute()
    # One element for each leaf: Orbax would want all of every array at once. Then the true shapes take its place.
    small = jax.tree.map(
        lambda leaf: np.zeros((1,) * len(leaf.shape), np.uint8 if leaf.text is not None else leaf.dtype), tree
    )
    with all_succeed():  # all have read what the first process then changes
        orbax.save_tree(path, small, item=item)
        folder, names, _ = orbax_files.array_names(path, item)
    with all_succeed():
        if jax.process_index() == 0:
            _take_arrays_out(path, folder, names, tree)
    return folder, names


def _take_arrays_out(path: Path, folder: Path, names: dict[str, str], tree: Any) -> None:
    """Leaves of a checkpoint of small arrays what says which arrays there are, with the shapes of ``tree``."""
    file = folder / "_METADATA"
    metadata = json.loads(file.read_text())
    leaves = named_leaves(tree)
    for entry in metadata["tree_metadata"].values():
        if not orbax_files.is_empty(entry):
            leaf, value = leaves["/".join(str(key["key"]) for key in entry["key_metadata"])], entry["value_metadata"]
            kind = orbax_files.STRING if leaf.text is not None else orbax_files.SCALAR if leaf.scalar else None
            if kind is None:
                value["write_shape"] = list(leaf.shape)
            else:  # restored as a Python number or string, as it was saved
                entry["value_metadata"] = {"value_type": kind, "skip_deserialize": False}
    file.write_text(json.dumps(metadata))
    for name in ("_sharding", orbax_files.ARRAY_METADATAS):  # both speak of the small arrays
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
    for name in names.values():
        shutil.rmtree(folder / name)
    if texts := {names[path]: leaf.text for path, leaf in leaves.items() if leaf.text is not None}:
        (folder / orbax_files.STRINGS).write_text(json.dumps(texts))
    keys = [_key_metadata(names[path], leaf) for path, leaf in leaves.items() if leaf.key]
    if keys:
        (folder / orbax_files.ARRAY_METADATAS).mkdir()
        (folder / orbax_files.ARRAY_METADATAS / "process_0").write_text(json.dumps({"array_metadatas": keys}))
    os.replace(path / COMPLETE, path / f".{COMPLETE}")


def _key_metadata(name: str, leaf: Leaf) -> dict[str, Any]:
    """What makes Orbax restore an array as random keys."""
    shape = list(leaf.shape)
    described = {"param_name": name, "write_shape": shape, "chunk_shape": shape}
    return {"array_metadata": {**described, "ext_metadata": {orbax_files.RANDOM_KEY: leaf.key}}}


def complete_tree(path: str | os.PathLike, metadata: dict[str, Any]) -> None:
    """Turns what :func:`begin_tree` made into a complete checkpoint that carries ``metadata``."""
    hidden = Path(path) / f".{COMPLETE}"
    hidden.write_text(json.dumps({**json.loads(hidden.read_text()), "custom_metadata": metadata}))
    os.replace(hidden, Path(path) / COMPLETE)
