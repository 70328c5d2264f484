"""Tokens per second of generation: ours as ``wsm generate`` makes them, beside ``generate`` of transformers in PyTorch.

    python benchmarks/generate.py --peer_python=/path/to/peer/bin/python

The peer has an interpreter of its own (without --peer_python only ours is measured):

    python -m venv peer && peer/bin/python -m pip install "torch==2.13.*" transformers

Shapes of GPT-2 small and SmolLM2-135M with random weights, float32, greedy; prompts of 64 tokens, 128 new tokens each,
in batches of 1 and 8; the prompt counts, too. The peer is eager with its default cache, 2 threads on both sides.
Contenders are processes; after a warm-up they take turns, so that what disturbs the machine meets both.
``--new_tokens=16 --rounds=1`` tries it in a minute or two.

Hardware: any x86-64 with 2 cores to spare and 4 GB of memory. Writes results/generate/speed.jsonl.
"""

import json
import os
import platform
import shlex
import sys
from pathlib import Path
from statistics import median
from typing import Any

import results_file  # beside this file
from absl import app, flags
from train_step_process import Contender, Failed, Variant

from wsm_jax.io import machine
from wsm_jax.reporting.tables import print_table

PEER_PYTHON = flags.DEFINE_string("peer_python", "", "interpreter with torch and transformers; empty = ours only")
ROUNDS = flags.DEFINE_integer("rounds", 3, "rounds; in each, every contender makes every batch once", lower_bound=1)
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 128, "of each prompt", lower_bound=2)
PROMPT = flags.DEFINE_integer("prompt", 64, "tokens of a prompt", lower_bound=1)
BATCHES = flags.DEFINE_list("batches", ["1", "8"], "prompts at a time")
THREADS = flags.DEFINE_integer("threads", 2, "cores and threads of every process", lower_bound=1)
MODELS = flags.DEFINE_list("models", ["GPT-2 small", "SmolLM2-135M"], "which of the two")
OUTPUT = flags.DEFINE_string("output", "results/generate/speed.jsonl", "where results go")

HERE = Path(__file__).resolve().parent
OURS, PEER = "WSM-JAX", "transformers"
SHAPES: dict[str, dict[str, Any]] = {
    "GPT-2 small": {
        "family": "gpt2", "layers": 12, "d_model": 768, "heads": 12, "context": 1024, "vocab_size": 50257,
        "bias": True, "activation": "gelu_new",
    },
    "SmolLM2-135M": {
        "family": "llama", "layers": 30, "d_model": 576, "heads": 9, "kv_heads": 3, "d_ff": 1536, "context": 2048,
        "vocab_size": 49152, "tied": True, "rope_theta": 100000.0,
    },
}  # fmt: skip


def contenders(shape: dict[str, Any]) -> list[Contender]:
    """Ours and the peer, ready."""
    threads = str(THREADS.value)
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "JAX_PLATFORMS": "cpu"}
    text = json.dumps(shape | {"threads": THREADS.value, "prompt": PROMPT.value, "new_tokens": NEW_TOKENS.value})
    found = [Variant(OURS, [sys.executable, str(HERE / "generate_jax.py"), text], environment)]
    if PEER_PYTHON.value:
        found.append(Variant(PEER, [PEER_PYTHON.value, str(HERE / "generate_torch.py"), text], environment))
    return list(map(Contender, found))


def measure(name: str) -> list[dict[str, Any]]:
    """A record for every contender and batch of one model."""
    shape, seconds = SHAPES[name], {}
    running = contenders(shape)
    batches = [int(batch) for batch in BATCHES.value]
    for batch in batches:
        for contender in running:
            contender.run(1, f"{batch}")  # compiles, or fills caches
    for number in range(ROUNDS.value):
        for batch in batches:
            for contender in running:
                took = contender.run(1, f"{batch}")["seconds"]
                seconds.setdefault((contender.variant.name, batch), []).append(took)
        print(f"{name}: round {number + 1} of {ROUNDS.value}", flush=True)
    records = []
    for contender in running:
        contender.close()
        for batch in batches:
            taken = seconds[contender.variant.name, batch]
            records.append(
                {
                    "model": name,
                    "variant": contender.variant.name,
                    "batch": batch,
                    "prompt": PROMPT.value,
                    "new_tokens": NEW_TOKENS.value,
                    "tokens_per_second": [batch * NEW_TOKENS.value / one for one in taken],
                    "shape": shape,
                    "threads": THREADS.value,
                    "command": shlex.join(contender.variant.command),
                    **contender.facts,
                }
            )
    return records


def print_summary(records: list[dict[str, Any]]) -> None:
    """Medians over the rounds; ratios are medians of the ratios within a round."""
    peers = {(r["model"], r["batch"]): r["tokens_per_second"] for r in records if r["variant"] == PEER}
    rows = []
    for record in records:
        rates = record["tokens_per_second"]
        theirs = peers.get((record["model"], record["batch"]))
        ratio = f"{median(a / b for a, b in zip(rates, theirs, strict=True)):.2f}" if theirs else ""
        spread = f"{min(rates):.1f} to {max(rates):.1f}"
        rows.append([record["model"], str(record["batch"]), record["variant"], f"{median(rates):.1f}", spread, ratio])
    header = ["model", "batch", "variant", "tokens/s", "lowest to highest", f"x {PEER}"]
    print_table(header, rows, title="Generation on CPU")


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    facts = {"cpu": machine.cpu_name(), "cores": os.cpu_count(), "system": platform.platform()}
    where: dict[str, Any] = {"machine": {**facts, "load_before": os.getloadavg()[0]}, **results_file.provenance()}
    records = []
    try:
        for name in MODELS.value:
            records += measure(name)
            where["machine"]["load_after"] = os.getloadavg()[0]
            results_file.write(Path(OUTPUT.value), [{**record, **where} for record in records])
    except Failed as error:
        sys.exit(str(error))
    print_summary(records)


if __name__ == "__main__":
    app.run(main)
