"""The update rules of the papers as optax chains: clip, direction, decoupled weight decay on matrices, rate."""

import functools
import math
from typing import Any

import jax
import optax

from wsm_jax.config import OptimizerConfig
from wsm_jax.core.trees import path_name
from wsm_jax.errors import UsageError
from wsm_jax.models.family import Leaves

NAMES = ("adamw", "lion", "muon", "sgd")
SCHEDULE_FREE = "schedule_free"


def decay_mask(params: Any, leaves: Leaves) -> Any:
    """A tree of booleans: True for what weight decay shrinks, the matrices; False for norms and biases.

    Args:
      params: arrays or shapes.
      leaves: path -> what the model's family declares of a leaf.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[path_name(path)].decayed, params)


def make(config: OptimizerConfig, schedule: optax.Schedule, leaves: Leaves) -> optax.GradientTransformation:
    """The optimizer of ``config`` with the given rate, for parameters of which a family declares ``leaves``.

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
        _direction(config, leaves),
        _weight_decay(config.weight_decay, leaves),
        optax.scale_by_learning_rate(schedule),
    )
    if config.name != SCHEDULE_FREE:
        return optax.chain(*rules)
    if not 0.0 < config.b1 < 1.0:
        raise UsageError(f"optimizer.b1 is {config.b1}; schedule_free interpolates with it, between 0 and 1")
    if moved := [path for path, leaf in leaves.items() if not leaf.has_gradient]:
        raise UsageError(
            f"optimizer.name=schedule_free would pull {moved[0]} back, which has no gradient; choose adamw"
        )
    return optax.chain(rules[0], optax.contrib.schedule_free(optax.chain(*rules[1:]), schedule, b1=config.b1))


def _weight_decay(rate: float, leaves: Leaves) -> optax.GradientTransformation:
    """Its state has one form whatever the rate is, so that a branch may decay where its parent does not."""
    mask = functools.partial(decay_mask, leaves=leaves)
    return optax.add_decayed_weights(rate, mask=mask) if rate else optax.masked(optax.identity(), mask)


def averaged_params(opt_state: Any, params: Any) -> Any | None:
    """The parameters to evaluate under ``schedule_free``, x of the paper; None under any other optimizer."""

    def is_schedule_free(node: Any) -> bool:
        return isinstance(node, optax.contrib.ScheduleFreeState)

    for node in jax.tree.leaves(opt_state, is_leaf=is_schedule_free):
        if is_schedule_free(node):
            return optax.contrib.schedule_free_eval_params(node, params)
    return None


def _direction(config: OptimizerConfig, leaves: Leaves) -> optax.GradientTransformation:
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
                muon_weight_dimension_numbers=functools.partial(_muon_dimensions, leaves=leaves),
                consistent_rms=0.2,  # matches AdamW's update size, so rates carry over (Liu et al. 2025)
            )
            return optax.chain(muon, optax.scale(-1.0))  # back from a step to a direction
    raise UsageError(f"unknown optimizer.name {config.name!r}; known: {', '.join((*NAMES, SCHEDULE_FREE))}")


def _muon_dimensions(params: Any, leaves: Leaves) -> Any:
    """Muon for what the family declares so; Nesterov Adam, as in optax, for the rest."""

    def dimensions(path: tuple[Any, ...], _: Any) -> Any:
        declared = leaves[path_name(path)].muon
        return declared and optax.contrib.MuonDimensionNumbers(*declared)

    return jax.tree_util.tree_map_with_path(dimensions, params)
