"""The record of a merge: what went in, with which weights, made by what."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from wsm_jax import run as run_lib
from wsm_jax.merging.leaves import Weights


def record(weights: Weights, **more: Any) -> dict[str, Any]:
    """A JSON-ready record of a merge; ``offline.write_many`` adds the inputs with their fingerprints.

    Args:
      weights: one vector, or a mapping path -> vector.
      more: whatever else identifies the merge, e.g. curve, count, interval, steps.
    """
    return {
        **more,
        "weights": (
            {path: np.asarray(vector).tolist() for path, vector in weights.items()}
            if isinstance(weights, Mapping)
            else np.asarray(weights).tolist()
        ),
        **run_lib.environment(),
    }
