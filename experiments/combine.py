"""Figure 5 and finding 3: merges against real decays along a long run, and both together.

    python -m experiments.combine [--scale=small]

On the text of the stable phase, no switch. (a) From three points of the stable run, a real decay (1-sqrt) over 8
intervals against merges of the constant run over the same 8 intervals, of 4 checkpoints (the paper's) and of 8.
(b) Decay, then merge: the mean of the latest 2 to 16 checkpoints of a real decay over 16 intervals. (c) Merge, then
decay: the same decay from the mean of the 16 checkpoints before it, with the optimizer's state of the last one.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from configs import matrix
from experiments import domains, figures, protocol
from experiments.intervals import CLAIMS, HOLDS, claimed, shown
from experiments.jobs import BRANCH, END, POINTS, SHORT, WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import Seeds, plus_minus, source
from experiments.training import SEED_SCALES, matrix_of, rates
from experiments.trajectories import along, window
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import markdown_table

CURVE = "minus_sqrt"
SAMPLED = {4: 2, 8: 1}  # checkpoints over the short decay's length -> intervals between them
ENDS = tuple(start + SHORT for start in POINTS)
COUNTS = (2, 4, 8, 16)  # of a decay's own
EVERY = 4
DECAY, FEW = matrix.DECAY, 4  # FEW: the paper's count in Figure 5a
RAW, REAL, MERGE, DECAYED_MERGED, MERGED, MERGED_DECAYED = (
    "raw",
    "decay",
    "merge",
    "decay, then merge",
    "merge that decays",
    "merge, then decay",
)


def measure(folder: Path, seed: int, settings: list[str]) -> list[Record]:
    """Every point of the three panels of a seed."""
    runs = matrix_of(folder, settings)
    rate = rates(runs.scale)[WSM]
    constant = runs.run(seed, rate, "constant")
    path = runs.path(seed, rate, "constant")

    def step(intervals: int) -> int:
        return intervals * runs.interval

    recipes = {}
    for start in POINTS:
        at = start + SHORT
        short = runs.run(seed, rate, f"short-{start}")
        recipes[RAW, 1, at] = protocol.single(path[step(at)])
        recipes[REAL, SHORT, at] = protocol.single(short.merge_stream / str(step(at)))
        recipes |= {(MERGE, n, at): window(path, "linear", n, step(at), apart) for n, apart in SAMPLED.items()}
    recipes[RAW, 1, END] = protocol.single(path[step(END)])
    recipes[MERGE, DECAY, END] = window(path, "linear", DECAY, step(END))
    decay = along(runs.run(seed, rate, f"decay-{CURVE}"))
    recipes |= {(DECAYED_MERGED, n, END): window(decay, "linear", n, step(END)) for n in COUNTS}
    both = along(runs.run(seed, rate, "merged-decay"))
    recipes[MERGED, DECAY, BRANCH] = window(path, "linear", DECAY, step(BRANCH))
    recipes[RAW, 1, BRANCH] = protocol.single(path[step(BRANCH)])
    for at in range(BRANCH + EVERY, END + 1, EVERY):
        recipes[REAL, DECAY, at] = protocol.single(decay[step(at)])
        recipes[MERGED_DECAYED, DECAY, at] = protocol.single(both[step(at)])
    found = domains.losses(recipes, domains.evaluators(runs, constant))
    facts = {"peak_lr": rate, **protocol.provenance(constant)}
    return [{"arm": arm, "count": n, "at": at, **facts, **loss} for (arm, n, at), loss in found.items()]


def present(records: list[Record]) -> Page:
    """A table for each panel, the claims, and the three panels."""
    table = Seeds(records, "arm", "count", "at")
    points = [["intervals trained", "no decay, no merge", "real decay minus it"]]
    points[0] += [f"merge of {n} minus it" for n in SAMPLED]
    points[0].append(f"merge of {FEW} minus real decay")
    for at in ENDS:
        raw, real = (RAW, 1, at), (REAL, SHORT, at)
        cells = [
            plus_minus(table.of(raw)),
            *(shown(table.minus(key, raw)) for key in (real, *((MERGE, n, at) for n in SAMPLED))),
        ]
        points.append([f"{at} of {END}", *cells, shown(table.minus((MERGE, FEW, at), real))])
    raw, real, merge = (RAW, 1, END), (REAL, DECAY, END), (MERGE, DECAY, END)
    then_merged = table.best([(DECAYED_MERGED, n, END) for n in COUNTS])
    then_decayed = (MERGED_DECAYED, DECAY, END)
    arms = {
        "no decay, no merge": raw,
        "real decay": real,
        f"merge of {DECAY}": merge,
        f"decay, then merge of {then_merged[1]} (chosen on validation)": then_merged,
        f"merge of {DECAY}, then decay": then_decayed,
    }
    rows = [["", "test loss", "minus real decay"]]
    rows += [
        [name, plus_minus(table.of(key)), "–" if key == real else shown(table.minus(key, real))]
        for name, key in arms.items()
    ]
    alone = table.best([real, merge])
    start = table.minus((MERGED, DECAY, BRANCH), (RAW, 1, BRANCH))
    claims = [CLAIMS]
    claims += [
        claimed(
            f"{at} intervals: merge of {FEW} is better than a real decay",
            table.minus((MERGE, FEW, at), (REAL, SHORT, at)),
            "they track each other",
        )
        for at in ENDS
    ]
    for name, key, paper in (
        ("decay, then merge", then_merged, "within 0.3 points"),
        ("merge, then decay", then_decayed, "0.3 points lower"),
    ):
        claims.append(claimed(f"{name}: better than the decay alone", table.minus(key, real), paper))
        claims.append(
            claimed(f"{name}: better than the better of the decay and the merge of {DECAY}", table.minus(key, alone))
        )
    lines = [
        "# Merge and decay, one in the place of the other and both together (Figure 5, finding 3)",
        "",
        f"Test loss in bits per byte, mean over the domains of the stable text. {source(records)} All runs have the "
        f"peak rate {records[0]['peak_lr']:g} that tuning chose for WSM; decays are 1-sqrt, merges have equal weights.",
        "",
        f"Along the run (Figure 5a), decays and merges over {SHORT} intervals; the paper: the two track each other.",
        "",
        *markdown_table(points),
        "",
        f"Both together (Figures 5b and 5c), decays over {DECAY} intervals. The paper: decay, then merge, is within "
        "0.3 points of the decay; merge, then decay, starts 3.0 points higher and ends 0.3 lower. Here the merge that "
        f"the decay starts with is {shown(start)} from the checkpoint it takes the place of.",
        "",
        *markdown_table(rows),
        "",
        *markdown_table(claims),
        "",
        f"The better of the decay and the merge of {DECAY}, by validation, is the {alone[0]}. Finding 3 (both together "
        f"add nothing) would be contradicted by a combination that is better than it. {HOLDS}",
        "",
        "![Along the run; decay then merge; merge then decay](combine.png)",
    ]
    return Page(lines, {"combine": figure(table)})


@plot_style.styled_figure
def figure(table: Seeds) -> Figure:
    """Panels as the paper's: gains along the run, merges of a decay by count, the decay from a merge over time."""
    made = Figure(figsize=(plot_style.WIDTH, 2.9))
    along_run, merged, decayed = made.subplots(1, 3)
    real = {"color": figures.REAL, "marker": "^", "linestyle": "--"}
    merge = {"color": figures.MERGED, "marker": "o"}
    for key, look, label in (((REAL, SHORT), real, "real decay"), ((MERGE, FEW), merge, f"merge of {FEW}")):
        gains = [table.minus((*key, at), (RAW, 1, at)) for at in ENDS]
        figures.line(along_run, ENDS, gains, **look, label=label)
    along_run.axhline(0.0, color=plot_style.RAW, linewidth=0.8)
    along_run.set_xticks(ENDS)
    along_run.margins(y=0.25)
    along_run.set(title="along the run", xlabel="intervals trained", ylabel="minus raw, bits per byte")
    plain = (REAL, DECAY, END)
    behind = [table.minus((DECAYED_MERGED, n, END), plain) for n in COUNTS]
    figures.line(merged, COUNTS, behind, **merge, label="decay, then merge")
    merged.axhline(0.0, color=figures.REAL, linestyle="--", linewidth=0.9, label="real decay")
    merged.set_xscale("log")
    merged.set_xticks(COUNTS, [str(n) for n in COUNTS])
    merged.minorticks_off()
    merged.set(title="decay, then merge", xlabel="checkpoints merged", ylabel="minus decay, bits per byte")
    there = range(BRANCH + EVERY, END + 1, EVERY)
    first = {REAL: (RAW, 1, BRANCH), MERGED_DECAYED: (MERGED, DECAY, BRANCH)}
    for arm, look, label in ((REAL, real, "real decay"), (MERGED_DECAYED, merge, "merge, then decay")):
        keys = [first[arm], *((arm, DECAY, at) for at in there)]
        figures.line(decayed, [BRANCH, *there], [table.of(key) for key in keys], **look, label=label)
    decayed.set_xticks([BRANCH, *there])
    decayed.set(title="merge, then decay", xlabel="intervals trained", ylabel="test loss, bits per byte")
    for axes in (along_run, merged, decayed):
        axes.legend()
    low, high = decayed.get_ylim()
    decayed.set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    return made


EXPERIMENT = Experiment("combine", SEED_SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
