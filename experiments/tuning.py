"""The peak rate of each arm and optimizer, chosen on validation: WSM by its best merge, WSD by its real decay.

    python -m experiments.tuning [--scale=small]

One seed that no other experiment uses; for each rate a stable run, its branch at the constant rate with the switch to
the annealing text, and the real decay (1-sqrt, the paper's) on the same text. WSM's figure is the best of all merges of
8, 12 and 16 checkpoints along three curves at the decay's end, WSD's the end of the decay: means over domains.
"""

import dataclasses
import sys
from pathlib import Path

from matplotlib.figure import Figure

from configs import matrix
from experiments import domains, protocol
from experiments.jobs import ADAMW, CURVES, LION, MUON, OPTIMIZERS, WSD, WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import command, machines
from experiments.training import best, matrix_of
from experiments.trajectories import window
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import markdown_table

SEED = 100
COUNTS = (8, 12, 16)
RAW = "raw"
NAMES = {RAW: "constant rate, no merge", WSM: "WSM, best merge", WSD: "WSD, 1-sqrt decay"}
RATES = {
    # Muon's two arms find different rates, and Lion's best is one of the middle two, by the processor: one more each.
    "small": {ADAMW: (1.5e-3, 3e-3, 6e-3), LION: (1.5e-4, 3e-4, 6e-4, 1.2e-3), MUON: (1.5e-3, 3e-3, 6e-3, 1.2e-2)},
    "medium": {ADAMW: (1.5e-3, 3e-3, 6e-3), LION: (3e-4, 6e-4, 1.2e-3), MUON: (1.5e-3, 3e-3, 6e-3)},
    "gpu": {ADAMW: (1e-3, 2e-3, 4e-3), LION: (1e-4, 2e-4, 4e-4), MUON: (1e-3, 2e-3, 4e-3)},
    "tiny": {ADAMW: (2e-3, 8e-3), LION: (2e-4, 8e-4), MUON: (2e-3, 8e-3)},
}
SCALES = {
    scale: {f"{name}-{rate:g}": (name, rate) for name in OPTIMIZERS for rate in RATES[scale][name]}
    for scale in matrix.SIZES
}


def measure(folder: Path, piece: tuple[str, float], settings: list[str]) -> list[Record]:
    """Both arms of an optimizer at one rate."""
    optimizer, rate = piece
    runs = dataclasses.replace(matrix_of(folder, settings), optimizer=optimizer)
    switched = runs.run(SEED, rate, "switched")
    decay = runs.run(SEED, rate, "switched-minus_sqrt")
    path, end = runs.path(SEED, rate, "switched"), runs.steps
    recipes = {(WSM, curve, count): window(path, curve, count, end) for curve in CURVES for count in COUNTS}
    recipes[RAW, "", 1] = protocol.single(path[end])
    recipes[WSD, "minus_sqrt", 0] = protocol.single(decay.merge_stream / str(end))
    found = domains.losses(recipes, domains.evaluators(runs, switched))
    facts = {"optimizer": optimizer, "peak_lr": rate, **protocol.provenance(switched)}
    return [{"arm": arm, "curve": curve, "count": n, **facts, **loss} for (arm, curve, n), loss in found.items()]


def present(records: list[Record]) -> Page:
    """Validation loss by optimizer, rate and arm, and what was chosen."""
    first, rows, chosen = records[0], [["optimizer", "peak rate", *NAMES.values(), "its merge"]], []
    there = {name: sorted({r["peak_lr"] for r in records if r["optimizer"] == name}) for name in OPTIMIZERS}
    for name, rates in there.items():
        for rate in rates:
            merge = best(records, WSM, name, rate)
            cells = [f"{best(records, arm, name, rate)['validation']:.4f}" for arm in NAMES]
            rows.append([name, f"{rate:g}", *cells, f"{plot_style.CURVE_LABELS[merge['curve']]} × {merge['count']}"])
        found = {arm: best(records, arm, name)["peak_lr"] for arm in (WSM, WSD) if rates}
        edges = [NAMES[arm] for arm, rate in found.items() if rate in (rates[0], rates[-1])]
        if rates:
            edge = f" (at the edge of the grid: {', '.join(edges)})" if edges else ""
            chosen.append(f"{name} {found[WSM]:g} for WSM and {found[WSD]:g} for WSD{edge}")
    given = "; ".join(
        f"{name} {', '.join(OPTIMIZERS[name])}" for name, rates in there.items() if rates and OPTIMIZERS[name]
    )
    lines = [
        "# The peak rate of each arm",
        "",
        f"Validation loss, bits per byte, mean over the domains trained on; {first['parameters']:,} parameters, "
        f"seed {SEED}; `{command(records)}`; {machines(records)}; data {first['data_hash'][:12]}."
        + (f" Settings of the optimizers: {given}." if given else ""),
        "",
        *markdown_table(rows),
        "",
        f"Chosen: {'; '.join(chosen)}.",
        "",
        "![Validation loss by peak rate](rates.png)",
    ]
    return Page(lines, {"rates": figure(records, there)})


@plot_style.styled_figure
def figure(records: list[Record], there: dict[str, list[float]]) -> Figure:
    """A panel for each optimizer: validation loss against the rate, a line for each arm."""
    there = {name: rates for name, rates in there.items() if rates}
    made = Figure(figsize=(plot_style.WIDTH * (0.4 + 0.2 * len(there)), 2.8))
    panels = made.subplots(1, len(there), sharey=True, squeeze=False)[0]
    looks = {RAW: (plot_style.RAW, "s"), WSM: ("#0072B2", "o"), WSD: ("#D55E00", "^")}
    for axes, (name, rates) in zip(panels, there.items(), strict=True):
        for arm, (colour, marker) in looks.items():
            losses = [best(records, arm, name, rate)["validation"] for rate in rates]
            axes.plot(rates, losses, color=colour, marker=marker, label=NAMES[arm])
        axes.set_xscale("log")
        axes.margins(x=0.15)  # the ends of neighbouring panels stay apart
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        axes.set(title=name, xlabel="peak rate")
    panels[0].set_ylabel("validation, bits per byte")
    panels[0].legend()
    return made


EXPERIMENT = Experiment("tuning", SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
