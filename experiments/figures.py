"""Drawing of values by seed: a point is the mean over seeds, its bar the 95% interval."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.intervals import interval
from wsm_jax.reporting import plot_style

REAL, MERGED = "#D55E00", "#0072B2"  # colours of real decays and of merges


def line(axes: Axes, where: Sequence[float], values: Sequence[Sequence[float]], **look: Any) -> None:
    """A line with bars through the values by seed of each place; ``look`` is matplotlib's."""
    pairs = [interval(each) for each in values]
    means, halves = ([pair[i] for pair in pairs] for i in (0, 1))
    axes.errorbar(where, means, halves, **{"elinewidth": 0.6, **look})


@plot_style.styled_figure
def rows(values: Mapping[str, Sequence[float]], label: str) -> Figure:
    """A row for each name, those of real decays in their colour, the first of them continued as a line."""
    made = Figure(figsize=(plot_style.WIDTH * 0.8, 0.26 * len(values) + 0.8))
    axes = made.subplots()
    decays = [name for name in values if "real decay" in name]
    for place, (name, each) in enumerate(values.items()):
        mean, half = interval(each)
        colour = REAL if name in decays else MERGED
        axes.errorbar([mean], [place], xerr=[half], color=colour, marker="o", capsize=2)
    if decays:
        axes.axvline(interval(values[decays[0]])[0], color=REAL, linestyle="--", linewidth=0.9)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(6))  # more labels would touch
    axes.set(xlabel=label + ("\n(dashed: the first real decay)" if decays else ""))
    return made
