"""What the paper's reviewers asked: each real decay beside the merge that is to emulate it, over time and at its end.

    python -m experiments.emulation [--scale=small]

From one full state, real decays to zero (linear, cosine, 1-sqrt) and the constant-rate run on the same text (no
switch). At every fourth interval of the decay: its loss, and that of the merge of the constant run's checkpoints with
the part of the curve that has passed, by the paper's grid. At its end also by the schedule's mean over each interval,
by the means of the parameters over each interval, and with the window that is best on validation. And a full cosine
from the end of the warm-up, against the merge of all checkpoints since then.

What a merge misses of the decay of its own curve is taken apart. A merge of interval means scales every update as the
decay does (within the interval along a straight line), one that also knows AdamW's weight decay takes away what that
does to them. So from one to the next goes what the grid misses, and what weight decay does; what is left to the real
decay are the updates that change as the rate shrinks, which Theorem 3.1 holds fixed: gradients are taken at other
points of a curved loss, and AdamW's moments are of those.
"""

import itertools
import sys
from pathlib import Path

from matplotlib.figure import Figure

from configs import matrix
from experiments import domains, protocol
from experiments.intervals import CLAIMS, HOLDS, claimed, share, shown
from experiments.jobs import CURVES, WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import Seeds, plus_minus, source
from experiments.training import SEED_SCALES, Matrix, matrix_of, rates
from experiments.trajectories import Trajectory, window
from wsm_jax import checkpoint_weights, schedule_weights
from wsm_jax.checkpoints import run_schedule
from wsm_jax.checkpoints.run import Run
from wsm_jax.core.coefficients import curve_update_weights
from wsm_jax.merging.recipe import make_recipe
from wsm_jax.merging.selection import MEAN
from wsm_jax.merging.spec import MergeSpec
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import markdown_table

DECAY, EVERY = matrix.DECAY, 4
COUNTS = (4, 8, 12, 16, 24, 32, 48, 60)
RAW, REAL, GRID, MEANS, SNAPSHOTS = "raw", "decay", "paper's grid", "schedule's means", "interval means"
AWARE = "weight-decay-aware interval means"
FULL = "full cosine"
ALL = matrix.INTERVALS - matrix.WARMUP  # checkpoints since the end of the warm-up


def measure(folder: Path, seed: int, settings: list[str]) -> list[Record]:
    """Every decay of a seed and what is to emulate it."""
    runs = matrix_of(folder, settings)
    rate = rates(runs.scale)[WSM]
    constant = runs.run(seed, rate, "constant")
    path = runs.path(seed, rate, "constant")
    recipes = {(RAW, "", 1, since): protocol.single(path[_step(runs, since)]) for since in range(0, DECAY + 1, EVERY)}
    for curve in CURVES:
        decay = runs.run(seed, rate, f"decay-{curve}")
        for since in range(EVERY, DECAY + 1, EVERY):
            step = _step(runs, since)
            recipes[REAL, curve, DECAY, since] = protocol.single(decay.merge_stream / str(step))
            # The curve over the whole decay, as far as it has come; at the end the merge of DECAY checkpoints.
            weights = checkpoint_weights(curve_update_weights(curve, DECAY)[: since - 1])
            recipes[GRID, curve, DECAY, since] = window(path, weights, since, step)
        recipes[MEANS, curve, DECAY, DECAY] = by_schedule(decay, path, runs.branch_step, runs.steps)
        for arm, aware in ((SNAPSHOTS, False), (AWARE, True)):
            recipes[arm, curve, DECAY, DECAY] = make_recipe(
                constant, curve, DECAY, snapshot=MEAN, weight_decay_aware=aware
            )
    recipes |= {
        (GRID, curve, n, DECAY): window(path, curve, n, runs.steps) for curve in CURVES for n in COUNTS if n != DECAY
    }
    cosine = runs.run(seed, rate, "cosine")
    warm = runs.steps - ALL * runs.interval
    recipes[REAL, FULL, ALL, DECAY] = protocol.single(cosine.merge_stream / str(runs.steps))
    recipes[MEANS, FULL, ALL, DECAY] = by_schedule(cosine, path, warm, runs.steps)
    found = domains.losses(recipes, domains.evaluators(runs, constant))
    facts = {"peak_lr": rate, **protocol.provenance(constant)}
    return [
        {"arm": arm, "curve": curve, "count": n, "since": since, **facts, **loss}
        for (arm, curve, n, since), loss in found.items()
    ]


def _step(runs: Matrix, since: int) -> int:
    return runs.branch_step + since * runs.interval


def by_schedule(run: Run, path: Trajectory, first: int, last: int) -> MergeSpec:
    """The merge of the checkpoints from ``first`` to ``last`` that emulates the schedule of ``run``."""
    steps = [step for step in path if first <= step <= last]
    schedule = run_schedule.from_config(run.config, run.facts["branch_step"])
    return window(path, schedule_weights(schedule, steps, run.config.optimizer.peak_lr), len(steps), last)


