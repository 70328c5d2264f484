"""The demo's model: about 1M parameters on the running interpreter's standard library, offline.

make demo                                                         (this run, three real decays and the report)
wsm train --config=configs/demo.py --run=runs/demo-0/constant     (this run alone)
"""

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


def get_config() -> Config:
    """The run of `make demo`."""
    return Config(
        duration="1600steps",
        batch_size=8,
        # Settings that others are faster than, in which the published results were made.
        model=ModelConfig(
            layers=4, d_model=128, heads=4, context=128, attention="blocks", scan_unroll=1, loss_blocks=1
        ),
        data=DataConfig(validation_fraction=0.04, test_fraction=0.04, workers=0),
        optimizer=OptimizerConfig(peak_lr=3e-3),
        schedule=ScheduleConfig(warmup="100steps"),
        checkpoint=CheckpointConfig(merge_interval="0.025run", resume_interval="0.125run", branch_points="0.75run"),
        evaluation=EvaluationConfig(interval="0.05run", tokens=16384),
        log=LogConfig(interval="20steps"),
    )
