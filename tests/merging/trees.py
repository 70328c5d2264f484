"""Small trees and checkpoints that several tests of merging use."""

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1

from wsm_jax.checkpoints import orbax


def tree(seed: int, dtype=jnp.float32):
    """A tree as a model has it: an embedding, a stacked vector and a stacked matrix."""
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "embedding": jax.random.normal(keys[0], (7, 5)).astype(dtype),
        "blocks": {
            "norm": jax.random.normal(keys[1], (3, 5)).astype(dtype),
            "kernel": jax.random.normal(keys[2], (3, 5, 4)).astype(dtype),
        },
    }


def flat(value) -> np.ndarray:
    """All elements in float64, in the tree's order."""
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(value)])


def bits(value) -> bytes:
    """All bytes, in the tree's order."""
    return b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(value))


def save_all(folder, trees, name="params"):
    """One checkpoint for each tree, ``folder/0`` and on."""
    paths = [folder / str(i) for i in range(len(trees))]
    for path, value in zip(paths, trees, strict=True):
        orbax.save_tree(path, value, {"index": int(path.name)}, item=name)
    return paths


def plain_chunks(key, value):
    """Orbax's own choice of chunks of at most 400 bytes, which cuts the longest axis first."""
    del key, value
    return v1.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=400)
