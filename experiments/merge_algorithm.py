"""Table 3: ways of merging, and of averaging, beside the real decay they are to replace (1-sqrt, as the paper's).

    python -m experiments.merge_algorithm [--scale=small]

All at the end of the decay, on the annealing text, equal tokens. Each way may choose its window (4, 8, 12 or 16
checkpoints of the constant-rate run since the switch) on validation. SWA is the mean of all checkpoints since the
switch, at the constant rate; LAWA the mean of the five latest. Learned weights are fitted on validation text by
gradient. All of that with AdamW; with Lion and Muon the mean, beside their own real decay.
"""

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any

from configs import matrix
from experiments import domains, figures, protocol
from experiments.intervals import CLAIMS, HOLDS, claimed, shown
from experiments.jobs import ADAMW, LION, MUON, OPTIMIZERS, WSD, WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import Seeds, plus_minus, source, unswitched
from experiments.training import SEEDS, matrix_of, rates
from wsm_jax import plot_style, tuning
from wsm_jax.checkpoints import PARAMS
from wsm_jax.errors import UsageError
from wsm_jax.merging import selection
from wsm_jax.merging.recipe import Recipe, make_recipe
from wsm_jax.merging.selection import MEAN, POINT
from wsm_jax.merging.weighting import Rule
from wsm_jax.run import Run
from wsm_jax.tables import markdown_table

COUNTS = (4, 8, 12, 16)
MERGED = ("linear", "minus_sqrt", "ema", "cosine", "inverse_sqrt")
NAMES = {"linear": "mean (linear)", **{c: plot_style.CURVE_LABELS[c] for c in MERGED[1:]}}
RAW, REAL, MERGE, MEANS, AWARE = "raw", "decay", "merge", "interval means", "weight-decay-aware"
OTHERS = (LION, MUON)
SWA, LAWA, LEARNED, MONOTONE = "SWA, all since the switch", "LAWA, k = 5", "learned", "learned, monotone"
PAPER = {(REAL, "minus_sqrt"): 62.67, (MERGE, "ema"): 63.01, (MERGE, "linear"): 63.95, (MERGE, "minus_sqrt"): 64.06}


def measure(folder: Path, piece: tuple[str, int], settings: list[str]) -> list[Record]:
    """Every way of a seed and an optimizer."""
    optimizer, seed = piece
    runs = dataclasses.replace(matrix_of(folder, settings), optimizer=optimizer)
    rate = rates(runs.scale, optimizer)
    switched, end = runs.run(seed, rate[WSM], "switched"), runs.steps
    recipes = {(RAW, "", 1): _merged(switched, end, "linear", 1)}
    curves = MERGED if optimizer == ADAMW else ("linear",)
    recipes |= {(MERGE, curve, n): _merged(switched, end, curve, n) for curve in curves for n in COUNTS}
    if optimizer == ADAMW:
        recipes |= _averages(switched, end, seed)
    decay = runs.run(seed, rate[WSD], "switched-minus_sqrt")
    recipes[REAL, "minus_sqrt", matrix.DECAY] = protocol.single(decay.merge_stream / str(end))
    found = domains.losses(recipes, domains.evaluators(runs, switched))
    facts = {"optimizer": optimizer, "switched": runs.switches, "peak_lr": rate[WSM], "wsd_peak_lr": rate[WSD]}
    facts |= protocol.provenance(switched)
    return [{"arm": arm, "curve": curve, "count": n, **loss, **facts} for (arm, curve, n), loss in found.items()]


def _merged(run: Run, end: int, rule: Rule | str, count: int, **options: Any) -> Recipe:
    return make_recipe(run, rule, count, last_step=end, **{"snapshot": POINT, **options})


def _averages(run: Run, end: int, seed: int) -> dict[tuple[str, str, int], Recipe]:
    """What is not a merge along a curve of the parameters as they were saved."""
    recipes = {}
    for n in COUNTS:
        recipes[MEANS, "linear", n] = _merged(run, end, "linear", n, snapshot=MEAN)
        recipes[AWARE, "linear", n] = _merged(run, end, "linear", n, weight_decay_aware=True)
    recipes[LAWA, "", 5] = _merged(run, end, "lawa", 5)
    window = selection.select(run, matrix.DECAY, last_step=end)
    for name, monotone in ((LEARNED, False), (MONOTONE, True)):
        weights = tuning.learn(run, window, seed=seed, monotone=monotone).weights
        recipes[name, "", matrix.DECAY] = Recipe(window.paths, (PARAMS,) * window.count, weights)
    return recipes


