"""The train state: a plain dictionary ``{"params", "opt_state", "averages", "step"}``, all that is needed to resume.

Data order, learning rate and random numbers are functions of ``step`` (int32 scalar, updates done so far).
``averages`` is name -> state of the averages kept along the run (``wsm_jax.averaging``), empty where none is.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from wsm_jax.core.averages import Average
from wsm_jax.models import family
from wsm_jax.models.model import Model
from wsm_jax.parallel import sharding
from wsm_jax.parallel.sharding import RULES, Rules
from wsm_jax.training import tracking

TrainState = dict[str, Any]


def create(model: Model, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first update, without averages; pure, so it can be traced for shapes or jitted."""
    params = model.init(key)
    return {"params": params, "opt_state": optimizer.init(params), "averages": {}, "step": jnp.zeros((), jnp.int32)}


def abstract(
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    averages: Mapping[str, Average] | None = None,
    *,
    host_averages: bool = False,
    rules: Rules = RULES,
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without allocating it.

    ``host_averages`` keeps the accumulators of the averages in pinned host memory.

    Raises:
      UsageError: rules that do not fit the mesh or the model, or leaves that its family does not declare.
    """
    shapes = jax.eval_shape(lambda key: create(model, optimizer, key), jax.random.key(0))
    if model.leaves:
        family.check_leaves(model.leaves, shapes["params"])
    state = jax.tree.map(
        lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
        shapes,
        sharding.tree_shardings(mesh, shapes, model.axes, rules),
    )
    return {**state, "averages": tracking.abstract(averages or {}, state["params"], host=host_averages)}


def initialise(
    model: Model, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh, *, rules: Rules = RULES
) -> TrainState:
    """The state before the first update, created directly where :func:`abstract` says; without averages."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(model, optimizer, mesh, rules=rules))
    made = jax.jit(lambda key: create(model, optimizer, key), out_shardings=shardings)
    return made(jax.random.key(seed))


def items(state: TrainState) -> TrainState:
    """What a full state on disk holds, arrays or shapes: all but the step, which is the checkpoint's name.

    Without averages it holds what it held before there were any.
    """
    return {name: state[name] for name in ("params", "opt_state", "averages") if name != "averages" or state[name]}
