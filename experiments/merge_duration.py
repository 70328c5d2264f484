"""Figure 4: how long a stretch of the run a merge takes in, for each curve.

    python -m experiments.merge_duration [--scale=small]

Merges that end with the constant-rate run (no switch), of 2 to 60 checkpoints: from 3% of the run (one checkpoint, 2%,
is no merge) to all of it after the warm-up, along every curve; beside them the real decays over a quarter of the run,
on the same text.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from configs import matrix
from experiments import domains, figures, protocol
from experiments.intervals import CLAIMS, HOLDS, claimed, interval, shown
from experiments.jobs import CURVES, WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import TEST, Seeds, plus_minus, source
from experiments.training import SEED_SCALES, matrix_of, rates
from experiments.trajectories import window
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import markdown_table

COUNTS = (2, 4, 8, 12, 16, 24, 32, 48, 60)  # of 64; the warm-up takes four
MERGED = ("linear", "cosine", "minus_sqrt", "inverse_sqrt", "ema", "square", "exponential")
RAW, MERGE, REAL = "raw", "merge", "decay"


def measure(folder: Path, seed: int, settings: list[str]) -> list[Record]:
    """Every curve and window of a seed, and the real decays."""
    runs = matrix_of(folder, settings)
    rate = rates(runs.scale)[WSM]
    constant = runs.run(seed, rate, "constant")
    path = runs.path(seed, rate, "constant")
    recipes = {(RAW, "", 1): protocol.single(path[runs.steps])}
    recipes |= {(MERGE, curve, n): window(path, curve, n, runs.steps) for curve in MERGED for n in COUNTS}
    for curve in CURVES:
        decay = runs.run(seed, rate, f"decay-{curve}")
        recipes[REAL, curve, matrix.DECAY] = protocol.single(decay.merge_stream / str(runs.steps))
    found = domains.losses(recipes, domains.evaluators(runs, constant))
    facts = {"peak_lr": rate, **protocol.provenance(constant)}
    return [{"arm": arm, "curve": curve, "count": n, **facts, **loss} for (arm, curve, n), loss in found.items()]


def present(records: list[Record]) -> Page:
    """Loss by window and curve, and the claims of Figure 4."""
    table, raw = Seeds(records, "arm", "curve", "count"), (RAW, "", 1)
    curves = measured(table)
    rows = [["checkpoints", "share of the run", *(plot_style.CURVE_LABELS[curve] for curve in curves)]]
    for n in COUNTS:
        cells = [shown(table.minus((MERGE, curve, n), raw)) for curve in curves]
        rows.append([str(n), f"{n / matrix.INTERVALS:.0%}", *cells])
    for words, chosen_on in (("best on validation", "validation"), ("*best on test*", TEST)):
        best = [table.best([(MERGE, curve, n) for n in COUNTS], chosen_on) for curve in curves]
        rows.append([words, "", *(f"{shown(table.minus(key, raw))} ({key[2]})" for key in best)])
    cells = [shown(table.minus((REAL, curve, matrix.DECAY), raw)) if curve in CURVES else "–" for curve in curves]
    rows.append(["real decay", f"{matrix.DECAY / matrix.INTERVALS:.0%}", *cells])
    lines = [
        "# The length of the merged stretch (Figure 4)",
        "",
        f"Test loss minus that of the last checkpoint ({plus_minus(table.of(raw))}), bits per byte, mean over the "
        f"domains of the stable text. {source(records)} All runs, also the decays, have the peak rate "
        f"{records[0]['peak_lr']:g} that tuning chose for WSM.",
        "",
        *markdown_table(rows),
        "",
        *markdown_table(claims(table)),
        "",
        "*best*: the window with the lowest validation loss, where not said otherwise; the best on test is picked on "
        f"what is reported, as the paper does. {HOLDS}",
        "",
        "![Loss by window and curve](windows.png)",
        "",
        "Lines that leave the picture go on in the table.",
    ]
    return Page(lines, {"windows": figure(table)})


def measured(table: Seeds) -> list[str]:
    """The curves that there are merges of; some records are older than the last two."""
    return [curve for curve in MERGED if (MERGE, curve, COUNTS[0]) in table]


def claims(table: Seeds) -> list[list[str]]:
    """Header and rows: claim, difference, verdict."""
    rows = [CLAIMS]

    def add(claim: str, first: tuple, second: tuple, paper: str) -> None:
        rows.append(claimed(claim, table.minus(first, second), paper))

    for curve in ("linear", "minus_sqrt", "ema"):
        name = plot_style.CURVE_LABELS[curve]
        longer = "nearly flat" if curve == "ema" else "longer is better, less and less"
        add(f"{name}: 16 checkpoints are better than 4", (MERGE, curve, 16), (MERGE, curve, 4), longer)
        best = table.best([(MERGE, curve, n) for n in COUNTS])
        if best[2] != 16:
            add(f"{name}: the best window ({best[2]}) is better than 16 checkpoints", best, (MERGE, curve, 16), longer)
    best = table.best([(MERGE, curve, n) for curve in measured(table) for n in COUNTS])
    what = f"the best merge of all curves and windows ({plot_style.CURVE_LABELS[best[1]]} × {best[2]})"
    for curve in ("minus_sqrt", "linear"):
        real = (REAL, curve, matrix.DECAY)
        add(f"{what} is better than the {plot_style.CURVE_LABELS[curve]} decay", best, real, "–")
    return rows


@plot_style.styled_figure
def figure(table: Seeds) -> Figure:
    """Loss minus raw against the window, a line for each curve; real decays dashed."""
    made = Figure(figsize=(plot_style.WIDTH, 3.2))
    axes, raw = made.subplots(), (RAW, "", 1)
    for curve in measured(table):
        gains, colour = [table.minus((MERGE, curve, n), raw) for n in COUNTS], plot_style.CURVE_COLOURS[curve]
        look = {"marker": plot_style.CURVE_MARKERS[curve], "label": plot_style.CURVE_LABELS[curve]}
        figures.line(axes, COUNTS, gains, color=colour, **look)
        if curve in CURVES:
            mean, _ = interval(table.minus((REAL, curve, matrix.DECAY), raw))
            dashes = {"linestyle": plot_style.CURVE_DASHES[curve], "linewidth": 0.9}
            axes.axhline(mean, color=colour, label=f"real decay, {plot_style.CURVE_LABELS[curve]}", **dashes)
    axes.axhline(0.0, color=plot_style.RAW, linewidth=0.8)
    # As much room above no merge as below: what merges lose with old checkpoints is in the table.
    lowest = min(interval(table.minus((MERGE, curve, n), raw))[0] for curve in measured(table) for n in COUNTS)
    axes.set_ylim(-1.4 * abs(lowest), 1.4 * abs(lowest))
    axes.set_xscale("log")
    axes.set_xticks(COUNTS, [str(n) for n in COUNTS])
    axes.minorticks_off()
    axes.set(xlabel=f"checkpoints merged (real decays: {matrix.DECAY})", ylabel="test loss minus raw, bits per byte")
    made.legend(loc="outside right upper")
    return made


EXPERIMENT = Experiment("merge_duration", SEED_SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
