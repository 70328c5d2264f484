"""The models of experiments/first.py and experiments/ablation.py, by scale.

    wsm train --config=configs/matrix.py:small --run=runs/mine                     (any run of them by hand)

The paper's proportions where they matter: 16 checkpoints in the length of the real decay, which is the last quarter of
the run (the paper's is 4% of a run of 10.6T tokens; a short run needs a longer one). The peak rate is
one that suits the small model at a constant rate.
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
    """Shape and numerics of the model, sequences in a step, steps in the run, threads that read ahead.

    ``snapshot`` is what a checkpoint holds in the jobs that do not say it themselves.
    """

    layers: int
    d_model: int
    heads: int
    context: int
    batch_size: int
    steps: int
    tokenizer: str = "bpe:4096"
    compute_dtype: str = "float32"
    attention: str = "blocks"
    workers: int = 0
    snapshot: str = "both"


SIZES = {
    "small": Size(layers=4, d_model=128, heads=4, context=128, batch_size=8, steps=1280),
    "medium": Size(layers=6, d_model=192, heads=6, context=256, batch_size=8, steps=1280),
    # One accelerator: 34M parameters, at most 4 epochs of the novels, a seed of WSD and WSM in minutes.
    "gpu": Size(
        layers=8,
        d_model=512,
        heads=8,
        context=512,
        batch_size=64,
        steps=1024,
        tokenizer="bpe:16384",
        compute_dtype="bfloat16",
        attention="cudnn",  # needs a GPU; xla runs anywhere and is slower there
        workers=2,
        snapshot="point",
    ),
    "tiny": Size(layers=1, d_model=32, heads=2, context=32, batch_size=4, steps=128),  # to try the pipeline
}
INTERVALS = 64  # checkpoints in the run
WARMUP = 4  # intervals of the warm-up
DECAY = 16  # intervals in the real decay


def get_config(name: str = "small") -> Config:
    """A run of one of SIZES; ValueError for another."""
    if name not in SIZES:
        raise ValueError(f"configs/matrix.py:{name}: write {', '.join(SIZES)}")
    size = SIZES[name]
    interval = size.steps // INTERVALS
    return Config(
        duration=f"{size.steps}steps",
        batch_size=size.batch_size,
        model=ModelConfig(
            layers=size.layers,
            d_model=size.d_model,
            heads=size.heads,
            context=size.context,
            compute_dtype=size.compute_dtype,
            attention=size.attention,
            scan_unroll=size.layers,
        ),
        data=DataConfig(tokenizer=size.tokenizer, validation_fraction=0.04, test_fraction=0.04, workers=size.workers),
        optimizer=OptimizerConfig(peak_lr=3e-3),
        schedule=ScheduleConfig(warmup=f"{WARMUP * interval}steps"),
        checkpoint=CheckpointConfig(
            merge_interval=f"{interval}steps",
            resume_interval=f"{size.steps // 4}steps",
            branch_points=f"{size.steps - DECAY * interval}steps",
            snapshot=size.snapshot,
        ),
        evaluation=EvaluationConfig(interval="", tokens=16384, batch_size=max(16, size.batch_size)),
        log=LogConfig(interval="20steps"),
    )
