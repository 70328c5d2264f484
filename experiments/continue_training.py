"""What reviewers asked: going on from the constant-rate checkpoint against warming a decayed one up again.

    python -m experiments.continue_training [--scale=small]

At the end of the runs, on the text of the stable phase, training goes on for 16 intervals in three ways: from the last
checkpoint at the constant rate; from the real decay (1-sqrt) with a warm-up as long as the run's first and then the
same rate; and from the merge of the latest 16 checkpoints, with the optimizer's state of the last one, at the constant
rate (the merge fed back). Read at every fourth interval: the checkpoint itself, and the merge of the latest ones. The
warmed-up run also decays again over its last 8 intervals.
"""

import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from configs import matrix
from experiments import domains, figures, protocol
from experiments.intervals import CLAIMS, HOLDS, claimed, shown
from experiments.jobs import END, LATER, REDECAY, WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import Seeds, plus_minus, source
from experiments.training import SEED_SCALES, matrix_of, rates
from experiments.trajectories import along, window
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import markdown_table

EVERY = 4
COUNTS = (4, 8, 12, 16)
WAYS = {
    "continued": "constant rate goes on",
    "rewarmed": "decayed, warmed up again",
    "merged-continued": "merge fed back",
}
AGAIN = "rewarmed-decay"
RAW, MERGE = "checkpoint", "merge"
LAST = END + LATER


def measure(folder: Path, seed: int, settings: list[str]) -> list[Record]:
    """Every point of every way of a seed."""
    runs = matrix_of(folder, settings)
    rate = rates(runs.scale)[WSM]
    constant = runs.run(seed, rate, "constant")
    # What is merged never reaches back over the decay or the warm-up, nor over what went into the merge fed back.
    paths = {"continued": runs.path(seed, rate, "continued")}
    paths |= {way: along(runs.run(seed, rate, way)) for way in WAYS if way not in paths}
    decayed = runs.run(seed, rate, "decay-minus_sqrt").merge_stream / str(runs.steps)
    recipes = {}
    for way, path in paths.items():
        for at in range(END, LAST + 1, EVERY):
            step = at * runs.interval
            if at > END or way == "continued":
                recipes[way, RAW, 1, at] = protocol.single(path[step])
            whole = len([s for s in path if s <= step]) - (matrix.WARMUP if way == "rewarmed" else 0)
            recipes |= {(way, MERGE, n, at): window(path, "linear", n, step) for n in COUNTS if n <= whole}
    recipes["rewarmed", RAW, 1, END] = protocol.single(decayed)
    recipes["merged-continued", RAW, 1, END] = recipes["continued", MERGE, matrix.DECAY, END]
    again = along(runs.run(seed, rate, AGAIN))
    for at in range(LAST - REDECAY + EVERY, LAST + 1, EVERY):
        recipes[AGAIN, RAW, 1, at] = protocol.single(again[at * runs.interval])
    found = domains.losses(recipes, domains.evaluators(runs, constant))
    facts = {"peak_lr": rate, **protocol.provenance(constant)}
    return [
        {"way": way, "arm": arm, "count": n, "at": at, **facts, **loss} for (way, arm, n, at), loss in found.items()
    ]


def best(table: Seeds, way: str, at: int) -> tuple:
    """The merge of a way that is best on validation at a point; the checkpoint itself where none is whole."""
    keys = [(way, MERGE, n, at) for n in COUNTS if (way, MERGE, n, at) in table]
    return table.best(keys) if keys else (way, RAW, 1, at)


