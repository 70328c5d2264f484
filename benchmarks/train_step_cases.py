"""What ``benchmarks/train_step.py`` measures: the shapes of both sides, and the contenders for each."""

import json
import sys
from pathlib import Path
from typing import Any

from train_step_process import Variant  # beside this file

HERE = Path(__file__).resolve().parent
FAMILIES = ("gpt2", "neox", "llama")
FIELDS = ("layers", "d_model", "heads", "context", "batch_size", "vocab_size")
# What wsm train had before it picked what suits the machine.
PLAIN: dict[str, Any] = {"attention": "xla", "scan_unroll": 1, "loss_blocks": 1, "keep_heap": False}
OURS, PEER = "WSM-JAX", "PyTorch compiled"

Shape = dict[str, Any]


def cpu_shape(family: str, text: str) -> Shape:
    """What both sides build, of the numbers of ``--shape``."""
    shape: Shape = dict(zip(FIELDS, (int(x) for x in text.split(",")), strict=True)) | {"family": family}
    if family == "llama":
        shape |= {"kv_heads": max(1, shape["heads"] // 4), "d_ff": 3 * shape["d_model"], "tied": True}
    return shape


def ours(name: str, shape: Shape, environment: dict[str, str], **settings: Any) -> Variant:
    """A contender of ours with ``settings`` beside the shape; without any it is what ``wsm train`` does."""
    command = [sys.executable, str(HERE / "train_step_jax.py"), json.dumps(shape | settings)]
    return Variant(name, command, environment)


def peer(name: str, mode: str, shape: Shape, python: str, environment: dict[str, str]) -> Variant:
    """The model of transformers; ``mode`` is eager or compile."""
    return Variant(name, [python, str(HERE / "train_step_torch.py"), mode, json.dumps(shape)], environment)


def cpu_variants(shape: Shape, peer_python: str, *, parts: bool) -> list[Variant]:
    """The contenders of a round, in order; with ``parts`` also what each setting is worth."""
    threads = str(shape["threads"])
    pinned = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "JAX_PLATFORMS": "cpu"}
    found = [ours(OURS, shape, pinned)]
    if parts:
        found.append(ours(f"{OURS}, plain", shape, pinned, **PLAIN))
        for name in ("attention", "scan_unroll", "loss_blocks", "keep_heap"):
            found.append(ours(f"{OURS} but {name}={PLAIN[name]}", shape, pinned, **{name: PLAIN[name]}))
        found.append(peer("PyTorch eager", "eager", shape, peer_python, pinned))
    found.append(peer(PEER, "compile", shape, peer_python, pinned))
    return [variant for variant in found if peer_python or variant.name.startswith(OURS)]


def gpu_shapes(toy: bool) -> dict[str, Shape]:
    """Name -> shape of the models for one card, or of the same families in a size that a CPU tries in seconds."""
    common: Shape = {"context": 1024, "compute_dtype": "bfloat16"}
    gpt2: Shape = {"family": "gpt2", "vocab_size": 50304, **common}
    found = {
        "GPT-2 small": {**gpt2, "layers": 12, "d_model": 768, "heads": 12, "batch_size": 32},
        "GPT-2 medium": {**gpt2, "layers": 24, "d_model": 1024, "heads": 16, "batch_size": 16},
        # That of the preset llama_3_2_1b; the stretching of slow rotations changes no work.
        "Llama 1B": {
            "family": "llama", "vocab_size": 128256, "layers": 16, "d_model": 2048, "heads": 32, "kv_heads": 8,
            "d_ff": 8192, "tied": True, "rope_theta": 500000.0, "batch_size": 8, **common,
        },
    }  # fmt: skip
    if toy:
        small = {
            "vocab_size": 256,
            "layers": 2,
            "d_model": 32,
            "heads": 4,
            "context": 64,
            "batch_size": 2,
            "threads": 1,
        }
        found = {f"{name}, toy": {**shape, **small} for name, shape in found.items()}
        found["Llama 1B, toy"] |= {"kv_heads": 1, "d_ff": 96}
    return found


def gpu_variants(shape: Shape, peer_python: str) -> list[Variant]:
    """The contenders for one model on a card, one after the other: the default, its peer, what may be faster."""
    # None takes the card's memory in advance, so that each finds it free.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **({"JAX_PLATFORMS": "cpu"} if "threads" in shape else {})}
    found = [ours(OURS, shape, environment, averages=True)]
    if peer_python:
        found.append(peer(PEER, "compile", shape, peer_python, environment))
    unrolled = ours(f"{OURS}, unrolled", shape, environment, scan_unroll=shape["layers"])
    return [*found, unrolled, ours(f"{OURS}, loss in 8 parts", shape, environment, loss_blocks=8)]
