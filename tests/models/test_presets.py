"""Public shapes have the parameters that were published; nothing is allocated."""

import jax
import pytest

from wsm_jax.models import llama, model, neox, presets

# Of all parameters: the elements in the files that transformers loads, as the Hub counts them, a tied head once
# (Qwen3-0.6B has its head stored besides: 751,632,384). Pythia's are the table of its model cards.
PUBLISHED = {
    "openai_gpt2_small": 124_439_808,
    "openai_gpt2_medium": 354_823_168,
    "openai_gpt2_large": 774_030_080,
    "openai_gpt2_xl": 1_557_611_200,
    "pythia_14m": 14_067_712,
    "pythia_70m": 70_426_624,
    "pythia_160m": 162_322_944,
    "pythia_410m": 405_334_016,
    "pythia_1b": 1_011_781_632,
    "pythia_1_4b": 1_414_647_808,
    "pythia_2_8b": 2_775_208_960,
    "pythia_6_9b": 6_857_302_016,
    "pythia_12b": 11_846_072_320,
    "llama_3_2_1b": 1_235_814_400,
    "llama_3_2_3b": 3_212_749_824,
    "llama_3_1_8b": 8_030_261_248,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "smollm3_3b": 3_075_098_624,
    "qwen3_0_6b": 751_632_384 - 151_936 * 1024,
}


def test_every_public_shape_is_checked():
    assert {*neox.PRESETS, *llama.PRESETS} <= {*PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_public_shape_has_the_published_parameters(name):
    shapes = jax.eval_shape(model.build(presets.preset(name)).init, jax.random.key(0))
    assert model.parameter_count(shapes) == PUBLISHED[name]
