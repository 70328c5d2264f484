"""What merging costs, offline and online, against the real decay that it replaces: a question of the paper's reviewers.

    python -m experiments.cost [--scale=small]

Measured on the shared runs, on the text of the stable phase: `wsm merge` of 8 and 16 checkpoints as a process of its
own (seconds, peak memory, bytes read), the seconds of a real decay over 16 intervals, and the disk that either way
needs. Computed beside it: floating-point operations, and all of it for the paper's model. An online merge
(`--config.averaging.names=wsm`) holds one more copy of the parameters and reads nothing; benchmarks/averaging.py has
what it adds to a step.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from configs import matrix
from experiments import protocol
from experiments.jobs import WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import Seeds, plus_minus, source
from experiments.training import SEED_SCALES, matrix_of, rates
from experiments.trajectories import window
from wsm_jax import disk
from wsm_jax.checkpoints import PARAMS
from wsm_jax.models.model import flops_per_token
from wsm_jax.tables import markdown_table

COUNTS = (8, 16)
REAL, MERGE = "decay", "merge"
# A small process between: a child starts with the peak memory of its parent, and this one has run jax.
MEASURE = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
assert status == 0, sys.argv
print(time.perf_counter() - start, usage.ru_maxrss)
"""
# Of the paper: parameters in all and active, tokens of the decay.
PAPER = {"parameters": 16_255_643_392, "active": 1_432_973_056, "tokens": 400e9}


def measure(folder: Path, seed: int, settings: list[str]) -> list[Record]:
    """The decay and the merges of a seed."""
    runs = matrix_of(folder, settings)
    rate = rates(runs.scale)[WSM]
    constant, decay = (runs.run(seed, rate, job) for job in ("constant", "decay-minus_sqrt"))
    path = runs.path(seed, rate, "constant")
    parameters, tokens = constant.facts["parameters"], matrix.DECAY * runs.interval * constant.plan.tokens_per_step
    trained = [r for r in decay.metrics("train") if r["step"] > runs.branch_step]
    state = disk.disk_bytes(decay.resume_stream / str(runs.steps))  # parameters and moments alone
    rows = [
        {
            **{"arm": REAL, "count": matrix.DECAY, "seconds": sum(r["seconds"] for r in trained), "peak_rss": 0},
            "stored": state,
            "flops": flops_per_token(constant.config.model, parameters) * tokens,
        }
    ]
    for count in COUNTS:
        inputs = window(path, "linear", count, runs.steps).paths
        seconds, peak = merge(inputs, folder)
        stored = sum(disk.disk_bytes(place / PARAMS) for place in inputs)
        rows.append(
            {
                **{"arm": MERGE, "count": count, "seconds": seconds, "peak_rss": peak},
                **{"stored": stored, "flops": 2.0 * count * parameters},
            }
        )
    return [{**row, **protocol.provenance(constant)} for row in rows]


def merge(inputs: tuple[Path, ...], folder: Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of ``wsm merge`` of some checkpoints, from its start to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        options = ["--curve=linear", f"--output={place}/merged"]
        command = [sys.executable, "-m", "wsm_jax", "merge", *map(str, inputs), *options]
        found = subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, text=True, check=True)
    seconds, peak = found.stdout.split()
    return float(seconds), int(peak) * 1024  # Linux counts in kibibytes


def present(records: list[Record]) -> Page:
    """Measured costs, and the paper's model by computation."""
    table = Seeds(records, "arm", "count")
    arms = {f"real decay over {matrix.DECAY} intervals": (REAL, matrix.DECAY)}
    arms |= {f"merge of {n}, offline": (MERGE, n) for n in COUNTS}
    rows = [["", "seconds", "peak memory, MB", "kept on disk and read, MB", "floating-point operations"]]
    for name, key in arms.items():
        peak, stored = (f"{table.mean(key, field) / 1e6:,.0f}" for field in ("peak_rss", "stored"))
        cells = [plus_minus(table.of(key, "seconds"), 1), "–" if key[0] == REAL else peak, stored]
        rows.append([name, *cells, f"{table.mean(key, 'flops'):.1e}"])
    share = table.mean((MERGE, COUNTS[-1]), "flops") / table.mean((REAL, matrix.DECAY), "flops")
    size, active, tokens = PAPER["parameters"], PAPER["active"], PAPER["tokens"]
    lines = [
        "# The cost of merging",
        "",
        f"{source(records)}",
        "",
        *markdown_table(rows),
        "",
        f"A merge of {COUNTS[-1]} takes {share:.1e} of the decay's floating-point operations; its time is that of "
        "starting Python and of reading the files. *kept on disk*: for the decay a full state, "
        "for the merge its inputs (float32). An online merge keeps one copy more in memory and reads nothing.",
        "",
        f"For the paper's model, by computation: a decay over {tokens / 1e9:.0f}B tokens is 6 × {active / 1e9:.2f}B × "
        f"{tokens / 1e9:.0f}B = {6 * active * tokens:.1e} floating-point operations; a merge of 16 is 2 × 16 × "
        f"{size / 1e9:.1f}B = {32 * size:.1e}, reads {16 * 4 * size / 1e12:.2f} TB in float32 (half of it in "
        f"bfloat16), at 2 GB/s {16 * 4 * size / 2e9 / 60:.0f} minutes, and keeps them on disk.",
    ]
    return Page(lines, {})


EXPERIMENT = Experiment("cost", SEED_SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
