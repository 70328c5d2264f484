"""Training steps of a small mixture of experts: sparse, as ``wsm train`` runs it; a dense loop; and DeepSeek-V3's.

    python benchmarks/moe.py --peer_python=/path/to/peer/bin/python

``ling_tiny`` (16 experts, 2 of them for a token, 5.2M parameters, vocabulary 4,096) at a batch of 8 x 256 tokens,
float32, AdamW, 2 threads. ``dense loop`` computes every expert for every token. The peer is ``deepseek_v3`` of
transformers with as many parameters and the same experts (its heads share keys by a low rank), eager with the experts
in a loop, and with ``grouped_mm``; it has an interpreter of its own, see ``train_step.py``, and without one only ours
is measured. Contenders are processes that take turns, so that what disturbs the machine meets all of them.

Hardware: any x86-64 with 2 cores to spare and 4 GB of memory; 3 minutes. Writes results/moe/train_step.jsonl.
"""

import dataclasses
import os
import platform
import shlex
import sys
from pathlib import Path
from statistics import median
from typing import Any

import results_file  # beside this file
from absl import app, flags
from train_step_cases import OURS, Shape, ours, peer
from train_step_process import Contender, Failed, Variant

from wsm_jax.io import machine
from wsm_jax.models import ling_fields, presets
from wsm_jax.reporting.tables import print_table

PEER_PYTHON = flags.DEFINE_string("peer_python", "", "interpreter with torch and transformers; empty = ours only")
ROUNDS = flags.DEFINE_integer("rounds", 7, "rounds; in each, every contender runs once", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2, "steps of a contender in a round", lower_bound=1)
BATCH = flags.DEFINE_integer("batch_size", 8, "sequences of 256 tokens", lower_bound=1)
THREADS = flags.DEFINE_integer("threads", 2, "cores and threads of every process", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", "results/moe/train_step.jsonl", "where results go")
DENSE = f"{OURS}, dense loop"


def variants(shape: Shape, peer_python: str) -> list[Variant]:
    """The contenders of a round, in order."""
    threads = str(shape["threads"])
    pinned = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "JAX_PLATFORMS": "cpu"}
    found = [ours(OURS, shape, pinned), ours(DENSE, shape, pinned, grouped="dense")]
    if peer_python:
        for kind in ("eager", "grouped_mm"):
            found.append(peer(f"deepseek_v3, {kind}", "eager", shape | {"peer_experts": kind}, peer_python, pinned))
    return found


def measured(shape: Shape) -> list[dict[str, Any]]:
    """A record for every contender."""
    contenders = []
    for variant in variants(shape, PEER_PYTHON.value):
        print(f"warming up {variant.name}", flush=True)
        contenders.append(Contender(variant))
    answers = [[contender.run(STEPS.value) for contender in contenders] for _ in range(ROUNDS.value)]
    tokens, records = shape["batch_size"] * shape["context"] * STEPS.value, []
    for contender, timings in zip(contenders, zip(*answers, strict=True), strict=True):
        contender.close()
        records.append(
            {
                "variant": contender.variant.name,
                "command": shlex.join(contender.variant.command),
                "environment": contender.variant.environment,
                "shape": shape,
                "steps_per_round": STEPS.value,
                "tokens_per_second": [tokens / t["seconds"] for t in timings],
                "tokens_per_cpu_second": [tokens / t["cpu_seconds"] for t in timings],
                **contender.facts,
            }
        )
    return records


def print_summary(records: list[dict[str, Any]]) -> None:
    """Medians over the rounds; ours over each other one as the median of the ratios within a round."""
    rows, first = [], records[0]["tokens_per_second"]
    for record in records:
        rates = record["tokens_per_second"]
        ratio = median(own / other for own, other in zip(first, rates, strict=True))
        cells = [f"{median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}"]
        cells += [f"{median(record['tokens_per_cpu_second']):,.0f}", f"{record['parameters']:,}", f"{ratio:.2f}"]
        rows.append([record["variant"], *cells])
    header = ["variant", "tokens/s", "lowest to highest", "tokens per CPU-s", "parameters", f"{OURS} over it"]
    print_table(header, rows, title="Training step of a mixture of experts on CPU")


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    fields = presets.with_vocabulary(ling_fields.ling_tiny(), 4096)
    shape = dataclasses.asdict(fields) | {"batch_size": BATCH.value, "threads": THREADS.value}
    facts = {"cpu": machine.cpu_name(), "cores": os.cpu_count(), "system": platform.platform()}
    facts |= {"load_before": os.getloadavg()[0]}
    try:
        records = measured(shape)
    except Failed as error:
        sys.exit(str(error))
    where = {"machine": facts, **results_file.provenance()}
    results_file.write(Path(OUTPUT.value), [{**record, **where} for record in records])
    print_summary(records)


if __name__ == "__main__":
    app.run(main)
