"""The LAWA paper's three GPT-2 sizes at a constant rate (arXiv 2306.03241; nanoGPT's shapes and AdamW settings).

For accelerators; wants the extra `hf` for OpenWebText and GPT-2's vocabulary (encoder.json and vocab.bpe in a folder):

    wsm train --config=configs/lawa.py:small --run=runs/small --config.data.tokenizer=tokenizers/gpt2

About 0.5M tokens a step, context 1,024, warm-up of 2,000 steps; peak rates are nanoGPT's, the paper's high ones are ten
times those. The paper decays along a cosine and averages along the run; here the rate stays constant.
"""

from wsm_jax.config import CheckpointConfig, Config, DataConfig, EvaluationConfig, OptimizerConfig, ScheduleConfig
from wsm_jax.models import presets

# size -> peak rate, steps between checkpoints
SIZES = {"small": (6e-4, 200), "medium": (3e-4, 2000), "large": (2e-4, 1000)}


def get_config(size: str = "small") -> Config:
    peak_lr, interval = SIZES[size]
    return Config(
        duration="70000steps",
        batch_size=480,
        accumulate=10,
        model=presets.preset(f"gpt2_{size}"),
        data=DataConfig(source="hf:Skylion007/openwebtext", validation_fraction=0.0005, test_fraction=0.0005),
        optimizer=OptimizerConfig(peak_lr=peak_lr),
        schedule=ScheduleConfig(warmup="2000steps"),
        checkpoint=CheckpointConfig(merge_interval=f"{interval}steps", merge_keep=100, resume_interval="1000steps"),
        evaluation=EvaluationConfig(interval="1000steps", tokens=1_000_000),
    )
