"""Random parameters without a model's own initialisation, which takes seconds to compile."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsm_jax.models.model import Model


def drawn(model: Model, seed: int = 0, std: float = 0.02) -> Any:
    """Normal numbers in the shapes of ``model``, scales of norms around 1; float32."""
    random = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        return jnp.asarray(
            float("scale" in jax.tree_util.keystr(path)) + std * random.standard_normal(leaf.shape), leaf.dtype
        )

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))
