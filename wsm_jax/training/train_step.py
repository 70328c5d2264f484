"""One update as one pure, jitted function: gradient (over micro-batches), optimizer, metrics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from wsm_jax.models import model as model_lib
from wsm_jax.models.model import Model
from wsm_jax.parallel import activations, sharding
from wsm_jax.parallel.sharding import RULES, Rules
from wsm_jax.training.train_state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
    model: Model, optimizer: optax.GradientTransformation, *, accumulate: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """(state, batch) -> (state, metrics), not jitted.

    The batch holds ``inputs`` and ``targets``, int32 [batch_size, context], and of packed rows also ``positions``,
    ``segments`` and ``weights``: the loss is then the mean over the targets of weight 1. Metrics are float32 scalars
    ``loss`` (nats a token, before the update), ``grad_norm`` (before clipping) and what the model's family adds. With
    ``accumulate`` > 1 the rows are cut into that many micro-batches, whose gradients and metrics are averaged in
    float32. Averages of the state stay as they are: they are updated apart (``wsm_jax.training.tracking``), so that
    keeping them does not change a bit of the parameters.
    """

    def loss_of(params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        return model_lib.training_loss(model, params, batch["inputs"], batch["targets"], **packed(batch))

    def packed(batch: Batch) -> Batch:
        return {name: value for name, value in batch.items() if name not in ("inputs", "targets")}

    def one(params: Any, batch: Batch) -> tuple[tuple[jax.Array, Metrics], Any]:
        found, grads = jax.value_and_grad(loss_of, has_aux=True)(params, batch)
        return found, activations.spread_as_leaves(grads, model.axes)

    def gradient(params: Any, batch: Batch) -> tuple[tuple[jax.Array, Metrics], Any]:
        if accumulate == 1:
            return one(params, batch)
        # Micro-batch i takes rows i, i + accumulate, ...: every device keeps an equal share of each micro-batch.
        micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, one(params, part)), None

        shapes = jax.eval_shape(loss_of, params, jax.tree.map(lambda x: x[0], micro))
        zeros = activations.spread_as_leaves(jax.tree.map(jnp.zeros_like, params), model.axes)
        total, _ = jax.lax.scan(add, (jax.tree.map(jnp.zeros_like, shapes), zeros), micro)
        return jax.tree.map(lambda x: x / accumulate, total)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if "weights" in batch:  # so that a mean over all targets is one over those that count
            weights = batch["weights"]
            batch = {**batch, "weights": weights * (weights.size / weights.sum())}
        (loss, found), grads = gradient(state["params"], batch)
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        params, found = model_lib.after_update(model, params, found)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **found}
        return {**state, "params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics

    return train_step


def jit_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: TrainState,
    *,
    accumulate: int = 1,
    rules: Rules = RULES,
) -> jax.stages.Wrapped:
    """:func:`make_train_step` compiled with in and out shardings; the old state's buffers are donated.

    Args:
      state: a state or its abstract form, whose shardings are kept.
      rules: which axes of the mesh carry the batch.
    """
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(model, optimizer, accumulate=accumulate)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with activations.on(mesh, rules):
            return step(state, batch)

    return jax.jit(
        train_step,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh, rules)),
        out_shardings=(state_shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
