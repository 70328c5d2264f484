"""WSM-JAX: train at a constant learning rate, merge checkpoints, get most of the effect of a decay.

The names below are imported when first used, so that ``import wsm_jax`` and ``wsm --help`` stay fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsm_jax.checkpoints.orbax import load_tree
    from wsm_jax.checkpoints.run import Run
    from wsm_jax.config import Config
    from wsm_jax.core.coefficients import checkpoint_weights, ema_weights, update_weights, wma_weights
    from wsm_jax.core.decay import DECAYS
    from wsm_jax.core.merge import merge
    from wsm_jax.core.merge_weights import merge_weights
    from wsm_jax.core.schedules import schedule_weights
    from wsm_jax.core.trees import named_leaves
    from wsm_jax.errors import NonFiniteError, Preempted, UsageError
    from wsm_jax.evaluation.evaluate import Evaluation, paired_difference
    from wsm_jax.merging.offline import merge_checkpoints, merge_many

_HOMES = {
    "DECAYS": "core.decay",
    "checkpoint_weights": "core.coefficients",
    "update_weights": "core.coefficients",
    "merge_weights": "core.merge_weights",
    "ema_weights": "core.coefficients",
    "wma_weights": "core.coefficients",
    "load_tree": "checkpoints.orbax",
    "named_leaves": "core.trees",
    "schedule_weights": "core.schedules",
    "merge": "core.merge",
    "merge_checkpoints": "merging.offline",
    "merge_many": "merging.offline",
    "Config": "config",
    "Run": "checkpoints.run",
    "Evaluation": "evaluation.evaluate",
    "paired_difference": "evaluation.evaluate",
    "UsageError": "errors",
    "NonFiniteError": "errors",
    "Preempted": "errors",
}

__all__ = [
    "DECAYS",
    "Config",
    "Evaluation",
    "NonFiniteError",
    "Preempted",
    "Run",
    "UsageError",
    "checkpoint_weights",
    "ema_weights",
    "load_tree",
    "merge",
    "merge_checkpoints",
    "merge_many",
    "merge_weights",
    "named_leaves",
    "paired_difference",
    "schedule_weights",
    "update_weights",
    "wma_weights",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"wsm_jax.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'wsm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
