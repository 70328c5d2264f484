"""The LAWA paper's three GPT-2 sizes as its authors trained them (arXiv 2306.03241; nanoGPT's shapes and AdamW).

For accelerators; wants the extra `hf` for OpenWebText and GPT-2's vocabulary (encoder.json and vocab.bpe in a folder):

    wsm train --config=configs/lawa.py:small --run=runs/small --config.data.tokenizer=tokenizers/gpt2
    wsm train --config=configs/lawa.py:small,nanogpt --run=runs/small-low ...      (nanoGPT's rate, a tenth of it)

About 0.5M tokens a step, context 1,024, warm-up of 2,000 steps, a cosine to the lowest rate at 70,000. Averages of the
paper are kept: LAWA of the 5 latest checkpoints, and the EMA with 0.9 at every step. `--config.schedule.name=constant`
makes it a WSM run.
"""

import dataclasses

from wsm_jax.config import (
    AveragingConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from wsm_jax.models import presets


@dataclasses.dataclass(frozen=True)
class Size:
    """Peak and lowest rate of the authors, nanoGPT's peak, steps between checkpoints."""

    peak_lr: float
    min_lr: float
    nanogpt_lr: float
    interval: int


SIZES = {
    "small": Size(6e-3, 6e-4, 6e-4, 200),
    "medium": Size(3e-3, 3e-4, 3e-4, 2000),
    "large": Size(2e-3, 1e-5, 2e-4, 1000),
}


def get_config(text: str = "small") -> Config:
    """``SIZE`` at the paper's high rate, ``SIZE,nanogpt`` at nanoGPT's; ValueError for another size."""
    name, _, low = text.partition(",")
    if name not in SIZES or low not in ("", "nanogpt"):
        raise ValueError(f"configs/lawa.py:{text}: write {', '.join(SIZES)}, or one of them with ,nanogpt")
    size = SIZES[name]
    # nanoGPT decays to a tenth of its peak.
    peak_lr, end_fraction = (size.nanogpt_lr, 0.1) if low else (size.peak_lr, size.min_lr / size.peak_lr)
    return Config(
        duration="70000steps",
        batch_size=480,
        accumulate=10,
        model=presets.preset(f"gpt2_{name}"),
        data=DataConfig(source="hf:Skylion007/openwebtext", validation_fraction=0.0005, test_fraction=0.0005),
        optimizer=OptimizerConfig(peak_lr=peak_lr),
        schedule=ScheduleConfig(name="cosine", warmup="2000steps", end_fraction=end_fraction),
        checkpoint=CheckpointConfig(
            merge_interval=f"{size.interval}steps", merge_keep=100, resume_interval="1000steps"
        ),
        averaging=AveragingConfig(
            names="ema,lawa", ema_decay="0.9/step", lawa_count=5, lawa_every=f"{size.interval}steps"
        ),
        evaluation=EvaluationConfig(interval="1000steps", tokens=1_000_000),
    )