def present(records: list[Record]) -> Page:
    """Table 3."""
    raw, real = (RAW, "", 1), (REAL, "minus_sqrt", matrix.DECAY)
    of = {name: [r for r in records if r["optimizer"] == name] for name in OPTIMIZERS}
    tables = {name: Seeds(rows, "arm", "curve", "count") for name, rows in of.items() if rows}
    if ADAMW not in tables:
        raise UsageError(f"the page compares with AdamW, but there are pieces of {', '.join(tables)} only")
    table = tables[ADAMW]
    arms = {"real decay, 1-sqrt": real}
    for curve in MERGED:
        arms[f"merge, {NAMES[curve]}"] = table.best([(MERGE, curve, n) for n in COUNTS])
    arms["merge of interval means, linear"] = table.best([(MEANS, "linear", n) for n in COUNTS])
    arms["merge, linear, weight-decay-aware"] = table.best([(AWARE, "linear", n) for n in COUNTS])
    arms |= {SWA: (MERGE, "linear", matrix.DECAY), LAWA: (LAWA, "", 5)}  # its mean
    arms |= {f"{name} weights": (name, "", matrix.DECAY) for name in (LEARNED, MONOTONE)}
    rows = [["", "checkpoints", "test loss", "minus no merge", "minus real decay (1-sqrt)", "the paper's score"]]
    rows.append(["no merge", "–", plus_minus(table.of(raw)), "–", shown(table.minus(raw, real)), "–"])
    for name, key in arms.items():
        count = "–" if key[0] == REAL else str(key[2])
        cells = [plus_minus(table.of(key)), shown(table.minus(key, raw))]
        cells.append("–" if key == real else shown(table.minus(key, real)))
        theirs = key[:2] in PAPER and name != SWA
        rows.append([name, count, *cells, f"{PAPER[key[:2]]:.2f}" if theirs else "–"])
    gains = {name: table.minus(key, raw) for name, key in arms.items()}
    others = [name for name in OTHERS if name in tables]
    for optimizer in others:
        own = tables[optimizer]
        key = own.best([(MERGE, "linear", n) for n in COUNTS])
        name = f"{optimizer.capitalize()}: merge, mean (linear)"
        gains[name] = own.minus(key, raw)
        cells = [plus_minus(own.of(key)), shown(gains[name]), shown(own.minus(key, real))]
        rows.append([name, str(key[2]), *cells, "–"])
        gains[f"{optimizer.capitalize()}: real decay, 1-sqrt"] = own.minus(real, raw)
    claims = [["claim (finding 2)", *CLAIMS[1:]]]
    order = ["merge, 1-sqrt", "merge, mean (linear)", "merge, EMA", "real decay, 1-sqrt"]
    for first, second in itertools.pairwise(order):
        values = table.minus(arms[first], arms[second])
        paper = " against ".join(f"{PAPER[arms[name][:2]]:.2f}" for name in (first, second))
        claims.append(claimed(f"{first} is better than {second}", values, paper))
    for optimizer in others:
        own = tables[optimizer]
        values = own.minus(own.best([(MERGE, "linear", n) for n in COUNTS]), real)
        claims.append(
            claimed(f"{optimizer.capitalize()}: merge, mean (linear) is better than real decay, 1-sqrt", values)
        )
    chosen = "; ".join(
        f"{name} {rows[0]['peak_lr']:g}, {rows[0]['wsd_peak_lr']:g}" for name, rows in of.items() if rows
    )
    lines = [
        "# Merge algorithms (Table 3)",
        "",
        f"Test loss in bits per byte, mean over all domains, lower is better, {matrix.DECAY} intervals after the "
        f"switch; the number of checkpoints is chosen on validation, but fixed for SWA, LAWA and learned weights, and "
        f"the latter are fitted on the validation text. {source(records)}{unswitched(records)} Peak rates "
        f"of the constant run and of the 1-sqrt decay: {chosen}."
        + (" *No merge* and *real decay*: of the same optimizer." if others else ""),
        "",
        *markdown_table(rows),
        "",
        "The paper's scores are means over 41 benchmarks, higher is better, each at its best checkpoint.",
        "",
        *markdown_table(claims),
        "",
        HOLDS,
        "",
        "![Every way beside no merge and the real decay](algorithms.png)",
    ]
    return Page(lines, {"algorithms": figures.rows(gains, "test loss minus no merge, bits per byte")})


SCALES = {
    scale: {f"{name}-seed{seed}": (name, seed) for name in OPTIMIZERS for seed in SEEDS} for scale in matrix.SIZES
}
EXPERIMENT = Experiment("merge_algorithm", SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
