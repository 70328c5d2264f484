"""The train state: a plain dictionary ``{"params", "opt_state", "step"}``; nothing else is needed to resume.

Data order, learning rate and random numbers are functions of ``step`` (int32 scalar, updates done so far).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from wsm_jax import sharding
from wsm_jax.models.model import Model

TrainState = dict[str, Any]


def create(model: Model, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first update; pure, so it can be traced for shapes or jitted with out shardings."""
    params = model.init(key)
    return {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}


def abstract(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, without allocating it."""
    shapes = jax.eval_shape(lambda key: create(model, optimizer, key), jax.random.key(0))
    return jax.tree.map(
        lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
        shapes,
        sharding.tree_shardings(mesh, shapes),
    )


def initialise(model: Model, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh) -> TrainState:
    """The state before the first update, created directly on its devices."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(model, optimizer, mesh))
    return jax.jit(lambda key: create(model, optimizer, key), out_shardings=shardings)(jax.random.key(seed))
