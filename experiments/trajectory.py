"""Where the merge lies: principal components of the parameters along the constant run, the real decay and the merges.

    python -m experiments.trajectory [--scale=small]

The paper shows that the path at a constant rate oscillates, that of the decay converges, and that the merge lies
inside. Here, without the switch: the constant run from half of the steps on, a real decay (1-sqrt) from 3/4 on, merges
of 2 to 32 checkpoints. Beside the picture of one seed, figures that say the same: how nearly a step of one interval
goes back on the one before it, how long the first and the last of these steps are, and how far each point is from the
end of the decay.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import protocol
from experiments.intervals import CLAIMS, HOLDS, claimed
from experiments.jobs import WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import Seeds, plus_minus, source
from experiments.training import SEED_SCALES, matrix_of, rates
from experiments.trajectories import along, window
from wsm_jax.checkpoints import orbax
from wsm_jax.merging import offline
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import markdown_table

COUNTS = (2, 4, 8, 16, 32)
CONSTANT, REAL, MERGE = "constant", "decay", "merge"
BLOCK = 2**20  # parameters
MOVED = ("last_step", "first_step")  # lengths of displacements over an interval


def measure(folder: Path, seed: int, settings: list[str]) -> list[Record]:
    """Coordinates and distances of every point of a seed."""
    runs = matrix_of(folder, settings)
    rate = rates(runs.scale)[WSM]
    constant, decay = (runs.run(seed, rate, job) for job in ("constant", "decay-minus_sqrt"))
    path = runs.path(seed, rate, "constant")
    branch = runs.branch_step
    later = {step: place for step, place in path.items() if 2 * step >= runs.steps}
    recipes = {
        (arm, step, 1): protocol.single(place)
        for arm, places in ((CONSTANT, later), (REAL, along(decay)))
        for step, place in places.items()
    }
    points = {key: _flat(orbax.load_tree(one.paths[0])) for key, one in recipes.items()}
    chosen = {str(n): window(path, "linear", n, runs.steps) for n in COUNTS}
    recipes |= {(MERGE, runs.steps, int(name)): one for name, one in chosen.items()}
    for name, merged in offline.in_memory(chosen):
        points[MERGE, runs.steps, int(name)] = _flat(merged)
    keys, products = list(points), inner_products(list(points.values()))
    coordinates, shares = components(products)
    away = distances(products, keys.index((REAL, runs.steps, 1)))
    order = {
        arm: [keys.index((CONSTANT, branch, 1))]
        + [i for i, (name, step, _) in enumerate(keys) if name == arm and step > branch]
        for arm in (CONSTANT, REAL)
    }
    steps = {arm: displacements(products[np.ix_(places, places)]) for arm, places in order.items()}
    moved = {
        arm: {"turning": turning(each), "first_step": lengths(each)[0], "last_step": lengths(each)[-1]}
        for arm, each in steps.items()
    }
    facts = {"branch_step": branch, "shares": shares, "peak_lr": rate, **protocol.provenance(constant)}
    return [
        {
            **{"arm": arm, "step": step, "count": n, "x": float(x), "y": float(y), "away": float(d)},
            **(moved[arm] if arm in moved else {}),
            **facts,
            **protocol.trained_by(recipes[arm, step, n]),
        }
        for (arm, step, n), (x, y), d in zip(keys, coordinates, away, strict=True)
    ]


def _flat(tree: object) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(tree)])


def inner_products(points: Sequence[np.ndarray]) -> np.ndarray:
    """Of all pairs of points, float64 [points, points]; everything below follows from them.

    Points are few and parameters many, so this holds no copy of all points, only blocks of them.
    """
    total = np.zeros((len(points), len(points)))
    for start in range(0, points[0].size, BLOCK):
        block = np.stack([point[start : start + BLOCK] for point in points]).astype(np.float64)
        total += block @ block.T
    return total


def components(products: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """The first two principal components of such points: [points, 2], and the share of variance of each."""
    middle = products.mean(axis=0)
    values, vectors = np.linalg.eigh(products - middle - middle[:, None] + middle.mean())
    first = [-1, -2]
    share = values[first] / values.sum()
    return vectors[:, first] * np.sqrt(np.maximum(values[first], 0.0)), [float(s) for s in share]


def distances(products: np.ndarray, end: int) -> np.ndarray:
    """How far each point is from the one of number ``end``: [points]."""
    squares = products.diagonal() + products[end, end] - 2 * products[end]
    return np.sqrt(np.maximum(squares, 0.0))


def displacements(products: np.ndarray) -> np.ndarray:
    """Inner products [points - 1, points - 1] of the displacements from each point to the next."""
    return np.diff(np.diff(products, axis=0), axis=1)


def turning(steps: np.ndarray) -> float:
    """The mean cosine between one displacement and the next: -1 goes back, 0 turns, 1 goes straight on."""
    return float(np.mean(steps.diagonal(1) / np.sqrt(steps.diagonal()[:-1] * steps.diagonal()[1:])))


def lengths(steps: np.ndarray) -> list[float]:
    """Of the displacements."""
    return [float(length) for length in np.sqrt(steps.diagonal())]


def present(records: list[Record]) -> Page:
    """Distances, turning, and the picture of the first seed."""
    table = Seeds(records, "arm", "step", "count")
    last = max(r["step"] for r in records)
    raw, rows = (CONSTANT, last, 1), [["", "distance from the end of the decay", "over that of the last checkpoint"]]
    for name, key in {"last checkpoint": raw, **{f"merge of {n}": (MERGE, last, n) for n in COUNTS}}.items():
        ratio = [a / b for a, b in zip(table.of(key, "away"), table.of(raw, "away"), strict=True)]
        rows.append([name, plus_minus(table.of(key, "away"), 2), plus_minus(ratio, 3)])
    claims = [CLAIMS]
    for n in (8, 16):
        claim = f"the merge of {n} is nearer to the decay than the last checkpoint"
        claims.append(claimed(claim, table.minus((MERGE, last, n), raw, "away"), "inside", 2))
    turns = {arm: table.of((arm, last, 1), "turning") for arm in (CONSTANT, REAL)}
    claim = "the path at the constant rate goes back on itself (cosine below zero)"
    claims.append(claimed(claim, turns[CONSTANT], "oscillates"))
    for arm, words, paper in ((CONSTANT, "the constant-rate path", "does not"), (REAL, "the decay", "converges")):
        claim = f"{words} converges (its last step over an interval less its first)"
        shorter = [a - b for a, b in zip(*(table.of((arm, last, 1), name) for name in MOVED), strict=True)]
        claims.append(claimed(claim, shorter, paper, 2))
    lines = [
        "# The path of the parameters",
        "",
        f"{source(records)}",
        "",
        *markdown_table(rows),
        "",
        *markdown_table(claims),
        "",
        HOLDS,
        "",
        f"Mean cosine between the displacement over one interval and over the next, since the branch: "
        f"{plus_minus(turns[CONSTANT], 3)} at the constant rate, {plus_minus(turns[REAL], 3)} in the decay (below "
        "zero: the path goes back on itself).",
        "",
        "![First two principal components of one seed](path.png)",
    ]
    return Page(lines, {"path": figure([r for r in records if r["seed"] == table.seeds[0]])})


@plot_style.styled_figure
def figure(records: list[Record]) -> Figure:
    """Both paths and the merges in the plane of the first two components."""
    made = Figure(figsize=(plot_style.WIDTH * 0.7, 3.6))
    axes = made.subplots()
    looks = {CONSTANT: (plot_style.RAW, "s", "-", "constant rate"), REAL: ("#D55E00", "^", "--", "real decay, 1-sqrt")}
    looks[MERGE] = ("#0072B2", "o", "-", f"merges of {', '.join(map(str, COUNTS))}")
    for arm, (colour, marker, line, label) in looks.items():
        rows = [r for r in records if r["arm"] == arm]
        x, y = ([r[name] for r in rows] for name in "xy")
        axes.plot(x, y, color=colour, marker=marker, linestyle=line, label=label, linewidth=0.9)
        if arm == MERGE:
            named, left = {str(r["count"]): (r["x"], r["y"]) for r in rows}, True
        else:
            start = "oldest" if arm == CONSTANT else "branch"
            named, left = {start: (x[0], y[0]), "end": (x[-1], y[-1])}, arm == REAL
        for text, place in named.items():
            side: Any = {"xytext": (-5, 3), "ha": "right"} if left else {"xytext": (5, 3)}
            if text == "branch":  # which the constant rate's path comes to from above
                side = {"xytext": (0, -11), "ha": "center"}
            axes.annotate(text, place, textcoords="offset points", fontsize=7, color=colour, **side)
    shares = records[0]["shares"]
    axes.set(xlabel=f"first component ({shares[0]:.0%} of the variance)", ylabel=f"second ({shares[1]:.0%})")
    axes.legend(loc="upper center")
    axes.margins(x=0.08, y=0.08)
    return made


EXPERIMENT = Experiment("trajectory", SEED_SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
