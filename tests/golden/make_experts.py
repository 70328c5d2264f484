"""Writes the golden mixture of experts: one random layer of DeepSeek-V3 in transformers, and what it answers.

    python -m venv peer && peer/bin/python -m pip install "torch==2.13.*" transformers
    peer/bin/python tests/golden/make_experts.py

Needs nothing of ours. ``experts.safetensors`` beside this file holds the layer's parameters, its input ``x``, the
routing (``chosen``, ``weights``) and the answer ``y``, in float32; its metadata the configuration, as JSON.
``tests/models/test_ling.py`` reads it.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers.models.deepseek_v3 import modeling_deepseek_v3

FILE = Path(__file__).resolve().parent / "experts.safetensors"
SHAPE = {
    "hidden_size": 12, "moe_intermediate_size": 6, "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4,
    "topk_group": 2, "routed_scaling_factor": 2.5, "n_shared_experts": 1, "norm_topk_prob": True,
}  # fmt: skip


def main() -> None:
    """Replaces the file."""
    torch.manual_seed(0)
    config = transformers.DeepseekV3Config(**SHAPE)
    layer = modeling_deepseek_v3.DeepseekV3MoE(config)
    arrays = {name: 0.5 * torch.randn_like(value) for name, value in layer.state_dict().items()}
    arrays["gate.e_score_correction_bias"] *= 0.2  # some scores with it are negative
    layer.load_state_dict(arrays)
    arrays["x"] = torch.randn(1, 50, SHAPE["hidden_size"])
    with torch.no_grad():
        arrays["y"] = layer(arrays["x"])
        _, arrays["weights"], arrays["chosen"] = layer.gate(arrays["x"])
    save_file({name: value.contiguous() for name, value in arrays.items()}, FILE, {"config": json.dumps(SHAPE)})
    print(f"written: {FILE}, with transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
