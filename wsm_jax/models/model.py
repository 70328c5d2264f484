"""A model as pure functions on a plain nested dictionary of arrays: ``init(key)`` and ``apply(params, tokens)``."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from wsm_jax.config import ModelFields, left_open
from wsm_jax.errors import UsageError
from wsm_jax.models import (  # a family registers when its file is imported
    family,
    gpt2,  # noqa: F401
    ling,  # noqa: F401
    llama,  # noqa: F401
    neox,  # noqa: F401
    picks,
)
from wsm_jax.models.cross_entropy import mean_cross_entropy, token_cross_entropy
from wsm_jax.models.family import Forward, Init, Leaves, Metrics, Params
from wsm_jax.models.layers import matmul


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Pure functions of one architecture; equal to nothing but itself, so that what is compiled for it can be kept.

    Attributes:
      config: the shape, fields of its family.
      init: PRNG key -> params, a nested dict of float32 arrays.
      hidden: (params, int tokens [B, T]) -> last hidden states [B, T, D] and output projection [D, V].
      leaves: path -> what its family declares of a leaf of the parameters; empty where no family does, as in tests.
    """

    config: Any
    init: Init
    hidden: Forward
    leaves: Leaves = dataclasses.field(default_factory=dict)

    @property
    def axes(self) -> dict[str, tuple[str, ...]] | None:
        """Path -> logical axes of a leaf; None where no family declares them."""
        return {path: leaf.axes for path, leaf in self.leaves.items()} or None

    def apply(self, params: Params, tokens_BxT: jax.Array) -> jax.Array:
        """Logits, float32 [B, T, V]."""
        return matmul(*self.hidden(params, tokens_BxT), jnp.dtype("float32"))


def build(config: ModelFields, rows: int = 1) -> Model:
    """The model of ``config``; what that leaves open is decided for this machine.

    Args:
      config: fields of a family.
      rows: sequences that a device computes at a time.

    Raises:
      UsageError: a shape or dtype that cannot work, naming the field.
    """
    check(config)
    kind = family.of(config)
    config = kind.picked(config, rows)
    if "loss_blocks" in left_open(config):
        config = dataclasses.replace(config, loss_blocks=picks.loss_blocks(config.context, rows * config.vocab_size))
    return Model(config, *kind.network(config), leaves=kind.leaves(config))


def check(config: ModelFields) -> None:
    """Raises UsageError where the fields of ``config`` cannot make a model."""
    kind = family.of(config)
    for field in ("context", "vocab_size"):
        if getattr(config, field) < 1:
            raise UsageError(f"model.{field} is {getattr(config, field)}; it must be at least 1")
    if "loss_blocks" not in left_open(config) and (config.loss_blocks < 1 or config.context % config.loss_blocks):
        raise UsageError(f"model.loss_blocks={config.loss_blocks} does not divide model.context={config.context}")
    if config.compute_dtype not in ("float32", "bfloat16"):
        raise UsageError(f"model.compute_dtype is {config.compute_dtype!r}; choose float32 or bfloat16")
    kind.check(config)


def lacks(error: TypeError, *keywords: str) -> bool:
    """Whether a family's forward function was given one of ``keywords`` and takes none of that name."""
    return any(f"keyword argument '{keyword}'" in str(error) for keyword in keywords)


def check_packed(model: Model) -> None:
    """Raises UsageError where ``model`` cannot keep the conversations of one row apart."""
    ids = jax.ShapeDtypeStruct((1, model.config.context), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    hidden: Any = model.hidden  # families that can are given more than Forward has
    try:
        jax.eval_shape(lambda p, x: hidden(p, x, positions=x, segments=x), params, ids)
    except TypeError as error:
        if not lacks(error, "positions", "segments"):
            raise
        raise UsageError(
            f"models of family {model.config.family} take no positions and segments, so conversations packed into one "
            "row would see each other; choose another family, or text in place of conversations"
        ) from error


def loss_per_token(
    model: Model, params: Params, inputs_BxT: jax.Array, targets_BxT: jax.Array, **packed: jax.Array
) -> jax.Array:
    """Cross-entropy in nats of every target token, float32 [B, T]; the logits of one of ``loss_blocks`` at a time.

    ``packed`` may hold ``positions`` and ``segments``, as :class:`Forward` takes them.
    """
    x_BxTxD, kernel_DxV = model.hidden(params, inputs_BxT, **packed)
    return token_cross_entropy(x_BxTxD, kernel_DxV, targets_BxT, model.config.loss_blocks)


def mean_loss(model: Model, params: Params, inputs_BxT: jax.Array, targets_BxT: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats a token, float32 scalar."""
    if model.config.loss_blocks <= 1:
        return loss_per_token(model, params, inputs_BxT, targets_BxT).mean()
    return mean_cross_entropy(*model.hidden(params, inputs_BxT), targets_BxT, model.config.loss_blocks)


def training_loss(
    model: Model,
    params: Params,
    inputs_BxT: jax.Array,
    targets_BxT: jax.Array,
    weights: jax.Array | None = None,
    **packed: jax.Array,
) -> tuple[Any, Metrics]:
    """What training descends, float32 scalar, and scalars to record beside it.

    The mean cross-entropy, or what the family makes of it (terms that balance experts, counts). With ``weights``,
    float32 [B, T], it is the mean of the weighted cross-entropy; ``packed`` is as :func:`loss_per_token` takes it.
    """
    extended = family.of(model.config).loss if model.leaves else None
    if extended is not None:
        batch = (inputs_BxT, targets_BxT) if weights is None else (inputs_BxT, targets_BxT, weights)
        return extended(model, params, *batch, **packed)
    if weights is not None:
        return (loss_per_token(model, params, inputs_BxT, targets_BxT, **packed) * weights).mean(), {}
    return mean_loss(model, params, inputs_BxT, targets_BxT), {}


def after_update(model: Model, params: Params, found: Metrics) -> tuple[Params, Metrics]:
    """The parameters with what their family moves by another rule than the gradient, and the scalars to record.

    Args:
      model: what was trained.
      params: after the optimizer's update.
      found: what :func:`training_loss` gave beside the loss, averaged over micro-batches.
    """
    return family.of(model.config).after_update(model.config, params, found) if model.leaves else (params, found)


def stops(config: ModelFields, metrics: Mapping[str, float]) -> str:
    """Why a run must not go on after an update with such metrics, as its family sees it; "" where it may."""
    return family.of(config).stops(config, metrics)


def parameter_count(params: Params) -> int:
    """Number of elements over all leaves of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def active_parameters(config: ModelFields, parameters: int) -> int:
    """Those of all ``parameters`` that one token passes through, as its family counts them."""
    return family.of(config).active_parameters(config, parameters)


def flops_per_token(config: ModelFields, parameters: int) -> float:
    """Training FLOPs a token for MFU, as its family counts them."""
    return family.of(config).flops_per_token(config, parameters)
