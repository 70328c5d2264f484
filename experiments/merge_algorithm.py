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
from typing import Any, NamedTuple

from configs import matrix
from experiments import domains, figures, protocol
from experiments.intervals import CLAIMS, HOLDS, claimed, shown
from experiments.jobs import ADAMW, LION, MUON, OPTIMIZERS, WSD, WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import TEST, Seeds, plus_minus, source, unswitched
from experiments.training import SEEDS, matrix_of, rates
from wsm_jax.checkpoints.orbax import PARAMS
from wsm_jax.checkpoints.run import Run
from wsm_jax.errors import UsageError
from wsm_jax.evaluation import tuning
from wsm_jax.merging import selection
from wsm_jax.merging.recipe import make_recipe, of_steps
from wsm_jax.merging.selection import MEAN, POINT
from wsm_jax.merging.spec import MergeSpec
from wsm_jax.merging.weighting import Rule
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import markdown_table

COUNTS = (4, 8, 12, 16)
MERGED = ("linear", "minus_sqrt", "ema", "cosine", "inverse_sqrt")
NAMES = {"linear": "mean (linear)", **{c: plot_style.CURVE_LABELS[c] for c in MERGED[1:]}}
RAW, REAL, MERGE, MEANS, AWARE = "raw", "decay", "merge", "interval means", "weight-decay-aware"
REFERENCE, NO_MERGE = (REAL, "minus_sqrt", matrix.DECAY), (RAW, "", 1)
OTHERS = (LION, MUON)
SWA, LAWA, LEARNED, MONOTONE = "SWA, all since the switch", "LAWA, k = 5", "learned", "learned, monotone"
PAPER = {(REAL, "minus_sqrt"): 62.67, (MERGE, "ema"): 63.01, (MERGE, "linear"): 63.95, (MERGE, "minus_sqrt"): 64.06}


def measure(folder: Path, piece: tuple[str, int], settings: list[str]) -> list[Record]:
    """Every way of a seed and an optimizer."""
    optimizer, seed = piece
    runs = dataclasses.replace(matrix_of(folder, settings), optimizer=optimizer)
    rate = rates(runs.scale, optimizer)
    switched, end = runs.run(seed, rate[WSM], "switched"), runs.steps
    recipes = {NO_MERGE: _merged(switched, end, "linear", 1)}
    curves = MERGED if optimizer == ADAMW else ("linear",)
    recipes |= {(MERGE, curve, n): _merged(switched, end, curve, n) for curve in curves for n in COUNTS}
    if optimizer == ADAMW:
        recipes |= _averages(switched, end, seed)
    decay = runs.run(seed, rate[WSD], "switched-minus_sqrt")
    recipes[REFERENCE] = protocol.single(decay.merge_stream / str(end))
    found = domains.losses(recipes, domains.evaluators(runs, switched))
    facts = {"optimizer": optimizer, "switched": runs.switches, "peak_lr": rate[WSM], "wsd_peak_lr": rate[WSD]}
    facts |= protocol.provenance(switched)
    return [{"arm": arm, "curve": curve, "count": n, **facts, **loss} for (arm, curve, n), loss in found.items()]


def _merged(run: Run, end: int, rule: Rule | str, count: int, **options: Any) -> MergeSpec:
    return make_recipe(run, rule, count, last_step=end, **{"snapshot": POINT, **options})


def _averages(run: Run, end: int, seed: int) -> dict[tuple[str, str, int], MergeSpec]:
    """What is not a merge along a curve of the parameters as they were saved."""
    recipes = {}
    for n in COUNTS:
        recipes[MEANS, "linear", n] = _merged(run, end, "linear", n, snapshot=MEAN)
        recipes[AWARE, "linear", n] = _merged(run, end, "linear", n, weight_decay_aware=True)
    recipes[LAWA, "", 5] = _merged(run, end, "lawa", 5)
    window = selection.select(run, matrix.DECAY, last_step=end)
    for name, monotone in ((LEARNED, False), (MONOTONE, True)):
        weights = tuning.learn(run, window, seed=seed, monotone=monotone).weights
        recipes[name, "", matrix.DECAY] = of_steps(window.paths, (PARAMS,) * window.count, weights)
    return recipes


class Arm(NamedTuple):
    """A row of the table: what validation chooses among."""

    table: Seeds
    keys: list[tuple]

    @property
    def chosen(self) -> tuple:
        """The key of the row."""
        return self.table.best(self.keys)

    def minus(self, other: tuple) -> list[float]:
        """The row minus what is not chosen, by seed."""
        return self.table.minus(self.chosen, other)


