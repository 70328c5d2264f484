"""Table 3: ways of merging, and of averaging, beside the real decay they are to replace (1-sqrt, as the paper's).

    python -m experiments.merge_algorithm [--scale=small]

All at the end of the decay, on the annealing text, equal tokens. Each way may choose its window (4, 8, 12 or 16
checkpoints of the constant-rate run since the switch) on validation. SWA is the mean of all checkpoints since the
switch, at the constant rate; LAWA the mean of the five latest. Learned weights are fitted on validation text by
gradient.
"""

import itertools
import sys
from pathlib import Path

from matplotlib.figure import Figure

from configs import matrix
from experiments import domains, protocol
from experiments.emulation import of_means
from experiments.intervals import interval, shown, verdict
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import Seeds, plus_minus, source, unswitched
from experiments.training import SEEDS, WSD, WSM, Matrix, matrix_of, rates
from experiments.trajectories import Trajectory, along, single, window
from wsm_jax import plot_style, tuning
from wsm_jax.coefficients import merge_weights
from wsm_jax.merging import selection
from wsm_jax.merging.recipe import Recipe
from wsm_jax.report import markdown_table
from wsm_jax.run import Run

COUNTS = (4, 8, 12, 16)
MERGED = ("linear", "minus_sqrt", "ema", "cosine", "inverse_sqrt")
NAMES = {"linear": "mean (linear)", **{c: plot_style.CURVE_LABELS[c] for c in MERGED[1:]}}
RAW, REAL, MERGE, MEANS, AWARE = "raw", "decay", "merge", "interval means", "weight-decay-aware"
SWA, LAWA, LEARNED, MONOTONE = "SWA", "LAWA, k = 5", "learned", "learned, monotone"
PAPER = {(REAL, "minus_sqrt"): 62.67, (MERGE, "ema"): 63.01, (MERGE, "linear"): 63.95, (MERGE, "minus_sqrt"): 64.06}
SCALES = {scale: {f"seed{seed}": seed for seed in SEEDS} for scale in matrix.SIZES}


def measure(folder: Path, seed: int, settings: list[str]) -> list[Record]:
    """Every way of a seed."""
    runs, rate = matrix_of(folder, settings), rates(folder.parent.name)
    switched = runs.run(seed, rate[WSM], "switched")
    path = along(runs.run(seed, rate[WSM], "stable"), switched)
    end = runs.steps
    recipes = {(RAW, "", 1): single(path, end)}
    recipes |= {(MERGE, curve, n): window(path, curve, n, end) for curve in MERGED for n in COUNTS}
    recipes |= {(MEANS, "linear", n): of_means(path, "linear", n, end) for n in COUNTS}
    recipes |= {(AWARE, "linear", n): aware(switched, path, "linear", n, runs) for n in COUNTS}
    recipes |= {
        (SWA, "", matrix.DECAY): window(path, "linear", matrix.DECAY, end),
        (LAWA, "", 5): window(path, "linear", 5, end),
    }
    for name, monotone in ((LEARNED, False), (MONOTONE, True)):
        chosen = selection.select(switched, matrix.DECAY, last_step=end)
        weights = tuning.learn(switched, chosen, seed=seed, monotone=monotone).weights
        recipes[name, "", matrix.DECAY] = window(path, weights, matrix.DECAY, end)
    decay = runs.run(seed, rate[WSD], "switched-minus_sqrt")
    recipes[REAL, "minus_sqrt", matrix.DECAY] = protocol.single(decay.merge_stream / str(end))
    found = domains.losses(recipes, domains.evaluators(runs, switched))
    facts = {"switched": runs.switches, "peak_lr": rate[WSM], "wsd_peak_lr": rate[WSD], **protocol.provenance(switched)}
    return [{"arm": arm, "curve": curve, "count": n, **loss, **facts} for (arm, curve, n), loss in found.items()]


