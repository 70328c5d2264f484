"""A small mixture of experts on the running interpreter's standard library, by scale.

wsm train --config=configs/ling.py:small --run=runs/ling

``small`` is ``ling_tiny`` for 5.2M tokens, 40 minutes on two CPU cores; a checkpoint every 64th of the run, a point to
branch from at three quarters of it, as configs/matrix.py has it.
"""

import dataclasses
from typing import Any

from wsm_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from wsm_jax.models import ling_fields

INTERVALS = 64  # checkpoints in the run
TOY: dict[str, Any] = {"layers": 2, "d_model": 32, "d_ff": 32, "expert_ff": 16, "context": 32}
# Fields of the model, steps, vocabulary.
SIZES: dict[str, tuple[dict[str, Any], int, int]] = {"small": ({}, 2560, 4096), "tiny": (TOY, 64, 300)}


def get_config(name: str = "small") -> Config:
    """A run of one of SIZES; ValueError for another."""
    if name not in SIZES:
        raise ValueError(f"configs/ling.py:{name}: write {', '.join(SIZES)}")
    fields, steps, vocabulary = SIZES[name]
    return Config(
        duration=f"{steps}steps",
        batch_size=8,
        model=dataclasses.replace(ling_fields.ling_tiny(), **fields),
        data=DataConfig(tokenizer=f"bpe:{vocabulary}", validation_fraction=0.04, test_fraction=0.04, workers=0),
        optimizer=OptimizerConfig(peak_lr=2e-3),
        schedule=ScheduleConfig(warmup=f"{4 * steps // INTERVALS}steps"),
        checkpoint=CheckpointConfig(
            merge_interval=f"{steps // INTERVALS}steps",
            resume_interval=f"{steps // 4}steps",
            branch_points=f"{steps * 3 // 4}steps",
        ),
        evaluation=EvaluationConfig(interval="", tokens=16384),
        log=LogConfig(interval="20steps"),
    )