def arms_of(tables: dict[str, Seeds]) -> dict[str, Arm]:
    """Name -> row, AdamW's first."""
    table = tables[ADAMW]

    def windows(arm: str, curve: str) -> list[tuple]:
        return [(arm, curve, n) for n in COUNTS]

    arms = {"real decay, 1-sqrt": Arm(table, [REFERENCE])}
    arms |= {f"merge, {NAMES[curve]}": Arm(table, windows(MERGE, curve)) for curve in MERGED}
    arms["merge of interval means, linear"] = Arm(table, windows(MEANS, "linear"))
    arms["merge, linear, weight-decay-aware"] = Arm(table, windows(AWARE, "linear"))
    arms[SWA] = Arm(table, [(MERGE, "linear", matrix.DECAY)])  # its mean
    arms[LAWA] = Arm(table, [(LAWA, "", 5)])
    arms |= {f"{name} weights": Arm(table, [(name, "", matrix.DECAY)]) for name in (LEARNED, MONOTONE)}
    for optimizer in (name for name in OTHERS if name in tables):
        own, words = tables[optimizer], optimizer.capitalize()
        arms[f"{words}: merge, {NAMES['linear']}"] = Arm(own, windows(MERGE, "linear"))
        arms[f"{words}: real decay, 1-sqrt"] = Arm(own, [REFERENCE])
    return arms


def claims(arms: dict[str, Arm]) -> list[list[str]]:
    """Header and rows: finding 2 with AdamW, and the merge beside the decay with the other optimizers."""
    rows = [["claim (finding 2)", *CLAIMS[1:]]]
    order = ["merge, 1-sqrt", "merge, mean (linear)", "merge, EMA", "real decay, 1-sqrt"]
    for first, second in itertools.pairwise(order):
        paper = " against ".join(f"{PAPER[arms[name].chosen[:2]]:.2f}" for name in (first, second))
        rows.append(claimed(f"{first} is better than {second}", arms[first].minus(arms[second].chosen), paper))
    for name in arms:
        if ": merge" in name:
            rows.append(claimed(f"{name} is better than real decay, 1-sqrt", arms[name].minus(REFERENCE)))
        if ": real" in name:
            rows.append(claimed(f"{name} is better than no merge", arms[name].minus(NO_MERGE)))
    return rows


def present(records: list[Record]) -> Page:
    """Table 3."""
    of = {name: [r for r in records if r["optimizer"] == name] for name in OPTIMIZERS}
    of = {name: own for name, own in of.items() if own}
    if ADAMW not in of:
        raise UsageError(f"the page compares with AdamW, but there are pieces of {', '.join(of)} only")
    tables = {name: Seeds(own, "arm", "curve", "count") for name, own in of.items()}
    table, arms = tables[ADAMW], arms_of(tables)
    rows = [["", "checkpoints", "test loss", "minus no merge", "minus real decay (1-sqrt)"]]
    rows[0] += ["*picked on test*, minus real decay", "the paper's score"]
    raw = [plus_minus(table.of(NO_MERGE)), "–", shown(table.minus(NO_MERGE, REFERENCE))]
    rows.append(["no merge", "–", *raw, "–", "–"])
    for name, arm in arms.items():
        key, real = arm.chosen, arm.keys == [REFERENCE]
        cells = [
            plus_minus(arm.table.of(key)),
            shown(arm.minus(NO_MERGE)),
            "–" if real else shown(arm.minus(REFERENCE)),
        ]
        picked = arm.table.best(arm.keys, TEST)
        cells.append(f"{shown(arm.table.minus(picked, REFERENCE))} ({picked[2]})" if len(arm.keys) > 1 else "–")
        theirs = arm.table is table and name != SWA and key[:2] in PAPER
        rows.append([name, "–" if real else str(key[2]), *cells, f"{PAPER[key[:2]]:.2f}" if theirs else "–"])
    rates = "; ".join(f"{name} {own[0]['peak_lr']:g}, {own[0]['wsd_peak_lr']:g}" for name, own in of.items())
    others = " *No merge* and *real decay*: of the same optimizer." if len(of) > 1 else ""
    lines = [
        "# Merge algorithms (Table 3)",
        "",
        f"Test loss in bits per byte, mean over all domains, lower is better, {matrix.DECAY} intervals after the "
        f"switch; the number of checkpoints is chosen on validation, but fixed for SWA, LAWA and learned weights, and "
        f"the latter are fitted on the validation text. {source(records)}{unswitched(records)} Peak rates "
        f"of the constant run and of the 1-sqrt decay: {rates}, tuned on one seed.{others} *Picked on test*: the "
        "number of checkpoints (in parentheses) that is best on what is reported, as the paper picks.",
        "",
        *markdown_table(rows),
        "",
        "The paper's scores are means over 41 benchmarks, higher is better, each at its best checkpoint.",
        "",
        *markdown_table(claims(arms)),
        "",
        HOLDS,
        "",
        "![Every way beside no merge and the real decay](algorithms.png)",
    ]
    gains = {name: arm.minus(NO_MERGE) for name, arm in arms.items()}
    return Page(lines, {"algorithms": figures.rows(gains, "test loss minus no merge, bits per byte")})


SCALES = {
    scale: {f"{name}-seed{seed}": (name, seed) for name in OPTIMIZERS for seed in SEEDS} for scale in matrix.SIZES
}
EXPERIMENT = Experiment("merge_algorithm", SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
