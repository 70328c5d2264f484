"""Small model folders as others publish them, made with safetensors and nothing of ours but the table of names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from wsm_jax.data.tokenizer import train_bpe
from wsm_jax.interchange import architecture
from wsm_jax.interchange.architecture import Layout

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 16, "vocab_size": 32}
COMMON: dict[str, Any] = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16, "vocab_size": 32
}  # fmt: skip
NEOX = {"model_type": "gpt_neox", **COMMON, "intermediate_size": 32, "rotary_pct": 0.5}
LLAMA = {"model_type": "llama", **COMMON, "intermediate_size": 24}
QWEN2 = {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 1, "tie_word_embeddings": True}
QWEN3 = {**QWEN2, "model_type": "qwen3", "head_dim": 4, "tie_word_embeddings": False}
LING = {
    "model_type": "bailing_moe_v2", **COMMON, "num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 6,
    "intermediate_size": 20, "num_experts": 4, "moe_intermediate_size": 12, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "routed_scaling_factor": 2.5, "partial_rotary_factor": 2 / 3, "num_nextn_predict_layers": 1,
}  # fmt: skip
ROWS = 288  # of an embedding that the tokenizer below fits

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TEXT = [f"A small step, a long walk, number {i} of many; the walk is long and the step is small." for i in range(40)]
Arrays = dict[str, np.ndarray]


def arrays(values: Mapping[str, Any], seed: int = 0, dtype: Any = np.float32) -> Arrays:
    """Random tensors of the model that a config.json speaks of."""
    layout, random = Layout(*architecture.recognise(values)), np.random.default_rng(seed)
    return {
        name: (random.standard_normal(entry.tensor.shape(layout.ours)) * 0.3).astype(dtype)
        for name, entry in layout.entries.items()
    }


def make(folder: Path, values: Mapping[str, Any], tensors: Arrays, *, tokenizer: bool = True, shards: int = 1) -> Path:
    """Writes the folder; several ``shards`` have an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 0, "torch_dtype": "float32", **values}))
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
        for file in set(files.values()):
            save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    if tokenizer:
        train_bpe(TEXT, 280).save(folder / "tokenizer.json")
    return folder


def tensors_of(folder: Path) -> Arrays:
    """Name -> tensor of all files of a folder."""
    found: Arrays = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same_bits(found: Arrays, wanted: Arrays) -> None:
    """Asserts that both have the same tensors, bit for bit."""
    assert sorted(found) == sorted(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert found[name].tobytes() == tensor.tobytes(), name
