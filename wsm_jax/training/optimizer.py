"""The update rules of the papers as optax chains: clip, direction, decoupled weight decay on matrices, rate."""

import math
from typing import Any

import jax
import optax

from wsm_jax.config import OptimizerConfig
from wsm_jax.errors import UsageError

NAMES = ("adamw", "lion", "muon", "sgd")
SCHEDULE_FREE = "schedule_free"


def decay_mask(params: Any) -> Any:
    """A tree of booleans: True for the matrices, which weight decay shrinks; False for norms and biases.

    The leading axis of the leaves under ``blocks`` counts layers and does not make a vector a matrix.
    """

    def is_matrix(path: tuple[Any, ...], leaf: Any) -> bool:
        stacked = bool(path) and getattr(path[0], "key", None) == "blocks"
        return leaf.ndim - stacked >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def make(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer of ``config`` with the given rate.

    Every rule of NAMES has the form theta <- theta - lr (u + wd theta), with ``u`` the direction of AdamW, Lion, Muon
    or momentum SGD, so one decay mask and one weight-decay-aware merge serve all of them. ``schedule_free``, a
    baseline, is AdamW without momentum under ``optax.contrib.schedule_free`` (arXiv 2405.15682): what is trained is its
    sequence y, and what is to be evaluated is :func:`averaged_params`.

    Raises:
      UsageError: unknown name or a value out of range.
    """
    if not 0 < config.peak_lr < math.inf:
        raise UsageError(f"optimizer.peak_lr is {config.peak_lr}; it must be positive and finite")
    for field in ("weight_decay", "clip_norm", "eps"):
        if not getattr(config, field) >= 0:
            raise UsageError(f"optimizer.{field} is {getattr(config, field)}; it must not be negative")
    for field in ("b1", "b2"):
        if not 0 <= getattr(config, field) < 1:
            raise UsageError(f"optimizer.{field} is {getattr(config, field)}; it must be at least 0 and below 1")
    rules = (
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        _direction(config),
        _weight_decay(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
    if config.name != SCHEDULE_FREE:
        return optax.chain(*rules)
    if not 0.0 < config.b1 < 1.0:
        raise UsageError(f"optimizer.b1 is {config.b1}; schedule_free interpolates with it, between 0 and 1")
    return optax.chain(rules[0], optax.contrib.schedule_free(optax.chain(*rules[1:]), schedule, b1=config.b1))


def _weight_decay(rate: float) -> optax.GradientTransformation:
    """Its state has one form whatever the rate is, so that a branch may decay where its parent does not."""
    return optax.add_decayed_weights(rate, mask=decay_mask) if rate else optax.masked(optax.identity(), decay_mask)


def averaged_params(opt_state: Any, params: Any) -> Any | None:
    """The parameters to evaluate under ``schedule_free``, x of the paper; None under any other optimizer."""

    def is_schedule_free(node: Any) -> bool:
        return isinstance(node, optax.contrib.ScheduleFreeState)

    for node in jax.tree.leaves(opt_state, is_leaf=is_schedule_free):
        if is_schedule_free(node):
            return optax.contrib.schedule_free_eval_params(node, params)
    return None


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    match config.name:
        case "adamw":
            return optax.scale_by_adam(config.b1, config.b2, config.eps)
        case "lion":
            return optax.scale_by_lion(config.b1, config.b2)
        case "schedule_free":  # the averaging takes the place of the momentum
            return optax.scale_by_rms(config.b2, config.eps, eps_in_sqrt=False, bias_correction=True)
        case "sgd":
            return optax.trace(config.b1)
        case "muon":
            muon = optax.contrib.muon(
                1.0,
                beta=config.b1,
                eps=config.eps,
                adam_b1=config.b1,
                adam_b2=config.b2,
                muon_weight_dimension_numbers=_muon_dimensions,
                consistent_rms=0.2,  # matches AdamW's update size, so rates carry over (Liu et al. 2025)
            )
            return optax.chain(muon, optax.scale(-1.0))  # back from a step to a direction
    raise UsageError(f"unknown optimizer.name {config.name!r}; known: {', '.join((*NAMES, SCHEDULE_FREE))}")


def _muon_dimensions(params: Any) -> Any:
    """Muon for the stacked matrices of the blocks (layer, in, out); Nesterov Adam, as in optax, for the rest."""

    def dimensions(path: tuple[Any, ...], leaf: Any) -> Any:
        if leaf.ndim == 3 and getattr(path[0], "key", None) == "blocks":
            return optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
        return None

    return jax.tree_util.tree_map_with_path(dimensions, params)
