"""Made-up results of an experiment: records, nats and documents, as a sweep leaves them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsm_jax.sweeps import Arm, Experiment, RunSpec

DOMAINS = {"novels": 7, "proposals": 5}


def experiment(arms: Sequence[str], **more: Any) -> Experiment:
    """One run, and some arms of it."""
    runs = {"constant": RunSpec()}
    return Experiment("trial", "A trial", "configs/demo.py", runs, {arm: Arm("constant") for arm in arms}, **more)


def write(
    folder: Path, effects: Mapping[str, float], seeds: Sequence[int] = (0, 1, 2), noise: float = 0.01
) -> list[dict[str, Any]]:
    """Writes results whose arms differ by ``effects``, bits per byte, and returns the records.

    Noise depends on the seed, the document and the arm, each alone and together.
    """
    random = np.random.default_rng(0)
    domain = np.repeat(range(len(DOMAINS)), [*DOMAINS.values()])
    sizes = random.integers(500, 9000, len(domain))
    shared = random.normal(2.5, 0.3, len(domain)) + noise * random.normal(size=(len(seeds), 1))
    records, nats = [], {}
    for arm, effect in effects.items():
        by_document = noise * random.normal(size=len(domain))
        for n, seed in enumerate(seeds):
            bits = shared[n] + effect + by_document + noise * random.normal() + noise * random.normal(size=len(domain))
            own = nats[f"{arm}|{seed}"] = (bits * sizes * math.log(2)).astype(np.float32)
            records.append(record(arm, seed, own, domain, sizes))
    documents = {"data_hash": "d0", "domains": [*DOMAINS], "domain": domain.tolist(), "bytes": sizes.tolist()}
    documents |= {"tokens": (sizes // 3).tolist(), "left_out": {}}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "nats.npz", **nats)
    (folder / "documents.json").write_text(json.dumps(documents))
    put(folder, records)
    return records


def put(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes records.jsonl."""
    (folder / "records.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))


def record(arm: str, seed: int, nats: np.ndarray, domain: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
    """Of an arm at a seed; its validation loss is its test loss."""
    losses = {
        name: float(nats[domain == n].sum(dtype=np.float64) / sizes[domain == n].sum() / math.log(2))
        for n, name in enumerate(DOMAINS)
    }
    mean = sum(losses.values()) / len(losses)
    return {
        "experiment": "trial",
        "scale": "small",
        "arm": arm,
        "run": "constant",
        "seed": seed,
        "validation": mean,
        "test": mean,
        "domains": losses,
        "data_hash": "d0",
        "parameters": 1000,
        "piece": f"seed{seed}",
        "piece_seconds": 1.0,
        "command": "wsm sweep trial.py",
        "wsm_jax": "0.2.0",
        "versions": {"jax": "0.10.2"},
        "python": "3.11.7",
        "machine": "1 x cpu",
        "platform": "cpu",
    }
