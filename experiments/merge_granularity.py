"""Table 4: how finely a stretch of the run is sampled; and which of duration, interval and count matters (finding 1).

    python -m experiments.merge_granularity [--scale=small]

Merges with equal weights that end with the constant-rate run (no switch): windows of 8, 16 and 32 intervals, each
sampled at every 1, 2, 4, ... intervals down to one checkpoint, which is no merge.
"""

import itertools
import math
import statistics
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments import domains, figures, protocol
from experiments.intervals import CLAIMS, HOLDS, claimed, shown
from experiments.jobs import WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import Seeds, plus_minus, source
from experiments.training import SEED_SCALES, matrix_of, rates
from experiments.trajectories import window
from wsm_jax import plot_style
from wsm_jax.tables import markdown_table

WINDOWS = (8, 16, 32)  # intervals
APART = (1, 2, 4, 8, 16)
SHAPES = [(w // a, a) for w in WINDOWS for a in APART if a < w]  # (count, intervals between checkpoints)
ONE = (1, 1)
PAPER = {1: 63.63, 2: 63.78, 4: 63.36, 8: 62.77, 16: 60.33}  # Table 4: 80B as 16 x 5B, 8 x 10B, ... 1 x 80B
FACTORS = {"duration": lambda n, a: n * a, "interval": lambda n, a: a, "count": lambda n, a: n}


def measure(folder: Path, seed: int, settings: list[str]) -> list[Record]:
    """Every window and spacing of a seed."""
    runs = matrix_of(folder, settings)
    rate = rates(runs.scale)[WSM]
    constant = runs.run(seed, rate, "constant")
    path = runs.path(seed, rate, "constant")
    recipes = {(n, a): window(path, "linear", n, runs.steps, apart=a) for n, a in [ONE, *SHAPES]}
    found = domains.losses(recipes, domains.evaluators(runs, constant))
    facts = {"peak_lr": rate, **protocol.provenance(constant)}
    return [{"count": n, "apart": a, **loss, **facts} for (n, a), loss in found.items()]


def present(records: list[Record]) -> Page:
    """Table 4, and the share of the variance that each factor explains."""
    table = Seeds(records, "count", "apart")
    rows = [["intervals apart", *(f"window of {w}" for w in WINDOWS), "the paper, window of 16"]]
    for apart in APART:
        cells = [shown(table.minus((w // apart, apart), ONE)) if apart < w else "–" for w in WINDOWS]
        rows.append([str(apart), *cells, f"{PAPER[apart]:.2f}"])
    claims = [CLAIMS]
    for first, second in itertools.pairwise([(16, 1), (8, 2), (4, 4), (2, 8)]):
        claim = f"{first[0]} checkpoints at a spacing of {first[1]} are better than {second[0]} at {second[1]}"
        paper = f"{PAPER[first[1]]:.2f} against {PAPER[second[1]]:.2f}"
        claims.append(claimed(claim, table.minus(first, second), paper))
    lines = [
        "# The granularity of a merge (Table 4, finding 1)",
        "",
        f"Test loss minus that of the last checkpoint ({plus_minus(table.of(ONE))}), bits per byte, mean over the "
        "domains of the stable text; equal weights. The paper's figures are scores, higher is better; without a merge "
        f"it has {PAPER[16]}. {source(records)}",
        "",
        *markdown_table(rows),
        "",
        *markdown_table(claims),
        "",
        HOLDS,
        "",
        "Share of the variance between these merges (seeds' means) that a straight line in the logarithm of one factor "
        "explains, alone and after the other ones (the three are linked, duration = interval × count, so two of them "
        "always say all):",
        "",
        *markdown_table(variance(table, SHAPES)),
        "",
        f"The same without the windows of {WINDOWS[-1]}, which reach further back than is good for these runs:",
        "",
        *markdown_table(variance(table, [(n, a) for n, a in SHAPES if n * a < WINDOWS[-1]])),
        "",
        "![Loss by spacing, a line for each window](granularity.png)",
    ]
    return Page(lines, {"granularity": figure(table)})


def variance(table: Seeds, shapes: list[tuple[int, int]]) -> list[list[str]]:
    """Header and rows: factor, its share alone, and what it adds to each of the others, between these shapes."""
    y = [statistics.fmean(table.minus(shape, ONE)) for shape in shapes]
    x = {name: [math.log(factor(*shape)) for shape in shapes] for name, factor in FACTORS.items()}
    alone = {name: explained([values], y) for name, values in x.items()}
    rows = [["factor", "alone", *(f"added to {name}" for name in x)]]
    for name in x:
        added = [f"{explained([x[name], x[other]], y) - alone[other]:.0%}" if other != name else "–" for other in x]
        rows.append([name, f"{alone[name]:.0%}", *added])
    return rows


def explained(columns: list[list[float]], y: list[float]) -> float:
    """R² of a linear fit of ``y`` on ``columns`` and a constant."""
    design = np.column_stack([np.ones(len(y)), *columns])
    residual = np.asarray(y) - design @ np.linalg.lstsq(design, np.asarray(y), rcond=None)[0]
    return float(1 - residual @ residual / np.square(np.asarray(y) - np.mean(y)).sum())


@plot_style.styled_figure
def figure(table: Seeds) -> Figure:
    """Loss minus raw against the spacing."""
    made = Figure(figsize=(plot_style.WIDTH * 0.75, 3.1))
    axes = made.subplots()
    for place, (w, colour, marker) in enumerate(zip(WINDOWS, ("#9ECAE1", "#4292C6", "#08519C"), "osD", strict=True)):
        there = [a for a in APART if a < w]
        gains = [table.minus((w // a, a), ONE) for a in there]
        x = [a * 1.05 ** (place - 1) for a in there]  # side by side
        figures.line(axes, x, gains, color=colour, marker=marker, label=f"window of {w} intervals")
    axes.set_xscale("log")
    axes.set_xticks(APART, [str(a) for a in APART])
    axes.minorticks_off()
    axes.set(xlabel="intervals between the merged checkpoints", ylabel="test loss minus raw, bits per byte")
    made.legend(loc="outside lower center", ncols=3)
    return made


EXPERIMENT = Experiment("merge_granularity", SEED_SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
