"""A second look at an exported folder: read back, it answers as the run does."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from wsm_jax.checkpoints import orbax
from wsm_jax.config import ModelFields
from wsm_jax.core.trees import named_leaves
from wsm_jax.errors import UsageError
from wsm_jax.interchange import architecture, incoming, transfer
from wsm_jax.interchange.architecture import Layout
from wsm_jax.models import family, model
from wsm_jax.models.public import CONFIG

TOLERANCE = 1e-4  # of the largest logit, or of 1 where that is smaller
ROWS, TOKENS = 2, 64


def read_back(folder: Path) -> tuple[ModelFields, Any]:
    """The model of a folder: its fields, and its parameters as a nested dictionary of float32 arrays in memory.

    Raises:
      UsageError: as an import of it.
    """
    public, fields = architecture.recognise(architecture.read_config(folder), str(folder / CONFIG))
    layout, source = Layout(public, fields), incoming.weights(folder)
    named, _ = layout.matched({name: leaf.shape for name, leaf in source.leaves.items()}, folder)
    arrays = {path: np.empty(shape, np.float32) for path, shape in layout.ours.items()}

    def write(path: str, start: int, values: np.ndarray) -> None:
        arrays[path].reshape(-1)[start : start + values.size] = values

    transfer.bring_in(layout, source, named, write)
    return fields, unflatten_dict(arrays, sep="/")


def compare(path: Path, fields: ModelFields, folder: Path) -> float:
    """The largest difference between the logits of a checkpoint, rounded as it was exported, and of the folder.

    Both models are held in memory. Tokens are random, the same ones every time.

    Args:
      path: the checkpoint with the parameters.
      fields: of its model.
      folder: what it was exported to.

    Raises:
      UsageError: they differ by more than TOLERANCE.
    """
    public, _ = architecture.publishable(fields, str(path))
    layout, source = Layout(public, fields), incoming.weights(folder)
    there = {}
    for name, entry in layout.entries.items():
        there |= dict.fromkeys(entry.tensor.leaves, source.leaves[name].dtype)
    params = orbax.load_tree(path)
    leaves = {name: leaf.astype(there[name]).astype(jnp.float32) for name, leaf in named_leaves(params).items()}
    read, again = read_back(folder)
    ids = np.random.default_rng(0).integers(0, fields.vocab_size, (ROWS, min(TOKENS, fields.context)), np.int32)
    ours, theirs = _logits(fields, unflatten_dict(leaves, sep="/"), ids), _logits(read, again, ids)
    difference, largest = float(np.abs(ours - theirs).max()), float(np.abs(ours).max())
    if not difference <= TOLERANCE * max(largest, 1.0):
        raise UsageError(f"{folder}: read back, logits differ by {difference:.3g} from those of {path}")
    return difference


def _logits(fields: ModelFields, params: Any, ids: np.ndarray) -> np.ndarray:
    built = model.build(family.of(fields).portable(fields))
    return np.asarray(jax.jit(built.apply)(params, ids))
