"""Writes the golden files of PyTorch: small checkpoints as trainers leave them, and the same tensors in safetensors.

    python -m venv peer && peer/bin/python -m pip install "torch==2.13.*" safetensors numpy
    peer/bin/python tests/golden/make_torch.py

Needs nothing of ours. In ``pytorch/``: ``plain-STEP.pt`` (a state_dict of every dtype that a merge takes; with a
transposed, a strided and a tied tensor), ``legacy-STEP.pth`` (the same in the format of before 1.6), ``nanogpt.pt`` and
``lightning.ckpt`` (laid out as those trainers do, with the state of a real optimizer), ``sharded`` and ``single``
(folders of Hugging Face with ``.bin`` files), and ``STEP.safetensors``, ``model.safetensors``: what is in them.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent / "pytorch"
STEPS = (100, 200, 300)
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "uint16")


def every_kind(seed: int) -> dict[str, Any]:
    """A state_dict with tensors of every dtype and of every way to lie in a storage."""
    torch.manual_seed(seed)
    state: dict[str, Any] = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3)).state_dict()
    table = torch.randn(6, 8)
    state |= {f"kind.{name}": (7 * torch.randn(2, 3)).to(getattr(torch, name)) for name in DTYPES}
    state |= {
        "embedding.weight": table,
        "head.weight": table,  # tied
        "turned": table.T,
        "picked": table[1::2, ::3],
        "part": table[2:4],
        "scalar": torch.tensor(1.5 + seed),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(4).to(torch.bfloat16)),
        "expert": torch.randn(2, 3, 4).permute(2, 0, 1),
    }
    return state


def trained() -> tuple[dict[str, Any], dict[str, Any]]:
    """The state_dicts of a model and its AdamW, after a step."""
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Embedding(11, 4), torch.nn.Linear(4, 11, bias=False))
    model[1].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.arange(11)).square().mean().backward()
    optimizer.step()
    return model.state_dict(), optimizer.state_dict()


def write_safetensors(state: dict[str, Any], file: Path) -> None:
    """The same tensors, each with data of its own, as that format wants it."""
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, file)


def write_folders(state: dict[str, Any]) -> None:
    """A model folder with one file of weights, and one with two and an index."""
    half = len(state) // 2
    parts = {
        "pytorch_model-00001-of-00002.bin": dict(list(state.items())[:half]),
        "pytorch_model-00002-of-00002.bin": dict(list(state.items())[half:]),
    }
    for folder in (HERE / "single", HERE / "sharded"):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "none", "torch_dtype": "float32"}) + "\n")
    torch.save(state, HERE / "single" / "pytorch_model.bin")
    for name, part in parts.items():
        torch.save(part, HERE / "sharded" / name)
    index = {"metadata": {"total_size": 0}, "weight_map": {key: name for name, part in parts.items() for key in part}}
    (HERE / "sharded" / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n")


def main() -> None:
    """Replaces the folder."""
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    for step in STEPS:
        state = every_kind(step)
        torch.save(state, HERE / f"plain-{step}.pt")
        without = {name: tensor for name, tensor in state.items() if name != "kind.uint16"}  # not known before 1.6
        torch.save(without, HERE / f"legacy-{step}.pth", _use_new_zipfile_serialization=False)
        write_safetensors(state, HERE / f"{step}.safetensors")
    model, optimizer = trained()
    write_safetensors(model, HERE / "model.safetensors")
    nanogpt = {
        "model": {f"_orig_mod.{name}": tensor for name, tensor in model.items()},
        "optimizer": optimizer,
        "model_args": {"n_layer": 1, "bias": False},
        "iter_num": 300,
        "best_val_loss": torch.tensor(2.5),
        "config": {"out_dir": "out", "betas": (0.9, 0.95), "seen": {1, 2}, "raw": b"\xff\x00"},
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu"), dtype=torch.bfloat16),
    }
    torch.save(nanogpt, HERE / "nanogpt.pt")
    lightning = {
        "epoch": 1,
        "global_step": 300,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": model,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1, "completed": 0}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}},
        "optimizer_states": [optimizer],
        "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.1]}],
        "hyper_parameters": {"width": 4},
    }
    torch.save(lightning, HERE / "lightning.ckpt")
    write_folders(model)
    (HERE / "made_with.json").write_text(json.dumps({"torch": torch.__version__}) + "\n")


if __name__ == "__main__":
    main()