def present(records: list[Record]) -> Page:
    """The end of each decay beside its merges, and both over time."""
    table, raw = Seeds(records, "arm", "curve", "count", "since"), (RAW, "", 1, DECAY)
    rows = [["curve", "real decay", "paper's grid", "schedule's means", "interval means", "best window", "its length"]]
    parts = [["curve", "merge minus real decay", "the grid", "weight decay", "updates that change"]]
    claims = [CLAIMS]
    for curve in CURVES:
        name, real = plot_style.CURVE_LABELS[curve], (REAL, curve, DECAY, DECAY)
        best = table.best([(GRID, curve, n, DECAY) for n in COUNTS])
        keys = [real, *((arm, curve, DECAY, DECAY) for arm in (GRID, MEANS, SNAPSHOTS)), best]
        rows.append([name, *(_cell(table, key, raw, real) for key in keys), str(best[2])])
        steps = [keys[1], keys[3], (AWARE, curve, DECAY, DECAY), real]
        if all(key in table for key in steps):
            parts.append([name, *(shown(table.minus(*pair)) for pair in [(keys[1], real), *itertools.pairwise(steps)])])
        for words, key in (("the equal window", keys[1]), (f"the best window ({best[2]})", best)):
            claims.append(claimed(f"{name}: the merge at {words} is better than the decay", table.minus(key, real)))
    full = (REAL, FULL, ALL, DECAY)
    anything = table.best([(GRID, curve, n, DECAY) for curve in CURVES for n in COUNTS])
    keys = [full, (GRID, "cosine", ALL, DECAY), (MEANS, FULL, ALL, DECAY)]
    rows.append([FULL, *(shown(table.minus(key, raw)) for key in keys), "–", shown(table.minus(anything, raw))])
    rows[-1].append(f"{anything[2]} ({plot_style.CURVE_LABELS[anything[1]]})")
    for words, key in (
        ("the merge from the end of the warm-up", keys[1]),
        ("the best merge of these curves", anything),
    ):
        claims.append(claimed(f"{FULL}: {words} is better than the run", table.minus(key, full)))
    lines = [
        "# Real decays and the merges that emulate them",
        "",
        f"Test loss minus that of the last constant-rate checkpoint ({plus_minus(table.of(raw))}), bits per byte, mean "
        "over the domains of the stable text; in parentheses the share of the real decay's gain. The decays and the "
        f"windows of the first four columns are {DECAY} intervals long, the best window is chosen on validation. "
        f"{source(records)} All runs, also the decays and the cosine, have the peak rate {records[0]['peak_lr']:g} "
        "that tuning chose for WSM; a cosine tuned by itself might take another. The full cosine goes from the end of "
        f"the warm-up to the end, its merges reach over {ALL} intervals.",
        "",
        *markdown_table(rows),
        "",
        *(_apart(parts) if len(parts) > 1 else ()),
        *markdown_table(claims),
        "",
        HOLDS,
        "",
        "![Loss of each decay and of the merge that emulates it, over time](emulation.png)",
        "",
        "Means over seeds.",
    ]
    return Page(lines, {"emulation": figure(table)})


def _cell(table: Seeds, key: tuple, raw: tuple, real: tuple) -> str:
    gain = table.minus(key, raw)
    return shown(gain) + ("" if key == real else f" ({share(gain, table.minus(real, raw))})")


def _apart(parts: list[list[str]]) -> list[str]:
    """What merges at equal windows miss, by cause."""
    return [
        f"What the merge of {DECAY} by the paper's grid has more of loss than the decay of its curve, and of what that "
        f"is the sum: *the grid*, the curve taken at one point an interval, and {DECAY} checkpoints span {DECAY - 1} "
        "intervals (what interval means take away); *weight "
        "decay*, which shrinks the updates inside the checkpoints (what weight-decay-aware weights take away from "
        "that); and *updates that change*, what is left: a merge scales the updates that the constant rate made, the "
        "decay makes others, of gradients at other points of a curved loss and of AdamW's moments of those.",
        "",
        *markdown_table(parts),
        "",
    ]


@plot_style.styled_figure
def figure(table: Seeds) -> Figure:
    """A panel for each curve: constant run, real decay and merge against intervals since the branch."""
    made = Figure(figsize=(plot_style.WIDTH, 2.7))
    panels = made.subplots(1, len(CURVES), sharey=True)
    there = range(EVERY, DECAY + 1, EVERY)
    for axes, curve in zip(panels, CURVES, strict=True):
        colour = plot_style.CURVE_COLOURS[curve]
        lines = {
            "constant rate": ([table.mean((RAW, "", 1, s)) for s in there], {"color": plot_style.RAW}),
            "real decay": ([table.mean((REAL, curve, DECAY, s)) for s in there], {"color": colour, "linestyle": "--"}),
            "merge": ([table.mean((GRID, curve, DECAY, s)) for s in there], {"color": colour, "marker": "o"}),
        }
        for label, (values, look) in lines.items():
            axes.plot(there, values, label=label, **look)
        axes.set(title=plot_style.CURVE_LABELS[curve], xlabel="intervals since the branch")
        axes.set_xticks(list(there))
        axes.legend(loc="lower left")
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low - 0.3 * (high - low), high)  # room for the legends
    panels[0].set_ylabel("test loss, bits per byte")
    return made


EXPERIMENT = Experiment("emulation", SEED_SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
