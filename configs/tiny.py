"""A model of about 1M parameters on the running interpreter's standard library: minutes on two CPU cores, offline.

wsm train --config=configs/tiny.py --run=runs/tiny
"""

from wsm_jax.config import CheckpointConfig, Config, OptimizerConfig, ScheduleConfig
from wsm_jax.models import presets


def get_config() -> Config:
    """A thousand updates of the tiny preset."""
    return Config(
        duration="1000steps",
        batch_size=8,
        model=presets.tiny(),
        optimizer=OptimizerConfig(peak_lr=3e-3),
        schedule=ScheduleConfig(warmup="50steps"),
        checkpoint=CheckpointConfig(merge_interval="25steps", resume_interval="100steps", branch_points="0.75run"),
    )
