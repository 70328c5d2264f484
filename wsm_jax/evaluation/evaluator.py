"""params -> Evaluation over batches that say which document each target is of."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wsm_jax.core.trees import named_leaves
from wsm_jax.data.pipeline import Batch
from wsm_jax.errors import NonFiniteError
from wsm_jax.evaluation.losses import Evaluation
from wsm_jax.models.model import Model, loss_per_token
from wsm_jax.parallel import activations, sharding
from wsm_jax.parallel.sharding import RULES, Rules

Evaluator = Callable[[Any], Evaluation]


def over(
    batches: Iterable[Batch],
    model: Model,
    mesh: Mesh,
    *,
    tokens: Sequence[int] | np.ndarray,
    sizes: Sequence[int] | np.ndarray,
    data_hash: str,
    left_out: int = 0,
    rules: Rules = RULES,
) -> Evaluator:
    """params -> Evaluation; the batches are put on the devices once, and the step is compiled once for each shape.

    Args:
      batches: {"inputs", "targets", "document"}: int32 [B, T]; targets whose document is -1 do not count.
      model: what computes the loss.
      mesh: the devices; its axes that carry the batch share the rows where B is a multiple of them.
      tokens: of each document, those that count.
      sizes: of each document, UTF-8 bytes.
      data_hash: see :class:`Evaluation`.
      left_out: likewise.
      rules: logical axis -> axes of the mesh.

    Returns:
      An evaluator, which raises NonFiniteError for a loss that is not finite, naming the leaf. Parameters that lie on
      the devices of the mesh stay as they are spread; others are put there as the rules say.
    """
    step = _compiled_loss(model, mesh, tuple(rules.items()))
    placed, documents = [], []
    for batch in batches:
        where = sharding.rows_sharding(mesh, len(batch["inputs"]), rules)
        placed.append(jax.device_put({name: batch[name] for name in ("inputs", "targets")}, where))
        documents.append(batch["document"].ravel())

    def evaluate(params: Any) -> Evaluation:
        params = sharding.placed(mesh, params, model.axes, rules)
        nats = np.zeros(len(sizes))
        # Every batch is dispatched before the first result is waited for, where that is safe.
        arrived = jax.block_until_ready if sharding.in_turn(mesh) else lambda loss: loss
        losses = [arrived(step(params, batch)) for batch in placed]
        for loss, document in zip(losses, documents, strict=True):
            real = document >= 0
            nats += np.bincount(document[real], np.asarray(loss, np.float64).ravel()[real], minlength=len(sizes))
        if not np.isfinite(nats).all():
            raise NonFiniteError(None, not_finite(params))
        return Evaluation(nats, np.asarray(tokens, np.int64), np.asarray(sizes, np.int64), data_hash, left_out)

    return evaluate


def not_finite(params: Any, what: str = "the loss") -> str:
    """Why ``what`` is not finite: the first leaf with a NaN or an infinity, where there is one."""
    for name, leaf in named_leaves(params).items():
        if bad := int(jnp.sum(~jnp.isfinite(leaf))):
            return f"leaf {name} has {bad} of {leaf.size} values that are NaN or infinite"
    return f"{what} is not finite, though every parameter is"


@functools.lru_cache(maxsize=8)
def _compiled_loss(
    model: Model, mesh: Mesh, rules: tuple[tuple[str, Any], ...]
) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
    """One for all splits and stores of a model, so that it is compiled once for each shape of a batch."""

    def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        with activations.on(mesh, dict(rules)):
            return loss_per_token(model, params, batch["inputs"], batch["targets"])

    return jax.jit(loss, out_shardings=sharding.replicated(mesh))
