"""Figures of differences: estimates with their intervals, and heat maps over two axes; labels in place of legends."""

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from wsm_jax.errors import UsageError
from wsm_jax.reporting import plot_style as style
from wsm_jax.reporting.tables import signed

# Verdict -> colour and marker, told apart without colours too.
VERDICTS = {"better": ("#0072B2", "o"), "worse": ("#D55E00", "s"), "equal": ("#009E73", "D"), "open": ("#666666", "o")}
NAME_WIDTH = 46  # characters of a name on one line
# Nearly the blue and orange of the verdicts, which a dark page makes lighter: cells stay as they are.
_BLUE_TO_ORANGE = LinearSegmentedColormap.from_list("effect", ["#0071B1", "#F7F7F7", "#D45D00"])


@dataclasses.dataclass(frozen=True)
class Effect:
    """A difference or another statistic that is below zero where the first is better.

    Attributes:
      name: what it is of.
      estimate: its value.
      low: lower end of its 95% interval; NaN: not known.
      high: upper end.
      verdict: ``better``, ``worse``, ``equal``, ``open``, or "" where nothing was decided.
      group: the heading it stands under; groups stay in order of first mention.
    """

    name: str
    estimate: float
    low: float = math.nan
    high: float = math.nan
    verdict: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        """Refuses what cannot be drawn."""
        known = not (math.isnan(self.low) and math.isnan(self.high))
        if not math.isfinite(self.estimate) or (known and not self.low <= self.estimate <= self.high):
            raise UsageError(f"{self.name!r}: {self.estimate} is not between {self.low} and {self.high}")

    @property
    def look(self) -> dict[str, Any]:
        """Colour and marker; hollow where it is open."""
        colour, marker = VERDICTS.get(self.verdict, (style.RAW, "o"))
        return {"color": colour, "marker": marker, "markerfacecolor": "white" if self.verdict == "open" else colour}


@style.styled_figure
def forest(
    effects: Sequence[Effect],
    *,
    unit: str,
    smallest: float = 0.0,
    sides: tuple[str, str] = ("better", "worse"),
) -> Figure:
    """Estimates with their intervals, one line each: the name to the left, the figures and the verdict to the right.

    An interval that is far wider than the others leaves the figure; its end is an arrow.

    Args:
      effects: what is drawn, from top to bottom.
      unit: of the axis.
      smallest: effects within it are called equal; a grey band.
      sides: what it means to be below and above zero.
    """
    style.not_empty("effects", effects)
    figure = Figure(figsize=(style.WIDTH, 1.0))
    axes = figure.add_subplot()
    limits = _limits(effects, smallest)
    axes.axvspan(-smallest, smallest, color="#ECECEC", linewidth=0, zorder=0)
    axes.axvline(0, color=style.RAW, linewidth=1, zorder=1)
    place, ticks, group = 0.0, [], ""
    for effect in effects:
        if effect.group != group:
            group = effect.group
            axes.text(-0.06, place + 0.5, group, transform=axes.get_yaxis_transform(), ha="right", **_HEADING)
            place += 1.15
        name = "\n".join(textwrap.wrap(effect.name, NAME_WIDTH)) or " "
        height = name.count("\n") + 1
        middle = place + height / 2
        _interval(axes, effect, middle, limits)
        ticks.append((middle, name, _figures(effect)))
        place += height + 0.35
    axes.set(xlim=limits, ylim=(place, -0.1), xlabel=unit)
    axes.set_yticks([middle for middle, _, _ in ticks], [name for _, name, _ in ticks])
    right = axes.secondary_yaxis("right")
    right.set_yticks([middle for middle, _, _ in ticks], [text for _, _, text in ticks])
    for label, effect in zip(right.get_yticklabels(), effects, strict=True):
        label.set_color(effect.look["color"])
    for side in (axes, right):
        side.tick_params(axis="y", length=0, pad=9)  # room for the arrows
        side.spines[["left", "right"]].set_visible(False)
    axes.grid(False, axis="y")
    axes.locator_params(axis="x", nbins=5)
    above: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 8}
    axes.annotate(f"← {sides[0]}", (0, 1), (-5, 3), ha="right", color=VERDICTS["better"][0], **above)
    axes.annotate(f"{sides[1]} →", (0, 1), (5, 3), ha="left", color=VERDICTS["worse"][0], **above)
    figure.set_figheight(0.75 + 0.15 * place)
    return figure


