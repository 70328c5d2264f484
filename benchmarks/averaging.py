"""What averages cost: time of a training step with each of them over that without, and the memory they hold.

    python benchmarks/averaging.py                                            (1M parameters, a minute on two cores)
    python benchmarks/averaging.py --model=gpt2_small --batch_size=1 --context=128 --steps=4 --rounds=3

One process and one compiled training step; the variants take turns, a few steps each, so that a disturbance of the
machine meets all of them, and ratios are taken within a round. Averages are updated as the trainer does it. ``none``
runs twice in a round: the ratio of its two turns is the noise. An average reads and writes its copies of the parameters
whatever the batch is, so the ratio falls with the tokens in a step: 1M parameters at 2,048 tokens a step is near what a
GPU does at full batches, 124M at 128 tokens is the worst case.

Hardware: any; for gpt2_small 8 GB of memory. On an H100, for all that stays on it: at most 1.02 with 124M at 16,384
tokens a step (--model=gpt2_small --batch_size=16 --context=1024 --steps=12 --rounds=5), and up to 1.03 with 1M, where a
step takes 1.4 ms (--steps=100). Writes benchmarks/results/averaging-MODEL.jsonl, on a GPU averaging-MODEL-gpu.jsonl.
"""

import functools
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import results_file  # beside this file
from absl import app, flags

from wsm_jax.config import OptimizerConfig
from wsm_jax.core import averages, online, schedules
from wsm_jax.io import disk, machine
from wsm_jax.models import family, model, presets
from wsm_jax.parallel import sharding
from wsm_jax.reporting.tables import print_table
from wsm_jax.training import optimizer, tracking, train_state, train_step

MODEL = flags.DEFINE_enum("model", "tiny", ["tiny", "gpt2_small"], "what is trained")
BATCH = flags.DEFINE_integer("batch_size", 8, "sequences in a step", lower_bound=1)
CONTEXT = flags.DEFINE_integer("context", 256, "tokens in a sequence", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 20, "steps of a variant in a round, a multiple of 4", lower_bound=4)
ROUNDS = flags.DEFINE_integer("rounds", 7, "rounds; in each, every variant runs once", lower_bound=1)
ONLY = flags.DEFINE_multi_string("only", [], "name of a variant, may be repeated; none = all")
OUTPUT = flags.DEFINE_string("output", "", "file; empty = benchmarks/results/averaging-MODEL[-PLATFORM].jsonl")

SCHEDULE = schedules.constant(1e-3)
LEAVES = family.of(presets.tiny()).leaves(presets.tiny())  # those of every size
MASK = functools.partial(optimizer.decay_mask, leaves=LEAVES)
DECAY = {"learning_rate": SCHEDULE, "weight_decay": 0.1, "mask": MASK}


def variants(steps: int) -> dict[str, tuple[averages.Average | None, bool]]:
    """Name -> average and whether it is kept on the host."""
    return {
        "none": (None, False),
        "interval mean": (averages.interval_mean(steps), False),
        "EMA": (averages.ema(0.999), False),
        "EMA, every 4 steps": (averages.ema(0.999, every=4), False),
        "EMA, host, every 4 steps": (averages.ema(0.999, every=4), True),
        "SWA, every 4 steps": (averages.swa(0, 4), False),
        "LAWA, 4 copies, every 4 steps": (averages.lawa(4, 4), False),
        "online WSM, 1 copy": (online.online_wsm("minus_sqrt", 4 * steps, **DECAY), False),
        "online WSM, 4 copies": (online.online_wsm("minus_sqrt", 4 * steps, spacing=steps, **DECAY), False),
        "online WSM, 4 copies, every 4 steps": (
            online.online_wsm("minus_sqrt", 4 * steps, spacing=steps, every=4, **DECAY),
            False,
        ),
        "none again": (None, False),
    }


class Benchmark:
    """One training state that all variants share, and the state of each variant's average."""

    def __init__(self, chosen: dict[str, tuple[averages.Average | None, bool]]):
        config = presets.preset(MODEL.value) if MODEL.value != "tiny" else presets.tiny()
        config.context, config.vocab_size = CONTEXT.value, config.vocab_size or 4096
        built, mesh = model.build(config, BATCH.value), sharding.make_mesh()
        rule = optimizer.make(OptimizerConfig(), SCHEDULE, LEAVES)
        abstract = train_state.abstract(built, rule, mesh)
        self.state = train_state.initialise(built, rule, 0, mesh)
        self.parameters = model.parameter_count(self.state["params"])
        shape = (BATCH.value, config.context + 1)
        tokens = np.random.default_rng(0).integers(0, config.vocab_size, shape).astype(np.int32)
        self.batch = sharding.global_batch(mesh, {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]})
        self.step = train_step.jit_train_step(built, rule, mesh, abstract).lower(self.state, self.batch).compile()
        self.done = 0
        self.averages, self.updates = {}, {}
        for name, (made, host) in chosen.items():
            rules = {"it": made} if made else {}
            places = tracking.abstract(rules, abstract["params"], host=host)
            self.averages[name] = tracking.initialise(rules, self.state["params"], places)
            self.updates[name] = tracking.compile_update(rules, abstract["params"], places)

    def run(self, name: str, steps: int) -> float:
        """Seconds a step of ``steps`` steps with the average ``name``."""
        jax.block_until_ready((self.state, self.averages[name]))
        clock = time.perf_counter()
        for _ in range(steps):
            self.state, _ = self.step(self.state, self.batch)
            self.done += 1
            self.averages[name] = self.updates[name](self.averages[name], self.state["params"], self.done)
        jax.block_until_ready((self.state, self.averages[name]))
        return (time.perf_counter() - clock) / steps


def main(argv: list[str]) -> None:
    """Runs the benchmark and writes its records."""
    del argv
    if STEPS.value % 4:
        sys.exit("--steps must be a multiple of 4")
    if unknown := set(ONLY.value) - set(variants(STEPS.value)):
        sys.exit(f"--only={min(unknown)!r} is none of {'; '.join(variants(STEPS.value))}")
    chosen = {n: v for n, v in variants(STEPS.value).items() if not ONLY.value or n in (*ONLY.value, "none")}
    bench = Benchmark(chosen)
    for name in chosen:
        bench.run(name, 4)  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for number in range(ROUNDS.value):
        for name in chosen:
            seconds[name].append(bench.run(name, STEPS.value))
        print(f"round {number + 1} of {ROUNDS.value}", flush=True)
    facts = {"model": MODEL.value, "parameters": bench.parameters, "tokens_per_step": BATCH.value * CONTEXT.value}
    facts |= {"steps_per_round": STEPS.value, **results_file.provenance(), **machine.environment()}
    rows: list[list[str]] = []
    records: list[dict[str, Any]] = []
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds["none"], strict=True)]
        held = disk.tree_bytes(bench.averages[name])
        records.append({"variant": name, "seconds_per_step": times, "ratios": ratios, "bytes_held": held, **facts})
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        rows.append([name, f"{1e3 * median(times):.1f}", f"{median(ratios):.3f}", spread, f"{held / 1e6:.1f}"])
    header = ["average", "ms a step", "ratio to none", "lowest to highest", "MB held"]
    title = f"{facts['parameters']:,} parameters, {facts['tokens_per_step']:,} tokens a step"
    print_table(header, rows, title=title)
    platform = "" if jax.default_backend() == "cpu" else f"-{jax.default_backend()}"
    default = f"benchmarks/results/averaging-{MODEL.value}{platform}.jsonl"
    results_file.write(Path(OUTPUT.value or default), records)


if __name__ == "__main__":
    app.run(main)
