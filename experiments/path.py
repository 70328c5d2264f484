"""Where the merge lies: principal components of the parameters of a run, of a real decay and of merges.

    python -m experiments.path RUN DECAY --output=path            (writes path.png and path.svg)

The paper's picture of the weights: the path at a constant rate oscillates, that of the decay converges, the merge lies
inside. RUN is a constant-rate run, DECAY a run branched from it; the merges are means of the latest checkpoints.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import wsm_jax
from wsm_jax import Run
from wsm_jax.checkpoints import orbax
from wsm_jax.errors import UsageError, ended
from wsm_jax.reporting import plot_style

COUNTS = (2, 4, 8, 16, 32)


def flat(tree: object) -> np.ndarray:
    """All parameters of a tree as one vector, float32."""
    return np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(tree)])


def components(points: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components of points, float64 [points, 2], and the share of the variance of each."""
    centred = np.stack(points).astype(np.float64)
    centred -= centred.mean(axis=0)
    values, vectors = np.linalg.eigh(centred @ centred.T)  # points are few and parameters many
    first = [-1, -2]
    return vectors[:, first] * np.sqrt(np.maximum(values[first], 0.0)), values[first] / values.sum()


def paths(run: Run, decay: Run) -> dict[str, list[np.ndarray]]:
    """What is drawn -> its points: the second half of the run, the decay, and the merges at the end of the run."""
    steps = orbax.complete_steps(run.merge_stream)
    later = [step for step in steps if 2 * step >= steps[-1]]
    if decay.facts["branch_step"] is None:
        raise UsageError(f"{decay.path} is no branch; train it with --branch_from={run.path}@STEP")
    counts = [count for count in COUNTS if count <= len(later)]
    weights = {str(n): [0.0] * (len(later) - n) + [1 / n] * n for n in counts}
    merged = wsm_jax.merge_many([run.merge_stream / str(step) for step in later], weights)
    return {
        "constant rate": [flat(orbax.load_tree(run.merge_stream / str(step))) for step in later],
        "real decay": [
            flat(orbax.load_tree(decay.merge_stream / str(step)))
            for step in orbax.complete_steps(decay.merge_stream)
            if step > decay.facts["branch_step"]
        ],
        f"merges of {', '.join(map(str, counts))}": [flat(tree) for _, tree in merged],
    }


@plot_style.styled_figure
def figure(found: dict[str, list[np.ndarray]]) -> Figure:
    """The paths in the plane of their first two principal components."""
    places, shares = components([point for points in found.values() for point in points])
    made = Figure(figsize=(plot_style.WIDTH * 0.6, 3.4))
    axes, start = made.subplots(), 0
    looks = zip(found.items(), (plot_style.RAW, "#D55E00", "#0072B2"), "os^", strict=True)
    for (name, points), colour, marker in looks:
        xy = places[start : start + len(points)]
        start += len(points)
        axes.plot(*xy.T, color=colour, marker=marker, linewidth=0.8, label=name)
    first, second = (f"{share:.0%} of the variance" for share in shares)
    axes.set(xlabel=f"first component ({first})", ylabel=f"second component ({second})")
    made.legend(loc="outside upper center", ncols=3)
    return made


def main() -> int:
    """Draws the paths of the command line."""
    parser = argparse.ArgumentParser("python -m experiments.path", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("decay", type=Path)
    parser.add_argument("--output", type=Path, default=Path("path"), help="without .png or .svg (default: path)")
    options = parser.parse_args()
    plot_style.save(figure(paths(Run(options.run), Run(options.decay))), options.output)
    print(f"written: {options.output}.png and .svg")
    return 0


if __name__ == "__main__":
    sys.exit(ended("path", main))
