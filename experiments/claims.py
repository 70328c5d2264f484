"""The seven primary claims of experiments/standard.py, declared before the runs that decide them.

Each is a statistic of test losses in bits per byte that is below zero where the claim holds. Arms and choices are those
of experiments/standard.py; OLD is the text before the switch, NEW the text after it.
"""

from collections.abc import Sequence

import numpy as np

from wsm_jax.sweeps import Claim, difference
from wsm_jax.sweeps.experiment import Loss, Statistic

OLD, NEW = ("novels", "peps"), ("textbooks", "mathematics", "solutions")
DURATIONS: tuple[str, ...] = ("2.5%", "5%", "10%", "20%")
END_RATES: tuple[float, ...] = (1.0, 0.5, 0.25, 0.0)
GRID = 33  # points of the common range of two frontiers


def mean(loss: Loss, arm: str, domains: Sequence[str]) -> np.ndarray:
    """The plain mean of an arm's losses over some domains."""
    return np.mean([loss(arm, domain) for domain in domains], axis=0)


def frontier(first: str, second: str) -> Statistic:
    """How much lower ``first {duration}`` is than ``second {duration}`` on new text where both are equal on old text.

    Each frontier is the line through one point for each duration, (old, new). Their mean vertical distance over the
    range of old-text losses that both cover; not a number where there is none.
    """

    def points(loss: Loss, name: str) -> tuple[np.ndarray, np.ndarray]:
        old, new = ([mean(loss, f"{name} {d}", texts) for d in DURATIONS] for texts in (OLD, NEW))
        order = np.argsort(old, axis=0)
        return np.take_along_axis(np.array(old), order, 0), np.take_along_axis(np.array(new), order, 0)

    def statistic(loss: Loss, measured: Sequence[str]) -> np.ndarray:
        (x1, y1), (x2, y2) = points(loss, first), points(loss, second)
        low, high = np.maximum(x1[0], x2[0]), np.minimum(x1[-1], x2[-1])
        found = np.full(low.shape, np.nan)
        for i in zip(*np.nonzero(low < high), strict=True):
            at = np.linspace(low[i], high[i], GRID)
            lines = [np.interp(at, x[(slice(None), *i)], y[(slice(None), *i)]) for x, y in ((x1, y1), (x2, y2))]
            found[i] = np.mean(lines[0] - lines[1])
        return found

    return statistic


def substitutes(loss: Loss, measured: Sequence[str]) -> np.ndarray:
    """Minus the slope, on the end rate of a partial decay, of what a merge of its window still gains."""
    gains = [mean(loss, f"end {end:g}", OLD) - mean(loss, f"end {end:g}, merged", OLD) for end in END_RATES]
    x = np.array(END_RATES) - np.mean(END_RATES)
    return -np.tensordot(x, np.array(gains), axes=1) / np.sum(x * x)


def nearer(first: str, second: str, target: str) -> Statistic:
    """How much nearer the loss of ``first`` is to that of ``target`` than the loss of ``second`` is."""

    def statistic(loss: Loss, measured: Sequence[str]) -> np.ndarray:
        goal = mean(loss, target, OLD)
        return np.abs(mean(loss, first, OLD) - goal) - np.abs(mean(loss, second, OLD) - goal)

    return statistic


def exponent(cells: Sequence[str]) -> Statistic:
    """The exponent of the merge's gain on the decay's over the cells of the map, minus 1.

    Orthogonal regression of the logarithms, as both are measured with errors; not a number where one is no gain.
    """

    def statistic(loss: Loss, measured: Sequence[str]) -> np.ndarray:
        gains = [
            [mean(loss, f"{cell} last", OLD) - mean(loss, f"{cell} {arm}", OLD) for cell in cells]
            for arm in ("decay", "merge")
        ]
        with np.errstate(invalid="ignore", divide="ignore"):
            x, y = (np.log(np.where(np.array(gain) > 0, gain, np.nan)) for gain in gains)
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        xx, yy, xy = (x * x).sum(axis=0), (y * y).sum(axis=0), (x * y).sum(axis=0)
        return (yy - xx + np.sqrt((yy - xx) ** 2 + 4 * xy**2)) / (2 * xy) - 1

    return statistic


def primary(cells: Sequence[str]) -> dict[str, Claim]:
    """The seven, on the arms and choices of experiments/standard.py; ``cells`` are those of its map."""
    claims = {
        "1 merge against decay": Claim(
            "Without a switch the chosen merge is better than the chosen decay, each at its own rate and weight decay.",
            difference("merge", "decay", OLD),
            paper="without better text the merge only matches the decay",
        ),
        "2 frontier": Claim(
            "With the switch the merge is better on new text where both are equal on old text.",
            frontier("switched merge", "switched decay"),
            paper="63.95 against 62.67 (Table 1), old text not measured apart",
        ),
        "3 count": Claim(
            "In a window of 10% of the run 16 checkpoints are better than 4.",
            difference("merge 10% of 16", "merge 10% of 4", OLD),
            paper="63.63 against 63.36 (Table 4)",
        ),
        "4 substitutes": Claim(
            "The lower the rate at which a decay ends, the less a merge of its window still gains.",
            substitutes,
            paper="a merge after a decay adds nothing (Figure 5)",
            unit="bits per byte, minus the slope on the end rate",
        ),
        "5 half the rate": Claim(
            "Half the rate from the start of the window on, then a merge, is better than the decay.",
            difference("half, merge", "decay", OLD),
        ),
        "6 weight decay": Claim(
            "Where rate × weight decay × window is 1, weights that know the weight decay come nearer to the decay.",
            nearer("aware 5%", "plain 5%", "real 5%"),
        ),
        "7 exponent": Claim(
            "The merge's gain grows more slowly than the decay's over the map of the regime.",
            exponent(cells),
            unit="exponent minus 1",
        ),
    }
    return {name: Claim(c.statement, c.statistic, True, c.paper, c.unit) for name, c in claims.items()}
