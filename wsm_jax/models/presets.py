"""Named shapes of the default family with their parameter counts (tested), and the shape of any name.

Tiny for a laptop, the nanoGPT-2 sizes of the LAWA paper, and OpenAI's GPT-2.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

from wsm_jax.config import ModelConfig, ModelFields
from wsm_jax.errors import UsageError
from wsm_jax.models import family

Fields = TypeVar("Fields", bound=ModelFields)

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


def openai_gpt2(layers: int, d_model: int, heads: int) -> Callable[[], ModelConfig]:
    """A GPT-2 as OpenAI published it: with biases, the approximate GELU and the vocabulary as it is."""
    own = {"bias": True, "activation": "gelu_new", "vocab_size": 50257, "context": 1024, "compute_dtype": "bfloat16"}
    return functools.partial(ModelConfig, layers=layers, d_model=d_model, heads=heads, **own)


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "tiny": tiny,
    "gpt2_small": gpt2_small,
    "gpt2_medium": gpt2_medium,
    "gpt2_large": gpt2_large,
    "openai_gpt2_small": openai_gpt2(12, 768, 12),
    "openai_gpt2_medium": openai_gpt2(24, 1024, 16),
    "openai_gpt2_large": openai_gpt2(36, 1280, 20),
    "openai_gpt2_xl": openai_gpt2(48, 1600, 25),
}


def preset(name: str) -> ModelFields:
    """The shape of that name, of any family.

    Raises:
      UsageError: no preset of that name.
    """
    known = PRESETS | {preset: make for kind in family.families().values() for preset, make in kind.presets.items()}
    if name not in known:
        raise UsageError(f"unknown preset {name!r}; known: {', '.join(known)}")
    return known[name]()


def pad_vocabulary(size: int) -> int:
    """``size`` rounded up to a multiple of 128, which matrix units like."""
    return -(-size // 128) * 128


def with_vocabulary(config: Fields, vocab_size: int, *, pad_given: bool = False) -> Fields:
    """``config`` with its vocabulary set: as it is given, or the tokenizer's, padded, where it is 0.

    Args:
      config: fields of a model.
      vocab_size: the tokenizer's.
      pad_given: pad a given size too, as runs without a format version did.

    Raises:
      UsageError: a given size that is smaller than the tokenizer's.
    """
    given = config.vocab_size
    if 0 < given < vocab_size:
        raise UsageError(f"model.vocab_size={given} is smaller than the tokenizer's {vocab_size}")
    size = given if given and not pad_given else pad_vocabulary(given or vocab_size)
    return dataclasses.replace(config, vocab_size=size)