_HEADING: dict[str, Any] = {"fontsize": 8, "fontweight": "bold", "va": "center"}


def _limits(effects: Sequence[Effect], smallest: float) -> tuple[float, float]:
    """Limits of the axis, with zero inside: all estimates, and the ends that are not far beyond the others."""
    estimates = [e.estimate for e in effects]
    ends = np.array([end for e in effects for end in (e.low, e.high) if math.isfinite(end)] or estimates)
    reach = 1.6 * max(2 * smallest, np.abs(estimates).max(), np.quantile(np.abs(ends), 0.75, method="lower"))
    shown = np.clip([*ends, *estimates, -smallest, smallest], -reach, reach)
    low, high = min(shown.min(), 0), max(shown.max(), 0)
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def _interval(axes: Axes, effect: Effect, place: float, limits: tuple[float, float]) -> None:
    look = effect.look
    if math.isfinite(effect.low) or math.isfinite(effect.high):
        ends = np.clip([effect.low, effect.high], *limits)
        axes.plot(ends, [place, place], color=look["color"], linewidth=1.6, solid_capstyle="butt", zorder=2)
        for end, shown, arrow in zip((effect.low, effect.high), ends, "<>", strict=True):
            if end != shown:
                axes.plot(shown, place, arrow, color=look["color"], markersize=5, clip_on=False)
    axes.plot(effect.estimate, place, linestyle="", markersize=5, zorder=3, gid="estimate", **look)


def _figures(effect: Effect) -> str:
    return " ".join(filter(None, (signed(effect.estimate, effect.low, effect.high), effect.verdict)))


@style.styled_figure
def heat_map(cells: Mapping[tuple[str, str, str], Effect], *, rows: str, columns: str, unit: str) -> Figure:
    """Effects over two axes, their figures in the cells; one map for each value of a third; the lowest is framed.

    Args:
      cells: (panel, row, column) -> effect; values stay in order of first mention; brackets: open or equal.
      rows: name of the vertical axis.
      columns: name of the horizontal axis.
      unit: of the effects.
    """
    style.not_empty("cells", cells)
    panels, ys, xs = ([*dict.fromkeys(key[i] for key in cells)] for i in range(3))
    across = min(len(panels), 3 if len(xs) <= 4 else 2 if len(xs) <= 7 else 1)
    down = -(-len(panels) // across)
    width = style.WIDTH if across > 1 else min(style.WIDTH, 1.6 + 0.75 * len(xs))
    figure = Figure(figsize=(width, 0.35 + down * (0.75 + 0.3 * len(ys))))
    reach = max(abs(effect.estimate) for effect in cells.values()) or 1.0
    lowest = min(cells, key=lambda key: cells[key].estimate)
    all_axes = [*figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat]
    for panel, axes in zip(panels, all_axes, strict=False):
        for key in (key for key in cells if key[0] == panel):
            _cell(axes, cells[key], ys.index(key[1]), xs.index(key[2]), reach, frame=key == lowest)
        axes.set(title=panel, xlim=(0, len(xs)), ylim=(len(ys), 0))
        axes.set_xticks(np.arange(len(xs)) + 0.5, xs)
        axes.set_yticks(np.arange(len(ys)) + 0.5, ys)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(False)
    for place in range(len(panels), len(all_axes)):
        all_axes[place].set_visible(False)
        all_axes[place - across].tick_params(labelbottom=True)  # the last of its column
    figure.supxlabel(columns, fontsize=9)
    figure.supylabel(rows, fontsize=9)
    figure.suptitle(f"{unit}: blue is better, orange worse", fontsize=9)
    return figure


def _cell(axes: Axes, effect: Effect, row: int, column: int, reach: float, *, frame: bool) -> None:
    colour = to_hex(_BLUE_TO_ORANGE(Normalize(-reach, reach)(effect.estimate)))
    edge: dict[str, Any] = (
        {"edgecolor": style.RAW, "linewidth": 1.8, "zorder": 3} if frame else {"edgecolor": "white", "linewidth": 1}
    )
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, **edge))
    text = signed(effect.estimate, digits=3)
    text = f"({text})" if effect.verdict in ("open", "equal") else text
    # Not the black and white that a dark page turns round: the cell stays as it is.
    ink = "#FDFDFD" if abs(effect.estimate) > 0.75 * reach else "#111111"
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7.5, color=ink, zorder=4)
