"""WSM-JAX: train at a constant learning rate, merge checkpoints, get most of the effect of a decay.

The names below are imported when first used, so that ``import wsm_jax`` and ``wsm --help`` stay fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsm_jax.checkpoints import load_tree
    from wsm_jax.coefficients import checkpoint_weights, ema_weights, merge_weights, update_weights, wma_weights
    from wsm_jax.config import Config
    from wsm_jax.decay import DECAYS
    from wsm_jax.errors import NonFiniteError, Preempted, UsageError
    from wsm_jax.evaluate import Evaluation, paired_difference
    from wsm_jax.merging.offline import merge_checkpoints, merge_many
    from wsm_jax.merging.trees import merge
    from wsm_jax.run import Run
    from wsm_jax.schedules import schedule_weights
    from wsm_jax.sharding import named_leaves

_HOMES = {
    "DECAYS": "decay",
    "checkpoint_weights": "coefficients",
    "update_weights": "coefficients",
    "merge_weights": "coefficients",
    "ema_weights": "coefficients",
    "wma_weights": "coefficients",
    "load_tree": "checkpoints",
    "named_leaves": "sharding",
    "schedule_weights": "schedules",
    "merge": "merging.trees",
    "merge_checkpoints": "merging.offline",
    "merge_many": "merging.offline",
    "Config": "config",
    "Run": "run",
    "Evaluation": "evaluate",
    "paired_difference": "evaluate",
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
