"""Named shapes with their parameter counts (tested): tiny for a laptop, nanoGPT-2 sizes of the LAWA paper."""

import dataclasses

from wsm_jax.config import ModelConfig
from wsm_jax.errors import UsageError

GPT2_VOCABULARY = 50304  # 50,257 rounded up to a multiple of 128, as nanoGPT pads it


def tiny() -> ModelConfig:
    """About 1M parameters with a 4,096-token vocabulary: trains in minutes on two CPU cores."""
    return ModelConfig(layers=4, d_model=128, heads=4, context=256)


def gpt2_small() -> ModelConfig:
    """nanoGPT small: 124,373,760 parameters."""
    return ModelConfig(
        layers=12, d_model=768, heads=12, context=1024, vocab_size=GPT2_VOCABULARY, compute_dtype="bfloat16"
    )


def gpt2_medium() -> ModelConfig:
    """nanoGPT medium: 354,599,936 parameters."""
    return ModelConfig(
        layers=24, d_model=1024, heads=16, context=1024, vocab_size=GPT2_VOCABULARY, compute_dtype="bfloat16"
    )


def gpt2_large() -> ModelConfig:
    """nanoGPT large: 773,582,080 parameters."""
    return ModelConfig(
        layers=36, d_model=1280, heads=20, context=1024, vocab_size=GPT2_VOCABULARY, compute_dtype="bfloat16"
    )


PRESETS = {"tiny": tiny, "gpt2_small": gpt2_small, "gpt2_medium": gpt2_medium, "gpt2_large": gpt2_large}


def preset(name: str) -> ModelConfig:
    """The shape of that name.

    Raises:
      UsageError: no preset of that name.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]()


def pad_vocabulary(size: int) -> int:
    """``size`` rounded up to a multiple of 128, which matrix units like."""
    return -(-size // 128) * 128


def with_vocabulary(config: ModelConfig, vocab_size: int) -> ModelConfig:
    """``config`` with its vocabulary set: the tokenizer's, padded, where it is 0.

    Raises:
      UsageError: a given size that is smaller than the tokenizer's.
    """
    if 0 < config.vocab_size < vocab_size:
        raise UsageError(f"model.vocab_size={config.vocab_size} is smaller than the tokenizer's {vocab_size}")
    return dataclasses.replace(config, vocab_size=pad_vocabulary(config.vocab_size or vocab_size))
