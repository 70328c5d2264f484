"""Training steps per second on CPU: ours beside the same model of transformers in PyTorch, eager and compiled.

    python benchmarks/train_step.py --peer_python=/path/to/peer/bin/python --family=gpt2

The peer has an interpreter of its own (without --peer_python only ours is measured):

    python -m venv peer && peer/bin/python -m pip install "torch==2.13.*" transformers

6 layers, width 256, 8 heads, context 256, batch 16, vocabulary 8,192, float32, AdamW (0.9, 0.95, decay 0.1), clip 1.0,
synthetic tokens, 2 threads. ``neox`` is a small Pythia; ``llama`` has a fourth as many heads of keys, a feed-forward
layer three times as wide as the stream and a tied head.

Every variant is a process of its own; after its warm-up the variants take turns, a few steps each, so that what
disturbs the machine meets all of them. Ours runs plain (``attention=xla``), and then with one setting for CPUs after
the other: query blocks (``attention=blocks``), a glibc tunable against page faults (the kept heap), layers unrolled
(``scan_unroll``), the loss in blocks (``loss_blocks``).

Hardware: any x86-64 with 2 cores to spare and 8 GB of memory. Time: about 8 minutes a family.
Writes benchmarks/results/train_step.{jsonl,png,svg}; train_step_neox and train_step_llama for these families.
"""

import dataclasses
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import results_file  # beside this file
from absl import app, flags
from matplotlib.figure import Figure

from wsm_jax.io import machine
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import print_table

PEER_PYTHON = flags.DEFINE_string("peer_python", "", "interpreter with torch and transformers; empty = ours only")
ROUNDS = flags.DEFINE_integer("rounds", 7, "rounds; in each, every variant runs once", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 4, "steps of a variant in a round", lower_bound=1)
SHAPE = flags.DEFINE_string("shape", "6,256,8,256,16,8192", "layers,width,heads,context,batch,vocabulary")
THREADS = flags.DEFINE_integer("threads", 2, "cores and threads of every process", lower_bound=1)
FAMILY = flags.DEFINE_enum("family", "gpt2", ["gpt2", "neox", "llama"], "architecture on both sides")
OUTPUT = flags.DEFINE_string("output", "", "where results go, without suffix; empty = benchmarks/results/train_step*")
WORKER = flags.DEFINE_string("worker", "", "internal: shape and attention of one of our processes, as JSON")

HERE = Path(__file__).resolve().parent
# Everything from one heap that is never given back: after the first steps no page is ever new.
KEPT_HEAP = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736:glibc.malloc.arena_max=1"
}
FIELDS = ("layers", "d_model", "heads", "context", "batch_size", "vocab_size")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One process of the benchmark: its name, its command and what it adds to the environment."""

    name: str
    command: list[str]
    environment: dict[str, str]


class Worker:
    """A running variant that answers with the time of N steps."""

    def __init__(self, variant: Variant, threads: int):
        clean = {k: v for k, v in os.environ.items() if k not in (*KEPT_HEAP, "XLA_FLAGS")}
        pinned = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
        self.variant = variant
        self.process = subprocess.Popen(
            variant.command,
            env=clean | pinned | variant.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.facts = self._read()

    def run(self, steps: int) -> dict[str, float]:
        """Seconds, CPU-seconds and last loss of ``steps`` steps."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"{self.variant.name} ended early; run it by hand: {shlex.join(self.variant.command)}")


