"""Writes the golden files: small random GPT-NeoX and Llama checkpoints of transformers, and their merges.

    python -m venv peer && peer/bin/python -m pip install "torch==2.13.*" transformers
    peer/bin/python tests/golden/make.py

Needs nothing of ours. Beside this file, for each family, float32: ``0`` to ``4`` (as ``save_pretrained`` leaves them;
GPT-NeoX in shards with an index, Llama in one file with tied embeddings), ``uniform.safetensors`` and
``weighted.safetensors`` (the sum in float64, rounded once to float32), ``logits.safetensors`` (token ids, and the
logits that transformers computes with either sum). ``tests/merging/test_golden.py`` and ``check.py`` read them.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
COUNT = 5
WEIGHTS = {"uniform": [1 / COUNT] * COUNT, "weighted": [0.05, 0.1, 0.2, 0.4, 0.25]}
VOCABULARY, WIDTH, LAYERS, CONTEXT = 128, 24, 2, 32
SHARD = "30KB"  # several shards of a checkpoint of 80 kB


def configurations() -> dict[str, transformers.PretrainedConfig]:
    """Family -> the shape of its models."""
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,  # logits far from zero, so that they tell one merge from another
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    neox = transformers.GPTNeoXConfig(**common, num_attention_heads=2, intermediate_size=4 * WIDTH)
    llama = transformers.LlamaConfig(
        **common, num_attention_heads=4, num_key_value_heads=2, intermediate_size=2 * WIDTH, tie_word_embeddings=True
    )
    return {"gpt_neox": neox, "llama": llama}


def random_model(config: transformers.PretrainedConfig, seed: int) -> transformers.PreTrainedModel:
    """A model whose every parameter is random: initialised norms are ones and biases zeros, which any sum keeps."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor, as the files of a checkpoint have them; models may call them by other names."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def weighted_sum(states: list[dict[str, torch.Tensor]], weights: list[float]) -> dict[str, torch.Tensor]:
    """Name -> sum of weight times tensor, computed in float64, rounded to float32."""
    vector = torch.tensor(weights, dtype=torch.float64)
    return {
        name: torch.tensordot(vector, torch.stack([state[name].double() for state in states]), dims=1).float()
        for name in states[0]
    }


def logits_of(state: dict[str, torch.Tensor], config_folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """What the model with these stored tensors answers."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(config_folder / "config.json", folder)
        save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(ids).logits


def main() -> None:
    """Replaces the folders of both families."""
    transformers.logging.set_verbosity_error()
    for family, config in configurations().items():
        folder = HERE / family
        shutil.rmtree(folder, ignore_errors=True)
        for i in range(COUNT):
            shards = SHARD if family == "gpt_neox" else "1GB"
            random_model(config, seed=i).save_pretrained(folder / str(i), max_shard_size=shards)
        states = [stored(folder / str(i)) for i in range(COUNT)]
        ids = torch.randint(0, VOCABULARY, (2, CONTEXT // 2), generator=torch.Generator().manual_seed(7))
        logits = {"ids": ids}
        for name, weights in WEIGHTS.items():
            merged = weighted_sum(states, weights)
            save_file(merged, folder / f"{name}.safetensors")
            logits[name] = logits_of(merged, folder / "0", ids)
        save_file(logits, folder / "logits.safetensors")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    (HERE / "made_with.json").write_text(json.dumps({"versions": versions, "weights": WEIGHTS}, indent=2) + "\n")


if __name__ == "__main__":
    main()
