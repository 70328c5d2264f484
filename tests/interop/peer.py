"""The side of transformers, with PyTorch in an environment of its own: makes models, and says what a folder answers.

    python tests/interop/peer.py make FOLDER      a model of each kind in FOLDER/NAME, with ids.npy and logits.npy
    python tests/interop/peer.py answer FOLDER    logits.npy for every FOLDER/NAME that has ids.npy

Needs nothing of ours but the shapes of ``tests/golden``. The last line printed is what it ran on, as JSON.
"""

import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "golden"))
from make import random_model
from make_logits import TOKENS, VOCABULARY, configurations


def logits(model: transformers.PreTrainedModel, folder: Path) -> None:
    """Writes what the model answers to the ids of a folder, float32."""
    with torch.no_grad():
        found = model(torch.from_numpy(np.load(folder / "ids.npy")).long()).logits
    np.save(folder / "logits.npy", found.float().numpy())


def make(root: Path) -> None:
    """A model of every kind, saved as transformers saves it."""
    for seed, (name, config) in enumerate(configurations().items(), 100):
        config._attn_implementation = "eager"
        model, folder = random_model(config, seed).eval(), root / name
        model.save_pretrained(folder)
        np.save(folder / "ids.npy", np.random.default_rng(seed).integers(0, VOCABULARY, (2, TOKENS)))
        logits(model, folder)


def answer(root: Path) -> None:
    """What transformers makes of every folder, loaded as a user would."""
    for ids in sorted(root.glob("*/ids.npy")):
        model = transformers.AutoModelForCausalLM.from_pretrained(ids.parent, dtype=torch.float32)
        logits(model.eval(), ids.parent)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    {"make": make, "answer": answer}[sys.argv[1]](Path(sys.argv[2]))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({**versions, "python": platform.python_version()}))
