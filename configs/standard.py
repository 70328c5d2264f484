"""The model of the main experiment (experiments/standard.py) and of those that prepare it.

    wsm train --config=configs/standard.py --run=runs/mine                      (one run of it by hand)

0.27M parameters on 16.4M tokens, 60 a parameter: small, so that two cores train the hundred runs of a map of the
regime, and long, so that a parameter is decayed as often as in large runs. Learning rate and weight decay are
placeholders: each experiment sets its own.
"""

import dataclasses

from wsm_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)


@dataclasses.dataclass(frozen=True)
class Size:
    """Shape of the model, sequences in a step, steps in the run, steps between checkpoints."""

    layers: int
    d_model: int
    heads: int
    context: int
    batch_size: int
    steps: int
    interval: int
    tokenizer: str


SIZES = {
    "standard": Size(4, 64, 4, 128, 8, 16_000, 50, "bpe:1024"),
    "tiny": Size(1, 32, 2, 32, 4, 160, 2, "bpe:300"),  # to try the whole in a minute
}


def get_config(name: str = "standard") -> Config:
    """A run of one of SIZES; ValueError for another."""
    if name not in SIZES:
        raise ValueError(f"configs/standard.py:{name}: write {', '.join(SIZES)}")
    size = SIZES[name]
    return Config(
        duration=f"{size.steps}steps",
        batch_size=size.batch_size,
        model=ModelConfig(layers=size.layers, d_model=size.d_model, heads=size.heads, context=size.context),
        data=DataConfig(tokenizer=size.tokenizer, validation_fraction=0.03, test_fraction=0.12, workers=0),
        optimizer=OptimizerConfig(peak_lr=2e-3),
        schedule=ScheduleConfig(warmup="0.02run"),
        checkpoint=CheckpointConfig(
            merge_interval=f"{size.interval}steps", resume_interval="0.1run", resume_keep=1, snapshot="both"
        ),
        evaluation=EvaluationConfig(interval="", tokens=16384, batch_size=64),
        log=LogConfig(interval=f"{size.steps // 100}steps"),
    )
