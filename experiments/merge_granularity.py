"""Table 4: how finely a stretch of the run is sampled; and which of duration, interval and count matters (finding 1).

    python -m experiments.merge_granularity [--scale=small]

Merges with equal weights that end with the constant-rate run (no switch): windows of 8, 16 and 32 intervals, each
sampled at every 1, 2, 4, ... intervals down to one checkpoint, which is no merge. For finding 1 the variance between
these merges of a seed is shared out as in an analysis of variance: how much of it lies between the levels of a factor
(eta squared), by itself and after duration.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments import domains, figures, protocol
from experiments.intervals import CLAIMS, HOLDS, claimed, percent, shown
from experiments.jobs import WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import Seeds, plus_minus, source
from experiments.training import SEED_SCALES, matrix_of, rates
from experiments.trajectories import window
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import markdown_table

WINDOWS = (8, 16, 32)  # intervals
APART = (1, 2, 4, 8, 16)
SHAPES = [(w // a, a) for w in WINDOWS for a in APART if a < w]  # (count, intervals between checkpoints)
ONE = (1, 1)
PAPER = {1: 63.63, 2: 63.78, 4: 63.36, 8: 62.77, 16: 60.33}  # Table 4: 80B as 16 x 5B, 8 x 10B, ... 1 x 80B
SHORTER = [(n, a) for n, a in SHAPES if n * a < WINDOWS[-1]]
DURATION = "duration"
FACTORS = {DURATION: lambda n, a: n * a, "interval": lambda n, a: a, "count": lambda n, a: n}


def measure(folder: Path, seed: int, settings: list[str]) -> list[Record]:
    """Every window and spacing of a seed."""
    runs = matrix_of(folder, settings)
    rate = rates(runs.scale)[WSM]
    constant = runs.run(seed, rate, "constant")
    path = runs.path(seed, rate, "constant")
    recipes = {(n, a): window(path, "linear", n, runs.steps, apart=a) for n, a in [ONE, *SHAPES]}
    found = domains.losses(recipes, domains.evaluators(runs, constant))
    facts = {"peak_lr": rate, **protocol.provenance(constant)}
    return [{"count": n, "apart": a, **facts, **loss} for (n, a), loss in found.items()]


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
    for words, shapes in (("all windows", SHAPES), (f"windows below {WINDOWS[-1]}", SHORTER)):
        shares = by_seed(table, shapes, adjusted=True)
        for first, second in itertools.pairwise(FACTORS):
            claim = f"finding 1, {words}: {first} explains more than {second} (less adjusted share of the variance)"
            values = [a - b for a, b in zip(shares[(second,)], shares[(first,)], strict=True)]
            claims.append(claimed(claim, values, "duration, then interval, then count"))
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
        f"Share of the variance between the {len(SHAPES)} merges of a seed that lies between the levels of a factor; "
        "*adjusted* for the number of levels, so that chance gives 0; *after duration*: what it adds to the share of "
        "duration. The three are linked (duration = interval × count), so of interval and count the one says nearly "
        "what the other does.",
        "",
        *markdown_table(variance(table, SHAPES)),
        "",
        f"The same without the windows of {WINDOWS[-1]}, which reach further back than is good for these runs:",
        "",
        *markdown_table(variance(table, SHORTER)),
        "",
        "![Loss by spacing, a line for each window](granularity.png)",
    ]
    return Page(lines, {"granularity": figure(table)})


def variance(table: Seeds, shapes: list[tuple[int, int]]) -> list[list[str]]:
    """Header and rows: factor, its levels, its share of the variance between these shapes, adjusted, after duration."""
    plain, adjusted = (by_seed(table, shapes, adjusted=each) for each in (False, True))
    rows = [["factor", "levels", "share", "adjusted", "after duration"]]
    for name, level in FACTORS.items():
        cells = [percent(plain[(name,)]), percent(adjusted[(name,)])]
        if name == DURATION:
            cells.append("–")
        else:
            after = zip(plain[DURATION, name], plain[(DURATION,)], strict=True)
            cells.append(percent([both - alone for both, alone in after]))
        rows.append([name, str(len({level(*shape) for shape in shapes})), *cells])
    return rows


def by_seed(table: Seeds, shapes: list[tuple[int, int]], *, adjusted: bool) -> dict[tuple[str, ...], list[float]]:
    """Share by seed of each factor, and of duration with each other one."""
    losses = np.asarray([table.minus(shape, ONE) for shape in shapes]).T
    levels = {name: [level(*shape) for shape in shapes] for name, level in FACTORS.items()}
    asked = [*((name,) for name in levels), *((DURATION, name) for name in levels if name != DURATION)]
    return {
        names: [explained([levels[name] for name in names], y, adjusted=adjusted) for y in losses] for names in asked
    }


def explained(factors: Sequence[Sequence[int]], y: np.ndarray, *, adjusted: bool = False) -> float:
    """Share of the variance of ``y`` [merges] that lies between the levels of ``factors``, their effects added.

    Args:
      factors: for each factor the level of every merge.
      y: of every merge.
      adjusted: for the number of levels (Ezekiel's R²): as large as by chance is 0.
    """
    columns = [np.asarray(levels) == level for levels in factors for level in set(levels)]
    design = np.column_stack([np.ones(len(y)), *columns]).astype(float)
    fitted, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    left = np.square(y - design @ fitted).sum() / np.square(y - np.mean(y)).sum()
    return float(1 - left * ((len(y) - 1) / (len(y) - rank) if adjusted else 1))


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
