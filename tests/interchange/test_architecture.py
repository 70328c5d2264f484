"""What config.json and the names of tensors tell, and what is refused by name; no model is computed here."""

from pathlib import Path

import numpy as np
import pytest

from tests.interchange.folders import GPT2, LLAMA, NEOX, QWEN2, QWEN3
from wsm_jax.config import ModelConfig
from wsm_jax.errors import UsageError
from wsm_jax.interchange import architecture
from wsm_jax.interchange.architecture import Layout
from wsm_jax.models.llama import LlamaFields
from wsm_jax.models.public import Tensor

PLACE = Path("folder")


def test_older_files_of_transformers_say_the_same():
    old = {
        **NEOX,
        "architectures": ["GPTNeoXForCausalLM"],
        "rotary_pct": 0.5,
        "rotary_emb_base": 500,
        "rope_scaling": None,
    }
    new = {**NEOX, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}}
    assert architecture.recognise(old) == architecture.recognise(new)
    stretched = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}
    old = {**LLAMA, "rope_theta": 500.0, "rope_scaling": {"type": "llama3", **stretched}}
    new = {**LLAMA, "rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **stretched}}
    assert architecture.recognise(old) == architecture.recognise(new)
    assert architecture.recognise(new)[1].rope_factor == 8.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not known here; known: GPT2LMHeadModel"),
        ({"model_type": "bert"}, "model_type 'bert' is not known here"),
        ({**GPT2, "n_inner": 24}, "n_inner is 24, which is not computed here; it must be 32"),
        ({**GPT2, "activation_function": "relu"}, "activation_function is 'relu'"),
        ({**GPT2, "layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({**GPT2, "n_head": 3}, "config.json: model.d_model=8 is not a multiple of model.heads=3"),
        ({**NEOX, "hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({**NEOX, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "has no low_freq_factor"),
        ({**LLAMA, "rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differ by layer"),
        ({**LLAMA, "attention_bias": True}, "attention_bias is True"),
        ({**LLAMA, "sliding_window": 4096}, "sliding_window is 4096"),
        ({**QWEN2, "use_sliding_window": True, "sliding_window": 8}, "sliding_window is 8"),
        ({**QWEN3, "layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_attention'"),
        ({**LLAMA, "quantization_config": {"bits": 4}}, "has a quantization_config"),
        ({**LLAMA, "hidden_size": None}, "has no hidden_size, which says what the model is"),
        ({**LLAMA, "hidden_size": "8"}, "hidden_size is '8', not a number"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_name(values, message):
    with pytest.raises(UsageError) as error:
        architecture.recognise(values)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"it has no config\.json"):
        architecture.read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UsageError, match="is no JSON object"):
        architecture.read_config(tmp_path)


def shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    return {name: entry.tensor.shape(layout.ours) for name, entry in layout.entries.items()}


def test_unused_windows_of_qwen_are_no_reason_to_refuse():
    architecture.recognise({**QWEN2, "use_sliding_window": False, "sliding_window": 4096})


def test_buffers_and_copies_are_left_out_and_listed_and_bare_decoders_understood():
    layout = Layout(*architecture.recognise(GPT2))
    there = shapes(layout)
    bare = {name.removeprefix("transformer."): shape for name, shape in there.items()}
    extra = {"h.0.attn.bias": (1, 1, 16, 16), "h.1.attn.masked_bias": (), "lm_head.weight": (32, 8)}
    named, left_out = layout.matched({**bare, **extra}, PLACE)
    assert named == {name: name.removeprefix("transformer.") for name in there}
    assert left_out == sorted(extra)
    layout = Layout(*architecture.recognise(NEOX))
    there = shapes(layout)
    renamed = {{"embed_out.weight": "lm_head.weight"}.get(name, name): shape for name, shape in there.items()}
    buffer = "gpt_neox.layers.1.attention.rotary_emb.inv_freq"
    named, left_out = layout.matched({**renamed, buffer: (1,)}, PLACE)
    assert named["embed_out.weight"] == "lm_head.weight" and left_out == [buffer]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.layers.0.self_attn.q_proj.bias": (8,)}, "has no tensor model.layers.0.self_attn.q_proj.bias"),
        ({"model.layers.2.input_layernorm.weight": (8,)}, "has no tensor model.layers.2.input_layernorm.weight"),
        ({"model.norm.weight": None}, "folder has no tensor model.norm.weight, which LlamaForCausalLM needs"),
        ({"model.norm.weight": (9,)}, "tensor model.norm.weight is (9,); config.json makes it (8,)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(change, message):
    layout = Layout(*architecture.recognise(LLAMA))
    found = {name: shape for name, shape in {**shapes(layout), **change}.items() if shape is not None}
    with pytest.raises(UsageError) as error:
        layout.matched(found, PLACE)
    assert message in str(error.value)


def test_a_fused_projection_is_cut_head_by_head_and_joined_again():
    heads, width, inside = 3, 2, 4
    tensor = Tensor("qkv", ("q", "k", "v"), turned=True, heads=heads)
    values = np.arange(heads * 3 * width * inside).reshape(heads * 3 * width, inside)
    q, k, v = tensor.here(values)
    for head in range(heads):
        rows = values[head * 3 * width : (head + 1) * 3 * width]
        for i, part in enumerate((q, k, v)):
            np.testing.assert_array_equal(
                part[:, head * width : (head + 1) * width].T, rows[i * width : (i + 1) * width]
            )
    np.testing.assert_array_equal(tensor.there([q, k, v]), values)
    assert tensor.shape(dict.fromkeys("qkv", (inside, heads * width))) == values.shape


def test_a_model_without_biases_is_published_with_zeros():
    fields = ModelConfig(layers=2, d_model=8, heads=2, context=16, vocab_size=32)
    public, values = architecture.publishable(fields, "it")
    assert (public.architecture, values["activation_function"]) == ("GPT2LMHeadModel", "gelu")
    layout = Layout(public, fields)
    assert layout.zeros["transformer.h.1.attn.c_attn.bias"] == (24,)
    assert layout.zeros["transformer.ln_f.bias"] == (8,)
    other = Layout(*architecture.recognise(values))  # as it reads itself: with biases
    assert set(shapes(other)) == {*shapes(layout), *layout.zeros}


def test_options_that_nobody_publishes_are_refused():
    fields = LlamaFields(layers=2, d_model=8, heads=2, context=16, vocab_size=32, qk_norm=True, qkv_bias=True)
    with pytest.raises(UsageError, match=r"it has options that no public architecture has \(known: LlamaForCausalLM"):
        architecture.publishable(fields, "it")