def present(records: list[Record]) -> Page:
    """Losses over time, the end, and claims."""
    table = Seeds(records, "way", "arm", "count", "at")
    points = range(END, LAST + 1, EVERY)
    rows = [["", *(f"{at - END} intervals" for at in points)]]
    for way, name in WAYS.items():
        rows.append([f"{name}: checkpoint", *(plus_minus(table.of((way, RAW, 1, at))) for at in points)])
        merges = [best(table, way, at) for at in points]
        cells = [f"{plus_minus(table.of(key))} ({key[2]})" if key[1] == MERGE else "–" for key in merges]
        rows.append([f"{name}: best merge (checkpoints)", *cells])
    again = [(AGAIN, RAW, 1, at) for at in points]
    rows.append(
        [
            f"{WAYS['rewarmed']}, and decayed again",
            *(plus_minus(table.of(key)) if key in table else "–" for key in again),
        ]
    )
    first, raw = END + EVERY, {way: (way, RAW, 1, LAST) for way in WAYS}
    ends = {way: best(table, way, LAST) for way in WAYS}
    claims = [CLAIMS]
    for words, one, other in (
        (
            f"going on {EVERY} intervals at the constant rate is better than warming the decayed model up, unmerged",
            ("continued", RAW, 1, first),
            ("rewarmed", RAW, 1, first),
        ),
        (
            f"going on {LATER} intervals at the constant rate is better than warming up, unmerged",
            raw["continued"],
            raw["rewarmed"],
        ),
        (
            f"{LATER} intervals on, both merged: the constant rate is better than warming up",
            ends["continued"],
            ends["rewarmed"],
        ),
        (
            f"{LATER} intervals on, merges of 12: the constant rate is better than warming up",
            ("continued", MERGE, 12, LAST),
            ("rewarmed", MERGE, 12, LAST),
        ),
        (
            "going on at the constant rate and merging is better than warming up and decaying again",
            ends["continued"],
            (AGAIN, RAW, 1, LAST),
        ),
        (
            "going on from the merge is better than from the checkpoint, unmerged",
            raw["merged-continued"],
            raw["continued"],
        ),
        (
            "going on from the merge is better than from the checkpoint, merged",
            ends["merged-continued"],
            ends["continued"],
        ),
    ):
        claims.append(claimed(words, table.minus(one, other)))
    jump = table.minus(("rewarmed", RAW, 1, first), ("rewarmed", RAW, 1, END))
    lines = [
        "# Training that goes on",
        "",
        "Test loss in bits per byte, mean over the domains of the stable text, by intervals since the end of the first "
        f"training. {source(records)} Peak rate {records[0]['peak_lr']:g}, which tuning chose for WSM; merges have "
        "equal weights, their length is chosen on validation at each point among those that reach back neither over "
        "the decay and its warm-up nor over what was fed back, so the other two ways have fewer to choose from.",
        "",
        *markdown_table(rows),
        "",
        f"The decayed model starts at {plus_minus(table.of(('rewarmed', RAW, 1, END)))}; {EVERY} intervals of warming "
        f"up move it by {shown(jump)}.",
        "",
        *markdown_table(claims),
        "",
        HOLDS,
        "",
        "![Loss since the end of the first training, checkpoints and merges](continue.png)",
    ]
    return Page(lines, {"continue": figure(table)})


@plot_style.styled_figure
def figure(table: Seeds) -> Figure:
    """A panel of checkpoints, one of the best merges: a line for each way."""
    made = Figure(figsize=(plot_style.WIDTH, 2.9))
    panels = made.subplots(1, 2, sharey=True)
    looks = dict(zip(WAYS, (("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s")), strict=True))
    points = list(range(END, LAST + 1, EVERY))

    def line(axes: Axes, keys: list[tuple], label: str, **look: Any) -> None:
        figures.line(axes, [key[3] - END for key in keys], [table.of(key) for key in keys], label=label, **look)

    for way, (colour, marker) in looks.items():
        look = {"color": colour, "marker": marker}
        line(panels[0], [(way, RAW, 1, at) for at in points], WAYS[way], **look)
        merges = [key for key in (best(table, way, at) for at in points) if key[1] == MERGE]
        line(panels[1], merges, f"{WAYS[way]}, merged", **look)
    keys = [("rewarmed", RAW, 1, LAST - REDECAY), *((AGAIN, RAW, 1, at) for at in points if at > LAST - REDECAY)]
    line(panels[1], keys, "warmed up, decayed again", color=plot_style.RAW, marker="v", linestyle="--")
    for axes, title in zip(panels, ("checkpoints", "merges and a second decay"), strict=True):
        axes.set(title=title, xlabel="intervals since the first training")
        axes.legend(loc="upper right")
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low, high + 0.55 * (high - low))  # room for the legends
    panels[0].set_ylabel("test loss, bits per byte")
    return made


EXPERIMENT = Experiment("continue_training", SEED_SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
