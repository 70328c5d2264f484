"""Any model by the name of its preset, to plan for it or to begin a configuration with.

    wsm plan --config=configs/preset.py:llama_3_1_8b --topology=v5p:2x2x1 --config.mesh.fsdp=-1 --fast
    wsm plan --config=configs/preset.py:gpt2_small,64 --topology=h100:8              (64 sequences in a batch)

The run is 10,000 updates of AdamW; the 16 newest checkpoints of 50 are kept for merges.
"""

from wsm_jax.config import CheckpointConfig, Config, OptimizerConfig, ScheduleConfig
from wsm_jax.models import model, presets  # noqa: F401  (with the model all families are known)


def get_config(text: str = "tiny") -> Config:
    """``PRESET`` or ``PRESET,SEQUENCES``; ValueError for sequences that are no number."""
    name, _, rows = text.partition(",")
    if rows and not rows.isdigit():
        raise ValueError(f"configs/preset.py:{text}: write PRESET,SEQUENCES, e.g. gpt2_small,64")
    return Config(
        duration="10000steps",
        batch_size=int(rows or 8),
        model=presets.preset(name),
        optimizer=OptimizerConfig(peak_lr=3e-4),
        schedule=ScheduleConfig(warmup="200steps"),
        checkpoint=CheckpointConfig(merge_interval="200steps", merge_keep=16, resume_interval="1000steps"),
    )
