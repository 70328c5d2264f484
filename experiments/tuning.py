"""The peak rate of each arm, chosen on validation: WSM by its best merge, WSD by its real decay.

    python -m experiments.tuning [--scale=small]

One seed that no other experiment uses; for each rate a stable run, its branch at the constant rate with the switch to
the annealing text, and the real decay (1-sqrt, the paper's) on the same text. WSM's figure is the best of all merges of
8, 12 and 16 checkpoints along three curves at the decay's end, WSD's the end of the decay: means over domains.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from configs import matrix
from experiments import domains, protocol
from experiments.protocol import Experiment, Page, Record
from experiments.training import CURVES, WSD, WSM, best, matrix_of
from experiments.trajectories import window
from wsm_jax import plot_style
from wsm_jax.report import markdown_table

SEED = 100
COUNTS = (8, 12, 16)
RAW = "raw"
NAMES = {RAW: "constant rate, no merge", WSM: "WSM, best merge", WSD: "WSD, 1-sqrt decay"}
RATES = {"small": (1.5e-3, 3e-3, 6e-3, 1.2e-2), "medium": (1e-3, 2e-3, 4e-3), "tiny": (2e-3, 8e-3)}
SCALES = {scale: {f"{rate:g}": rate for rate in RATES[scale]} for scale in matrix.SIZES}


def measure(folder: Path, rate: float, settings: list[str]) -> list[Record]:
    """Both arms at one rate."""
    runs = matrix_of(folder, settings)
    switched = runs.run(SEED, rate, "switched")
    decay = runs.run(SEED, rate, "switched-minus_sqrt")
    path, end = runs.path(SEED, rate, "switched"), runs.steps
    recipes = {(WSM, curve, count): window(path, curve, count, end) for curve in CURVES for count in COUNTS}
    recipes[RAW, "", 1] = protocol.single(path[end])
    recipes[WSD, "minus_sqrt", 0] = protocol.single(decay.merge_stream / str(end))
    found = domains.losses(recipes, domains.evaluators(runs, switched))
    facts = {"peak_lr": rate, **protocol.provenance(switched)}
    return [{"arm": arm, "curve": curve, "count": n, **loss, **facts} for (arm, curve, n), loss in found.items()]


def present(records: list[Record]) -> Page:
    """Validation loss by rate and arm, and what was chosen."""
    rates, first = sorted({r["peak_lr"] for r in records}), records[0]
    rows = [["peak rate", *NAMES.values(), "its merge"]]
    for rate in rates:
        merge = best(records, WSM, rate)
        cells = [f"{best(records, arm, rate)['validation']:.4f}" for arm in NAMES]
        rows.append([f"{rate:g}", *cells, f"{plot_style.CURVE_LABELS[merge['curve']]} × {merge['count']}"])
    chosen = {arm: best(records, arm)["peak_lr"] for arm in (WSM, WSD)}
    edges = [NAMES[arm] for arm, rate in chosen.items() if rate in (rates[0], rates[-1])]
    lines = [
        "# The peak rate of each arm",
        "",
        f"Validation loss, bits per byte, mean over the domains trained on; {first['parameters']:,} parameters, "
        f"seed {SEED}; `{first['command']}`; {first['machine']}, Python {first['python']}, jax "
        f"{first['versions']['jax']}; data {first['data_hash'][:12]}.",
        "",
        *markdown_table(rows),
        "",
        f"Chosen: {chosen[WSM]:g} for WSM and {chosen[WSD]:g} for WSD."
        + (f" At the edge of the grid: {', '.join(edges)}." if edges else ""),
        "",
        "![Validation loss by peak rate](rates.png)",
    ]
    return Page(lines, {"rates": figure(records, rates)})


@plot_style.styled_figure
def figure(records: list[Record], rates: list[float]) -> Figure:
    """Validation loss against the rate, a line for each arm."""
    made = Figure(figsize=(plot_style.WIDTH * 0.6, 2.8))
    axes = made.subplots()
    looks = {RAW: (plot_style.RAW, "s"), WSM: ("#0072B2", "o"), WSD: ("#D55E00", "^")}
    for arm, (colour, marker) in looks.items():
        losses = [best(records, arm, rate)["validation"] for rate in rates]
        axes.plot(rates, losses, color=colour, marker=marker, label=NAMES[arm])
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.set(xlabel="peak rate", ylabel="validation, bits per byte")
    axes.legend()
    return made


EXPERIMENT = Experiment("tuning", SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