def aware(run: Run, path: Trajectory, curve: str, count: int, runs: Matrix) -> Recipe:
    """The merge whose weights account for decoupled weight decay, in the leaves that the optimizer shrinks."""
    settings = run.config.optimizer
    decayed = merge_weights(
        curve,
        count,
        learning_rate=settings.peak_lr,
        weight_decay=settings.weight_decay,
        steps_per_interval=runs.interval,
    )
    plain = window(path, curve, count, runs.steps)
    mask = run.facts["decay_mask"]
    return plain._replace(weights={leaf: decayed if shrinks else plain.weights for leaf, shrinks in mask.items()})


def present(records: list[Record]) -> Page:
    """Table 3."""
    table, raw, real = Seeds(records, "arm", "curve", "count"), (RAW, "", 1), (REAL, "minus_sqrt", matrix.DECAY)
    arms = {"real decay, 1-sqrt": real}
    for curve in MERGED:
        arms[f"merge, {NAMES[curve]}"] = table.best([(MERGE, curve, n) for n in COUNTS])
    arms["merge of interval means, linear"] = table.best([(MEANS, "linear", n) for n in COUNTS])
    arms["merge, linear, weight-decay-aware"] = table.best([(AWARE, "linear", n) for n in COUNTS])
    arms |= {"SWA": (SWA, "", matrix.DECAY), LAWA: (LAWA, "", 5)}
    arms |= {f"{name} weights": (name, "", matrix.DECAY) for name in (LEARNED, MONOTONE)}
    rows = [["", "checkpoints", "test loss", "minus no merge", "minus real decay (1-sqrt)", "the paper's score"]]
    rows.append(["no merge", "–", plus_minus(table.of(raw)), "–", shown(table.minus(raw, real)), "–"])
    for name, key in arms.items():
        count = "–" if key[0] == REAL else str(key[2])
        cells = [plus_minus(table.of(key)), shown(table.minus(key, raw))]
        cells.append("–" if key == real else shown(table.minus(key, real)))
        rows.append([name, count, *cells, f"{PAPER[key[:2]]:.2f}" if key[:2] in PAPER else "–"])
    claims = [["claim (finding 2)", "difference", ""]]
    order = ["merge, 1-sqrt", "merge, mean (linear)", "merge, EMA", "real decay, 1-sqrt"]
    for first, second in itertools.pairwise(order):
        values = table.minus(arms[first], arms[second])
        claims.append([f"{first} is better than {second}", shown(values), verdict(values)])
    first = records[0]
    lines = [
        "# Merge algorithms (Table 3)",
        "",
        f"Test loss in bits per byte, mean over all domains, lower is better, {matrix.DECAY} intervals after the "
        f"switch; the number of checkpoints is chosen on validation. {source(records)}{unswitched(records)} "
        f"Peak rate {first['peak_lr']:g}, of the 1-sqrt decay {first['wsd_peak_lr']:g}.",
        "",
        *markdown_table(rows),
        "",
        "The paper's scores are means over 41 benchmarks, higher is better, each at its best checkpoint. Rows for Lion "
        "and Muon are not here yet.",
        "",
        *markdown_table(claims),
        "",
        "A claim *holds* where the 95% interval of the difference, paired by seed, lies below zero.",
        "",
        "![Every way beside no merge and the real decay](algorithms.png)",
    ]
    return Page(lines, {"algorithms": figure(table, arms, raw)})


@plot_style.styled_figure
def figure(table: Seeds, arms: dict[str, tuple], raw: tuple) -> Figure:
    """A row for each way: test loss minus no merge, with its interval."""
    made = Figure(figsize=(plot_style.WIDTH * 0.8, 0.26 * len(arms) + 0.8))
    axes = made.subplots()
    for place, key in enumerate(arms.values()):
        mean, half = interval(table.minus(key, raw))
        colour = "#D55E00" if key[0] == REAL else "#0072B2"
        axes.errorbar([mean], [place], xerr=[half], color=colour, marker="o", capsize=2)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.set(xlabel="test loss minus no merge, bits per byte")
    return made


EXPERIMENT = Experiment("merge_algorithm", SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