def shape_of(family: str, text: str) -> dict[str, Any]:
    """What both sides build, of the numbers of ``--shape``."""
    shape: dict[str, Any] = dict(zip(FIELDS, (int(x) for x in text.split(",")), strict=True)) | {"family": family}
    if family == "llama":
        shape |= {"kv_heads": max(1, shape["heads"] // 4), "d_ff": 3 * shape["d_model"], "tied": True}
    return shape


def variants(shape: dict[str, Any], peer_python: str) -> list[Variant]:
    """What is measured, in the order of a round."""

    def ours(name: str, environment: dict[str, str], **settings: Any) -> Variant:
        worker = json.dumps(shape | settings)
        return Variant(f"WSM-JAX{name}", [sys.executable, __file__, f"--worker={worker}"], environment)

    unrolled = {"attention": "blocks", "scan_unroll": shape["layers"]}
    found = [
        ours("", {}, attention="xla"),
        ours(", blocks", {}, attention="blocks"),
        ours(", blocks, kept heap", KEPT_HEAP, attention="blocks"),
        ours(", blocks, kept heap, unrolled", KEPT_HEAP, **unrolled),
        ours(", blocks, kept heap, unrolled, loss in blocks", KEPT_HEAP, **unrolled, loss_blocks=8),
    ]
    if peer_python:
        peer = [peer_python, str(HERE / "train_step_torch.py")]
        found.append(Variant("PyTorch eager", [*peer, "eager", json.dumps(shape)], {}))
        found.append(Variant("PyTorch compiled", [*peer, "compile", json.dumps(shape)], {}))
    return found


def run_worker(settings: dict[str, Any]) -> None:
    """Our side of the pipe: warms up, then runs N steps for every line N on standard input."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["threads"]])
    import jax
    import numpy as np
    from train_step_torch import answer, timed  # beside this file; imports torch only when it runs

    from wsm_jax.config import MODEL_FIELDS, OptimizerConfig
    from wsm_jax.core import schedules
    from wsm_jax.models import model
    from wsm_jax.parallel import sharding
    from wsm_jax.training import optimizer, train_state, train_step

    fields = MODEL_FIELDS[settings["family"]]
    names = {field.name for field in dataclasses.fields(fields)}
    config: Any = fields(**{k: v for k, v in settings.items() if k in names})
    built, mesh = model.build(config), sharding.make_mesh(jax.devices()[:1])
    rule = optimizer.make(OptimizerConfig(), schedules.constant(1e-3, 10), built.leaves)
    state = train_state.initialise(built, rule, 0, mesh)
    parameters = model.parameter_count(state["params"])
    compiled = train_step.jit_train_step(built, rule, mesh, state)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (settings["batch_size"], config.context + 1))
    tokens = tokens.astype(np.int32)
    batch = sharding.global_batch(mesh, {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]})

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    first = step()
    step()
    answer({"versions": {"jax": jax.__version__}, "parameters": parameters, "first_loss": first})
    for line in sys.stdin:
        answer(timed(step, int(line)))


def print_summary(records: list[dict[str, Any]]) -> None:
    """Medians over the rounds; ratios are medians of the ratios within a round."""
    peers = [r for r in records if r["variant"].startswith("PyTorch")]
    header = ["variant", "tokens/s", "lowest to highest", "CPU-s a step", *(f"x {p['variant']}" for p in peers)]
    rows = []
    for record in records:
        rates = record["tokens_per_second"]
        ratios = [median(a / b for a, b in zip(rates, p["tokens_per_second"], strict=True)) for p in peers]
        cells = [f"{median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}"]
        cells += [f"{median(record['cpu_seconds_per_step']):.2f}", *(f"{ratio:.2f}" for ratio in ratios)]
        rows.append([record["variant"], *cells])
    print_table(header, rows, title="Training step on CPU")


@plot_style.styled_figure
def figure(records: list[dict[str, Any]]) -> Figure:
    """Median tokens/s of every variant as bars, with lines from the lowest round to the highest."""
    made = Figure(figsize=(plot_style.WIDTH, 0.6 + 0.35 * len(records)))
    axes = made.add_subplot()
    rates = [record["tokens_per_second"] for record in records]
    middle = [median(r) for r in rates]
    spread = list(zip(*((median(r) - min(r), max(r) - median(r)) for r in rates), strict=True))
    names = [record["variant"] for record in records]
    colours = ["#999999" if name.startswith("PyTorch") else "#0072B2" for name in names]
    axes.barh(names, middle, xerr=spread, color=colours, height=0.6, error_kw={"linewidth": 1, "capsize": 2})
    axes.invert_yaxis()
    axes.set(xlabel="tokens/s (median over rounds; whiskers: lowest and highest)", xlim=(0, None))
    return made


def main(argv: list[str]) -> None:
    """Runs the benchmark, or one of its processes."""
    del argv
    if WORKER.value:
        run_worker(json.loads(WORKER.value))
        return
    shape = shape_of(FAMILY.value, SHAPE.value) | {"threads": THREADS.value}
    output = OUTPUT.value or f"benchmarks/results/train_step{'' if FAMILY.value == 'gpt2' else f'_{FAMILY.value}'}"
    facts = {"cpu": machine.cpu_name(), "cores": os.cpu_count(), "system": platform.platform()}
    facts |= {"load_before": os.getloadavg()[0]}
    if not PEER_PYTHON.value:
        print("No --peer_python: measuring ours only.")
    workers = []
    for variant in variants(shape, PEER_PYTHON.value):
        print(f"warming up: {variant.name}", flush=True)
        workers.append(Worker(variant, THREADS.value))
    answers: list[list[dict[str, float]]] = [[] for _ in workers]
    for number in range(ROUNDS.value):
        for worker, timings in zip(workers, answers, strict=True):
            timings.append(worker.run(STEPS.value))
        print(f"round {number + 1} of {ROUNDS.value}", flush=True)
    tokens = shape["batch_size"] * shape["context"] * STEPS.value
    records = []
    for worker, timings in zip(workers, answers, strict=True):
        worker.close()
        records.append(
            {
                "variant": worker.variant.name,
                "command": shlex.join(worker.variant.command),
                "environment": worker.variant.environment,
                "shape": shape,
                "steps_per_round": STEPS.value,
                "tokens_per_second": [tokens / t["seconds"] for t in timings],
                "cpu_seconds_per_step": [t["cpu_seconds"] / STEPS.value for t in timings],
                "last_loss": timings[-1]["loss"],
                **worker.facts,
                "machine": facts,
                **results_file.provenance(),
            }
        )
    print_summary(records)
    results_file.write(Path(f"{output}.jsonl"), records)
    plot_style.save(figure(records), output)


if __name__ == "__main__":
    app.run(main)
