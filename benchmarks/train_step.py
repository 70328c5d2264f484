"""Training steps per second: ours as ``wsm train`` runs it, beside the same models of transformers in PyTorch.

    python benchmarks/train_step.py --peer_python=/path/to/peer/bin/python
    python benchmarks/train_step.py --peer_python=/path/to/peer/bin/python --device=gpu

The peer has an interpreter of its own (without --peer_python only ours is measured):

    python -m venv peer && peer/bin/python -m pip install "torch==2.13.*" transformers

On CPUs, for each family of ``--family``: 6 layers, width 256, 8 heads, context 256, batch 16, vocabulary 8,192,
float32, AdamW (0.9, 0.95, decay 0.1), clip 1.0, synthetic tokens, 2 threads. ``neox`` is a small Pythia; ``llama`` has
a fourth as many heads of keys, a feed-forward layer three times as wide as the stream and a tied head. Contenders are
processes; after their warm-up they take turns, a few steps each, so that what disturbs the machine meets all of them.
With ``--parts`` also what each setting is worth: ``plain`` has attention, layers and loss as JAX has them and gives
memory back, the others take one of these at a time from the default; and PyTorch eager.
``--shape=2,64,4,64,4,512 --rounds=2`` tries it in a minute.

On one card (H100, H200), for GPT-2 small and medium and a Llama of 1B, bfloat16, context 1,024: a contender at a time,
the peer with torch.compile and SDPA, the cost of an EMA beside a step; at most ``--minutes``, and what was measured by
then is written. ``--toy`` tries it on a CPU.

Hardware: any x86-64 with 2 cores to spare and 8 GB of memory, 2 minutes a family; or one card of 80 GB, 6 minutes.
Writes benchmarks/results/train_step_families.{jsonl,png,svg}, or train_step_gpu.jsonl.
"""

import os
import platform
import shlex
import sys
from pathlib import Path
from statistics import median
from typing import Any

import results_file  # beside this file
import train_step_card
from absl import app, flags
from matplotlib.figure import Figure
from train_step_cases import FAMILIES, OURS, PEER, Shape, cpu_shape, cpu_variants
from train_step_process import Contender, Failed

from wsm_jax.io import machine
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import print_table

PEER_PYTHON = flags.DEFINE_string("peer_python", "", "interpreter with torch and transformers; empty = ours only")
DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "what trains")
ROUNDS = flags.DEFINE_integer("rounds", 7, "cpu: rounds; in each, every contender runs once", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2, "cpu: steps of a contender in a round", lower_bound=1)
SHAPE = flags.DEFINE_string("shape", "6,256,8,256,16,8192", "cpu: layers,width,heads,context,batch,vocabulary")
THREADS = flags.DEFINE_integer("threads", 2, "cpu: cores and threads of every process", lower_bound=1)
FAMILY = flags.DEFINE_list("family", list(FAMILIES), "cpu: architectures, on both sides")
PARTS = flags.DEFINE_bool("parts", False, "cpu: also what each setting of the default is worth, and PyTorch eager")
MINUTES = flags.DEFINE_float("minutes", 5.5, "gpu: for everything", lower_bound=0.5)
TOY = flags.DEFINE_bool("toy", False, "gpu: small models on the CPU, to try it")
OUTPUT = flags.DEFINE_string("output", "", "where results go, without suffix; empty = in benchmarks/results")
flags.register_validator("family", lambda given: set(given) <= set(FAMILIES), f"of {', '.join(FAMILIES)}")


