"""The seven primary claims of experiments/standard.py, declared before the runs that decide them.

Each is a statistic of test losses in bits per byte that is below zero where the claim holds. Arms and choices are those
of experiments/standard.py; OLD is the text before the switch, NEW the text after it.
"""

from collections.abc import Sequence

import numpy as np

from wsm_jax.sweeps import Claim, difference
from wsm_jax.sweeps.contrasts import exponent, frontier, mean_loss, slope, within
from wsm_jax.sweeps.experiment import Loss, Statistic

OLD, NEW = ("novels", "peps"), ("textbooks", "mathematics", "solutions")
DURATIONS: tuple[str, ...] = ("2.5%", "5%", "10%", "20%")
END_RATES: tuple[float, ...] = (1.0, 0.5, 0.25, 0.0)


def lengths(name: str) -> list[str]:
    """The choice of each length of a merge or decay."""
    return [f"{name} {duration}" for duration in DURATIONS]


def nearer(first: str, second: str, target: str) -> Statistic:
    """How much nearer the loss of ``first`` is to that of ``target`` than the loss of ``second`` is."""

    def statistic(loss: Loss, measured: Sequence[str]) -> np.ndarray:
        own, other, goal = (mean_loss(loss, arm, measured) for arm in (first, second, target))
        return np.abs(own - goal) - np.abs(other - goal)

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
            within((*OLD, *NEW), frontier(*(lengths(f"switched {kind}") for kind in ("merge", "decay")), across=OLD)),
            paper="63.95 against 62.67 (Table 1), old text not measured apart",
        ),
        "3 count": Claim(
            "In a window of 10% of the run 16 checkpoints are better than 4.",
            difference("merge 10% of 16", "merge 10% of 4", OLD),
            paper="63.63 against 63.36 (Table 4)",
        ),
        "4 substitutes": Claim(
            "The lower the rate at which a decay ends, the less a merge of its window still gains.",
            within(OLD, slope({-end: (f"end {end:g}", f"end {end:g}, merged") for end in END_RATES})),
            paper="a merge after a decay adds nothing (Figure 5)",
            unit="bits per byte, minus the slope on the end rate",
        ),
        "5 half the rate": Claim(
            "Half the rate from the start of the window on, then a merge, is better than the decay.",
            difference("half, merge", "decay", OLD),
        ),
        "6 weight decay": Claim(
            "Where rate × weight decay × window is 1, weights that know the weight decay come nearer to the decay.",
            within(OLD, nearer("aware 5%", "plain 5%", "real 5%")),
        ),
        "7 exponent": Claim(
            "The merge's gain grows more slowly than the decay's over the map of the regime.",
            within(OLD, exponent([(f"{c} merge", f"{c} decay", f"{c} last") for c in cells])),
            unit="exponent minus 1",
        ),
    }
    return {name: Claim(c.statement, c.statistic, True, c.paper, c.unit) for name, c in claims.items()}
