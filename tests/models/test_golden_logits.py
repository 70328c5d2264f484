"""Each family answers as its model in transformers does; ``tests/golden/make_logits.py`` made the files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import safe_open

from wsm_jax.config import ModelConfig, ModelFields
from wsm_jax.models import model
from wsm_jax.models.llama import LlamaFields
from wsm_jax.models.neox import NeoxFields

FOLDER = Path(__file__).parent.parent / "golden" / "logits"
Arrays = dict[str, np.ndarray]


def read(name: str) -> tuple[dict[str, Any], Arrays]:
    """The configuration of transformers, and all arrays."""
    with safe_open(FOLDER / f"{name}.safetensors", "np") as file:
        metadata, names = file.metadata(), list(file.keys())
        assert metadata is not None
        return json.loads(metadata["config"]), {key: file.get_tensor(key) for key in names}


def stacked(arrays: Arrays, prefix: str, names: dict[str, str], *, turned: bool) -> dict[str, Any]:
    """Our tree of the blocks; ``names``: our path -> theirs without ``.weight`` or ``.bias``.

    ``turned``: matrices are [out, in] there, as torch's Linear has them.
    """
    tree: dict[str, Any] = {}
    layers = len({key.removeprefix(prefix).split(".")[0] for key in arrays if key.startswith(prefix)})
    for path, theirs in names.items():
        for kind in ("weight", "bias"):
            found = [arrays.get(f"{prefix}{i}.{theirs}.{kind}") for i in range(layers)]
            if found[0] is None:
                continue
            leaf = np.stack([part for part in found if part is not None])
            *groups, _ = (*path.split("/"), "")
            node = tree
            for group in groups:
                node = node.setdefault(group, {})
            node["bias" if kind == "bias" else "kernel" if leaf.ndim == 3 else "scale"] = (
                np.swapaxes(leaf, 1, 2) if leaf.ndim == 3 and turned else leaf
            )
    return tree


def norm(arrays: Arrays, name: str) -> Arrays:
    bias = arrays.get(f"{name}.bias")
    return {"scale": arrays[f"{name}.weight"], **({} if bias is None else {"bias": bias})}


def gpt2(config: dict[str, Any], arrays: Arrays) -> tuple[ModelFields, Any]:
    fields = ModelConfig(
        layers=config["n_layer"], d_model=config["n_embd"], heads=config["n_head"], context=config["n_positions"],
        vocab_size=config["vocab_size"], bias=True, activation=config["activation_function"],
    )  # fmt: skip
    names = {
        "norm1": "ln_1", "attention/qkv": "attn.c_attn", "attention/out": "attn.c_proj",
        "norm2": "ln_2", "mlp/up": "mlp.c_fc", "mlp/down": "mlp.c_proj",
    }  # fmt: skip
    return fields, {
        "token_embedding": arrays["transformer.wte.weight"],
        "position_embedding": arrays["transformer.wpe.weight"],
        "blocks": stacked(arrays, "transformer.h.", names, turned=False),
        "final_norm": norm(arrays, "transformer.ln_f"),
    }


def shared(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "layers": config["num_hidden_layers"], "d_model": config["hidden_size"], "heads": config["num_attention_heads"],
        "context": config["max_position_embeddings"], "vocab_size": config["vocab_size"],
        "rope_theta": config["rope_parameters"]["rope_theta"],
    }  # fmt: skip


def neox(config: dict[str, Any], arrays: Arrays) -> tuple[ModelFields, Any]:
    fields = NeoxFields(
        **shared(config), rotary_pct=config["rope_parameters"]["partial_rotary_factor"],
        parallel_residual=config["use_parallel_residual"], norm_eps=config["layer_norm_eps"],
    )  # fmt: skip
    names = {
        "norm1": "input_layernorm", "attention/qkv": "attention.query_key_value", "attention/out": "attention.dense",
        "norm2": "post_attention_layernorm", "mlp/up": "mlp.dense_h_to_4h", "mlp/down": "mlp.dense_4h_to_h",
    }  # fmt: skip
    blocks = stacked(arrays, "gpt_neox.layers.", names, turned=True)
    fused = blocks["attention"].pop("qkv")  # its columns: head after head, of each the query, the key, the value
    parts = {}
    for kind, leaf in fused.items():
        rest = leaf.shape[:-1]
        heads = leaf.reshape(*rest, fields.heads, 3, -1)
        parts[kind] = [heads[..., i, :].reshape(*rest, -1) for i in range(3)]
    for i, name in enumerate("qkv"):
        blocks["attention"][name] = {kind: part[i] for kind, part in parts.items()}
    return fields, {
        "token_embedding": arrays["gpt_neox.embed_in.weight"],
        "blocks": blocks,
        "final_norm": norm(arrays, "gpt_neox.final_layer_norm"),
        "head": {"kernel": arrays["lm_head.weight"].T},
    }


def llama(config: dict[str, Any], arrays: Arrays) -> tuple[ModelFields, Any]:
    rope, kind = config["rope_parameters"], config["model_type"]
    stretched = {} if rope["rope_type"] == "default" else {
        "rope_factor": rope["factor"], "rope_low": rope["low_freq_factor"], "rope_high": rope["high_freq_factor"],
        "rope_context": rope["original_max_position_embeddings"],
    }  # fmt: skip
    fields = LlamaFields(
        **shared(config), **stretched, kv_heads=config["num_key_value_heads"], d_ff=config["intermediate_size"],
        head_dim=config.get("head_dim", 0), tied=config["tie_word_embeddings"], norm_eps=config["rms_norm_eps"],
        qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3",
    )  # fmt: skip
    names = {
        "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
        **{f"attention/{name}": f"self_attn.{name}_proj" for name in "qkv"}, "attention/out": "self_attn.o_proj",
        **{f"attention/{name}_norm": f"self_attn.{name}_norm" for name in "qk"},
        **{f"mlp/{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
    }  # fmt: skip
    head = {} if fields.tied else {"head": {"kernel": arrays["lm_head.weight"].T}}
    return fields, {
        "token_embedding": arrays["model.embed_tokens.weight"],
        "blocks": stacked(arrays, "model.layers.", names, turned=True),
        "final_norm": norm(arrays, "model.norm"),
        **head,
    }


CASES: dict[str, Callable[[dict[str, Any], Arrays], tuple[ModelFields, Any]]] = {
    "gpt2": gpt2, "neox_parallel": neox, "neox_sequential": neox,
    "llama": llama, "llama_stretched": llama, "qwen2": llama, "qwen3": llama,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name):
    config, arrays = read(name)
    fields, params = CASES[name](config, arrays)
    built = model.build(fields)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(lambda leaf: leaf.shape, params)
    taken = model.parameter_count(params)  # every element of the file is one of ours
    assert taken == sum(a.size for key, a in arrays.items() if key not in ("ids", "logits"))
    logits = jax.jit(built.apply)(params, arrays["ids"].astype(np.int32))
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=3e-5)  # the largest are about 6
