"""What merging costs, offline and online, against the real decay that it replaces: a question of the paper's reviewers.

    python -m experiments.cost [--scale=small]

Measured on the shared runs, on the text of the stable phase: `wsm merge` of 8 and 16 checkpoints as a process of its
own (seconds, peak memory, bytes read), all updates of an online merge (`--config.averaging.names=wsm`) over the 16
intervals and its read-out, at every step and at every checkpoint (seconds, memory of its state), the seconds of a real
decay over them, and the disk that each needs. Computed beside it: floating-point operations, and all of it for the
paper's model. benchmarks/averaging.py has what an online merge adds to a step.
"""

import functools
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from configs import matrix
from experiments import figures, protocol
from experiments.intervals import interval
from experiments.jobs import WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import Seeds, plus_minus, source
from experiments.training import SEED_SCALES, matrix_of, rates
from experiments.trajectories import window
from wsm_jax.checkpoints import orbax, run_schedule
from wsm_jax.checkpoints.orbax import PARAMS
from wsm_jax.checkpoints.run import Run
from wsm_jax.core.online import online_wsm
from wsm_jax.io import disk
from wsm_jax.models import family
from wsm_jax.models.model import flops_per_token
from wsm_jax.parallel import sharding
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import markdown_table
from wsm_jax.training import tracking
from wsm_jax.training.optimizer import decay_mask

COUNTS = (8, 16)
REAL, MERGE, ONLINE = "decay", "merge", "online"
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
    for every in (1, runs.interval):
        seconds, held = online(constant, path[runs.steps], runs.branch_step, every)
        updates = matrix.DECAY * runs.interval // every
        rows.append(
            {
                **{"arm": ONLINE, "count": updates, "seconds": seconds, "peak_rss": held, "stored": 0},
                "flops": 7.0 * updates * parameters,  # additions and multiplications of window.py, with weight decay
            }
        )
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
    return [{**row, **protocol.provenance(decay if row["arm"] == REAL else constant)} for row in rows]


def merge(inputs: tuple[Path, ...], folder: Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of ``wsm merge`` of some checkpoints, from its start to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        options = ["--curve=linear", f"--output={place}/merged"]
        command = [sys.executable, "-m", "wsm_jax", "merge", *map(str, inputs), *options]
        # As it is run by hand: the heap that training keeps would show in the peak memory.
        plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
        measured = [sys.executable, "-c", MEASURE, *command]
        found = subprocess.run(measured, stdout=subprocess.PIPE, text=True, env=plain, check=True)
    seconds, peak = found.stdout.split()
    return float(seconds), int(peak) * 1024  # Linux counts in kibibytes


def online(run: Run, checkpoint: Path, start: int, every: int) -> tuple[float, int]:
    """Seconds of all updates from ``start`` to the run's end and of the read-out, and bytes of the state.

    Args:
      run: whose schedule and weight decay it accounts for.
      checkpoint: parameters that every update takes; what they are does not change how long it takes.
      start: step at which the window begins.
      every: steps between updates.
    """
    schedule = run_schedule.from_config(run.config, run.facts["branch_step"])
    mask = functools.partial(decay_mask, leaves=family.of(run.config.model).leaves(run.config.model))
    settings = {"learning_rate": schedule, "weight_decay": run.config.optimizer.weight_decay, "mask": mask}
    averages = {ONLINE: online_wsm("linear", run.plan.steps - start, every=every, **settings)}
    place = sharding.replicated(sharding.make_mesh())
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, place), orbax.load_tree(checkpoint))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), params)
    states = tracking.abstract(averages, shapes)
    update = tracking.compile_update(averages, shapes, states)
    read = tracking.compile_read(averages, shapes, states)
    state = tracking.initialise(averages, params, states)
    clock = time.perf_counter()
    for step in range(start + 1, run.plan.steps + 1):
        state = update(state, params, step)
    jax.block_until_ready(read(state, params, run.plan.steps))
    seconds = time.perf_counter() - clock
    return seconds, sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def present(records: list[Record]) -> Page:
    """Measured costs, and the paper's model by computation."""
    table = Seeds(records, "arm", "count")
    arms = {f"real decay over {matrix.DECAY} intervals": (REAL, matrix.DECAY)}
    arms |= {f"merge of {n}, offline": (MERGE, n) for n in COUNTS}
    updates = sorted({r["count"] for r in records if r["arm"] == ONLINE}, reverse=True)
    arms |= {f"online merge, {n} updates": (ONLINE, n) for n in updates}
    rows = [["", "seconds", "memory, MB", "kept on disk and read, MB", "floating-point operations"]]
    for name, key in arms.items():
        held, stored = (table.mean(key, field) / 1e6 for field in ("peak_rss", "stored"))
        cells = [f"{value:,.0f}" if value else "–" for value in (held, stored)]
        rows.append([name, plus_minus(table.of(key, "seconds"), 2), *cells, f"{table.mean(key, 'flops'):.1e}"])
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
        "starting Python and of reading the files. An online merge is updated while the run goes on, after each step "
        f"or each checkpoint; its seconds are all updates over {matrix.DECAY} intervals and the read-out. *memory*: "
        "the peak of the offline merge's process; the state that an online merge adds to the run. *kept on disk*: for "
        "the decay a full state, for the merge its inputs (float32); an online merge reads nothing.",
        "",
        f"For the paper's model, by computation: a decay over {tokens / 1e9:.0f}B tokens is 6 × {active / 1e9:.2f}B × "
        f"{tokens / 1e9:.0f}B = {6 * active * tokens:.1e} floating-point operations; a merge of 16 is 2 × 16 × "
        f"{size / 1e9:.1f}B = {32 * size:.1e}, reads {16 * 4 * size / 1e12:.2f} TB in float32 (half of it in "
        f"bfloat16), at 2 GB/s {16 * 4 * size / 2e9 / 60:.0f} minutes, and keeps them on disk.",
    ]
    lines += ["", "![Seconds, disk and operations of the decay and of the merges](cost.png)", ""]
    lines += ["Logarithmic axes; bars are 95% intervals over seeds."]
    return Page(lines, {"cost": figure(table, arms)})


@plot_style.styled_figure
def figure(table: Seeds, arms: dict[str, tuple]) -> Figure:
    """A row for each arm; panels of seconds, bytes kept and operations."""
    made = Figure(figsize=(plot_style.WIDTH, 0.3 * len(arms) + 0.8))
    panels = made.subplots(1, 3, sharey=True)
    shown = [
        ("seconds", 1.0, "seconds"),
        ("stored", 1e-6, "kept on disk, MB"),
        ("flops", 1.0, "floating-point operations"),
    ]
    for axes, (field, unit, label) in zip(panels, shown, strict=True):
        for place, key in enumerate(arms.values()):
            mean, half = interval([unit * value for value in table.of(key, field)])
            if mean:
                colour = figures.REAL if key[0] == REAL else figures.MERGED
                axes.errorbar([mean], [place], xerr=[half], color=colour, marker="o", capsize=2)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_minor_formatter(NullFormatter())
        low, high = axes.get_xlim()
        axes.set_xlim(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high)))  # two ticks or more
        axes.set(xlabel=label)
    panels[0].set_yticks(range(len(arms)), list(arms))
    panels[0].invert_yaxis()
    return made


EXPERIMENT = Experiment("cost", SEED_SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
