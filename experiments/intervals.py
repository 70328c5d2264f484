"""Intervals over seeds."""

import math
import re
import statistics
from collections.abc import Sequence

from scipy import stats


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95% interval (Student's t over seeds); infinite for one value."""
    if len(values) < 2:
        return values[0], math.inf
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * spread


def shown(values: Sequence[float], digits: int = 4) -> str:
    """``mean ± half width`` with a sign, for differences."""
    mean, half = interval(values)
    return f"{mean:+.{digits}f} ± {half:.{digits}f}"


def share(gains: Sequence[float], of: Sequence[float]) -> str:
    """``mean ± half width``, over seeds, of how much of a gain others are; a dash where that is no gain in some seed.

    Gains are differences of losses: below zero.
    """
    if max(of) >= 0:
        return "–"
    return percent([a / b for a, b in zip(gains, of, strict=True)])


def percent(values: Sequence[float]) -> str:
    """``mean ± half width`` of shares."""
    mean, half = interval(values)
    return f"{mean:.0%} ± {half:.0%}"


CLAIMS = ["claim", "difference", "", "the paper"]  # header of a table of claims
HOLDS = (
    "The difference is paired by seed, with its 95% interval. *holds*: the whole interval is below zero. *does not "
    "hold*: the whole interval is above zero, so the opposite is true. *undecided*: it contains zero. The claims are "
    "not corrected for their number: a few come out by chance."
)


def claimed(claim: str, values: Sequence[float], paper: str = "–", digits: int = 4) -> list[str]:
    """A row of a table of claims; ``paper``: what the paper has for it, scores where higher is better."""
    mean, half = interval(values)
    close = round(abs(mean), digits) == round(half, digits)  # the verdict shows in one digit more
    return [claim, shown(values, digits + close), verdict(values), paper]


def verdict(values: Sequence[float]) -> str:
    """What the 95% interval of a difference says of ``below zero``: ``holds``, ``does not hold`` or ``undecided``."""
    mean, half = interval(values)
    return "holds" if mean + half < 0 else "does not hold" if mean - half > 0 else "undecided"


def general(claim: str) -> str:
    """A claim without what was chosen or counted in one place, which stands in parentheses."""
    return re.sub(r" \([^()]*\)", "", claim)