def on_cpu(shape: Shape) -> list[dict[str, Any]]:
    """A record for every contender with one shape."""
    contenders, answers = [], []
    for variant in cpu_variants(shape, PEER_PYTHON.value, parts=PARTS.value):
        print(f"{shape['family']}: warming up {variant.name}", flush=True)
        contenders.append(Contender(variant))
        answers.append([])
    for number in range(ROUNDS.value):
        for contender, timings in zip(contenders, answers, strict=True):
            timings.append(contender.run(STEPS.value))
        print(f"{shape['family']}: round {number + 1} of {ROUNDS.value}", flush=True)
    tokens = shape["batch_size"] * shape["context"] * STEPS.value
    records = []
    for contender, timings in zip(contenders, answers, strict=True):
        contender.close()
        records.append(
            {
                "family": shape["family"],
                "variant": contender.variant.name,
                "command": shlex.join(contender.variant.command),
                "environment": contender.variant.environment,
                "shape": shape,
                "steps_per_round": STEPS.value,
                "tokens_per_second": [tokens / t["seconds"] for t in timings],
                "cpu_seconds_per_step": [t["cpu_seconds"] / STEPS.value for t in timings],
                "last_loss": timings[-1]["loss"],
                **contender.facts,
            }
        )
    return records


def ratios(record: dict[str, Any], records: list[dict[str, Any]]) -> list[float]:
    """The rates of ``record`` over those of the peer in the same rounds; empty without a peer."""
    for other in records:
        if (other["family"], other["variant"]) == (record["family"], PEER):
            pairs = zip(record["tokens_per_second"], other["tokens_per_second"], strict=True)
            return [ours / theirs for ours, theirs in pairs]
    return []


def print_summary(records: list[dict[str, Any]]) -> None:
    """Medians over the rounds; ratios are medians of the ratios within a round."""
    header = ["family", "variant", "tokens/s", "lowest to highest", "CPU-s a step", f"x {PEER}"]
    rows = []
    for record in records:
        rates, found = record["tokens_per_second"], ratios(record, records)
        cells = [f"{median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}"]
        cells += [f"{median(record['cpu_seconds_per_step']):.2f}", f"{median(found):.2f}" if found else ""]
        rows.append([record["family"], record["variant"], *cells])
    print_table(header, rows, title="Training step on CPU")


@plot_style.styled_figure
def figure(records: list[dict[str, Any]]) -> Figure:
    """Median tokens/s of every contender as bars, with lines from the lowest round to the highest."""
    made = Figure(figsize=(plot_style.WIDTH, 0.6 + 0.35 * len(records)))
    axes = made.add_subplot()
    rates = [record["tokens_per_second"] for record in records]
    middle = [median(r) for r in rates]
    spread = list(zip(*((median(r) - min(r), max(r) - median(r)) for r in rates), strict=True))
    names = [f"{record['family']}: {record['variant']}" for record in records]
    colours = ["#0072B2" if record["variant"].startswith(OURS) else "#999999" for record in records]
    axes.barh(names, middle, xerr=spread, color=colours, height=0.6, error_kw={"linewidth": 1, "capsize": 2})
    axes.invert_yaxis()
    axes.set(xlabel="tokens/s (median over rounds; whiskers: lowest and highest)", xlim=(0, None))
    return made


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    if not PEER_PYTHON.value:
        print("No --peer_python: measuring ours only.")
    name = "train_step_gpu" if DEVICE.value == "gpu" else "train_step_families"
    output = OUTPUT.value or f"benchmarks/results/{name}"
    facts = {"cpu": machine.cpu_name(), "cores": os.cpu_count(), "system": platform.platform()}
    facts |= {"load_before": os.getloadavg()[0]}
    where = {"machine": facts, **results_file.provenance()}

    def write(records: list[dict[str, Any]]) -> None:
        results_file.write(Path(f"{output}.jsonl"), [{**record, **where} for record in records])

    try:
        if DEVICE.value == "gpu":
            train_step_card.print_summary(train_step_card.measure(MINUTES.value, PEER_PYTHON.value, TOY.value, write))
            return
        records = []
        for family in FAMILY.value:
            records += on_cpu(cpu_shape(family, SHAPE.value) | {"threads": THREADS.value})
            write(records)
    except Failed as error:
        sys.exit(str(error))
    print_summary(records)
    plot_style.save(figure(records), output)


if __name__ == "__main__":
    app.run(main)
