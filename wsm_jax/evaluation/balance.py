"""How evenly a model spreads its work over many batches, and what balances it set anew; for families that have such.

A mixture of experts counts its loads in its training loss and moves a bias by them after an update. Here the counts of
many batches are put together, and the bias is moved without an update, as it has to be where weights were averaged that
it was not set for.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from wsm_jax.errors import UsageError
from wsm_jax.models import model as model_lib
from wsm_jax.models.model import Metrics, Model, Params
from wsm_jax.parallel import activations, sharding
from wsm_jax.parallel.sharding import RULES, Rules

Batch = Mapping[str, Any]  # inputs, targets: int32 [B, T]


def measured(
    model: Model, params: Params, batches: Iterable[Batch], mesh: Mesh, *, rules: Rules = RULES
) -> dict[str, float]:
    """What training records of an update, as if all ``batches`` were one: global violations of balance, and losses.

    Args:
      model: what computes them.
      params: arrays; those that lie elsewhere are put on the devices of the mesh.
      batches: of equal shapes.
      mesh: the devices.
      rules: logical axis -> axes of the mesh.

    Raises:
      UsageError: no batches.
    """
    found_of = _jitted(lambda params, batch: _found(model, params, batch), mesh, rules)
    params = sharding.placed(mesh, params, model.axes, rules)
    total, count = None, 0
    for batch in batches:
        found = found_of(params, _rows(batch))
        total, count = found if total is None else jax.tree.map(jax.numpy.add, total, found), count + 1
    if total is None:
        raise UsageError("the balance of a model is measured on at least one batch")
    _, metrics = model_lib.after_update(model, params, jax.tree.map(lambda x: x / count, total))
    return {name: float(value) for name, value in metrics.items()}


def rebalanced(model: Model, params: Params, batches: Iterable[Batch], mesh: Mesh, *, rules: Rules = RULES) -> Params:
    """``params`` with what balances the model moved once for each batch, as after an update, and all else as it is.

    Args:
      model, params, batches, mesh, rules: as :func:`measured` has them.
    """

    def moved(params: Params, batch: Batch) -> Params:
        return model_lib.after_update(model, params, _found(model, params, batch))[0]

    step, params = _jitted(moved, mesh, rules), sharding.placed(mesh, params, model.axes, rules)
    for batch in batches:
        params = step(params, _rows(batch))
    return params


def _found(model: Model, params: Params, batch: Batch) -> Metrics:
    return model_lib.training_loss(model, params, batch["inputs"], batch["targets"])[1]


def _jitted(f: Callable[[Params, Batch], Any], mesh: Mesh, rules: Rules) -> Callable[[Params, Batch], Any]:
    def on_mesh(params: Params, batch: Batch) -> Any:
        with activations.on(mesh, rules):
            return f(params, batch)

    return jax.jit(on_mesh)


def _rows(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("inputs", "targets")}
