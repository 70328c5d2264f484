"""Writes the golden logits: small random models of transformers, what they answer, each in one file.

    python -m venv peer && peer/bin/python -m pip install "torch==2.13.*" transformers
    peer/bin/python tests/golden/make_logits.py

Needs nothing of ours. ``logits/NAME.safetensors`` beside this file holds the parameters in float32 under the names
that ``save_pretrained`` gives them, ``ids`` and the float32 ``logits``; its metadata the configuration, as JSON.
``tests/interchange/test_golden_logits.py`` reads them.

``pytorch_folder`` is one more GPT-2 as revisions of before safetensors lie on the hub, with masks among its tensors,
and ``nanogpt.pt`` the same model as nanoGPT saves it; ``nanogpt.safetensors`` holds its ``ids`` and ``logits`` alone.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from make import random_model  # beside this file
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parent / "logits"
VOCABULARY, WIDTH, LAYERS, TOKENS = 96, 24, 2, 40


def configurations() -> dict[str, transformers.PretrainedConfig]:
    """Name of a file -> the shape of its model."""
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": TOKENS,
        "initializer_range": 0.3,  # so that attention and activations leave their linear range
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    neox = common | {"num_attention_heads": 3, "intermediate_size": 4 * WIDTH, "layer_norm_eps": 1e-3}
    llama = common | {"num_attention_heads": 4, "intermediate_size": 40, "rms_norm_eps": 1e-3}
    stretched = {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    return {
        "gpt2": transformers.GPT2Config(**common, num_attention_heads=3),
        "neox_parallel": transformers.GPTNeoXConfig(**neox, use_parallel_residual=True),
        "neox_sequential": transformers.GPTNeoXConfig(
            **neox, use_parallel_residual=False, rope_parameters={
                "rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5
            }
        ),
        "llama": transformers.LlamaConfig(**llama, num_key_value_heads=2, tie_word_embeddings=False),
        "llama_stretched": transformers.LlamaConfig(
            **llama, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, rope_parameters=stretched
        ),
        "qwen2": transformers.Qwen2Config(**llama, num_key_value_heads=2, tie_word_embeddings=True),
        "qwen3": transformers.Qwen3Config(**llama, num_key_value_heads=2, head_dim=10, tie_word_embeddings=False),
        "smollm3": transformers.SmolLM3Config(
            **llama, num_key_value_heads=2, no_rope_layer_interval=2, tie_word_embeddings=True, pad_token_id=0
        ),
    }  # fmt: skip


def answered(model: transformers.PreTrainedModel, seed: int) -> dict[str, torch.Tensor]:
    """Random ids, and what the model answers."""
    ids = torch.randint(0, VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return {"ids": ids, "logits": model.eval()(ids).logits}


def write_pytorch() -> None:
    """A GPT-2 with the exact GELU, as nanoGPT has it, in two formats of PyTorch."""
    config = configurations()["gpt2"]
    config.activation_function, config._attn_implementation = "gelu", "eager"
    model = random_model(config, seed=50)
    folder, answers = FOLDER / "pytorch_folder", answered(model, 50)
    folder.mkdir(exist_ok=True)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    mask = torch.tril(torch.ones(1, 1, TOKENS, TOKENS))
    older = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    older |= {f"h.{layer}.attn.bias": mask for layer in range(LAYERS)}
    torch.save(older, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({**config.to_diff_dict(), "architectures": ["GPT2LMHeadModel"]}))
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    turned = {name: tensor.T.contiguous() if name.endswith(linear) else tensor for name, tensor in state.items()}
    turned["lm_head.weight"] = turned["transformer.wte.weight"]
    arguments = {"n_layer": LAYERS, "n_head": 3, "n_embd": WIDTH, "block_size": TOKENS, "bias": True, "dropout": 0.0}
    saved = {
        "model": {f"_orig_mod.{name}": tensor for name, tensor in turned.items()},
        "model_args": {**arguments, "vocab_size": VOCABULARY},
        "iter_num": 700,
        "config": {"out_dir": "out", "dataset": "openwebtext"},
    }
    torch.save(saved, FOLDER / "nanogpt.pt")
    save_file(answers, FOLDER / "nanogpt.safetensors")


def main() -> None:
    """Replaces the files."""
    transformers.logging.set_verbosity_error()
    FOLDER.mkdir(exist_ok=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    for seed, (name, config) in enumerate(configurations().items()):
        config._attn_implementation = "eager"
        model = random_model(config, seed).eval()
        answers = answered(model, seed)
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        stored = {key: value for key, value in model.state_dict().items() if key not in tied}
        stored = {key: value.contiguous() for key, value in stored.items() if value.dtype == torch.float32}
        metadata = {"config": json.dumps(config.to_diff_dict(), sort_keys=True), "versions": json.dumps(versions)}
        save_file({**stored, **answers}, FOLDER / f"{name}.safetensors", metadata=metadata)
        largest = answers["logits"].abs().max().item()
        print(f"{name}: {model.num_parameters():,} parameters, largest logit {largest:.3g}")
    write_pytorch()


if __name__ == "__main__":
    main()
