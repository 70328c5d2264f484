"""How figures look: colours and markers of the curves, shared axes, and saving; used by ``plots.py``.

Okabe and Ito's colours, which colour-blind readers tell apart: each decay curve has one colour and one marker in every
figure; black is the constant-rate run without a merge. Full lines are merges, dashed lines real decays.
"""

import functools
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from wsm_jax.errors import UsageError
from wsm_jax.io.files import replacing

CURVE_COLOURS: dict[str, str] = {
    "linear": "#0072B2",
    "cosine": "#E69F00",
    "minus_sqrt": "#D55E00",
    "square": "#56B4E9",
    "exponential": "#332288",  # Tol's indigo, in place of a yellow that cannot be read on white
    "inverse_sqrt": "#CC79A7",
    "ema": "#009E73",
}
CURVE_MARKERS = dict(zip(CURVE_COLOURS, "osDv<>^", strict=True))
# Of real decays, so that they can be told apart in print too.
CURVE_DASHES: dict[str, Any] = {
    "linear": (0, (5, 2)),
    "cosine": (0, (2, 1.5)),
    "minus_sqrt": (0, (6, 1.5, 1, 1.5)),
    "square": (0, (8, 3)),
    "exponential": (0, (1, 1)),
    "inverse_sqrt": (0, (4, 1.5, 1, 1.5, 1, 1.5)),
    "ema": (0, (3, 4)),
}
CURVE_LABELS = {c: c for c in CURVE_COLOURS} | {"minus_sqrt": "1-sqrt", "inverse_sqrt": "inverse sqrt", "ema": "EMA"}
RAW, GREY = "#000000", "#666666"
WIDTH = 7.0  # inches

STYLE: dict[str, Any] = {
    **{"figure.constrained_layout.use": True, "svg.hashsalt": "wsm-jax", "svg.fonttype": "path"},
    **{f"{what}size": 9 for what in ("font.", "axes.label", "axes.title", "figure.title")},
    **{f"{what}size": 8 for what in ("xtick.label", "ytick.label", "legend.font")},
    **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.6},
    **{"lines.linewidth": 1.4, "lines.markersize": 4},
}

Numbers = Sequence[float] | np.ndarray
Points = Sequence[tuple[float, float]] | np.ndarray
P = ParamSpec("P")


def styled_figure(build: Callable[P, Figure]) -> Callable[P, Figure]:
    """Builds under our style over matplotlib's defaults, whatever the user's matplotlibrc says, and lays out once.

    The layout is then fixed: laid out again at every save it would move by roundings, and no two files be the same.
    """

    @functools.wraps(build)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.style.context(["default", STYLE]):
            figure = build(*args, **kwargs)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            return figure

    return styled


def save(figure: Figure, path_without_suffix: str | os.PathLike[str]) -> list[Path]:
    """Writes PATH.png (200 dpi) and PATH.svg, each atomically; the same figure gives the same bytes.

    Args:
      figure: one of ``plots.py``, or any other.
      path_without_suffix: a trailing ``.png`` or ``.svg`` is dropped; missing folders are made.

    Returns:
      The two paths, PNG first.
    """
    base = re.sub(r"\.(png|svg)$", "", os.fspath(path_without_suffix))
    paths = [Path(f"{base}.png"), Path(f"{base}.svg")]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path, metadata in zip(paths, ({"Software": None}, {"Date": None}), strict=True):
        with replacing(path) as temporary, matplotlib.style.context(["default", STYLE]):
            figure.savefig(temporary, format=path.suffix[1:], dpi=200, metadata=metadata)
    return paths


def inline_svg(figure: Figure, prefix: str) -> str:
    """The figure as SVG for a page that is light or dark: no background, and ``#rrggbb`` is the variable ``--xrrggbb``.

    Args:
      figure: as for :func:`save`.
      prefix: of its ids, so that a page may hold several figures.
    """
    text = io.StringIO()
    with matplotlib.style.context(["default", STYLE, {"svg.fonttype": "none"}]):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r'<metadata>.*?</metadata>|(?<=<g) id="[^"]*"', "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return re.sub(r": #([0-9a-f]{6})\b", r": var(--x\1, #\1)", svg)


def label_lines(
    axes: Axes, labels: Sequence[tuple[float, float, str, str]], at: float = 1.04, side: str = "left"
) -> None:
    """Names lines in place of a legend: a column of texts, each with a thin line to its point; none touches another.

    Args:
      axes: whose scales and limits are set.
      labels: (x, y, text, colour) of each point.
      at: where the column is, as a share of the width of the axes.
      side: of the texts that is there, ``left`` or ``right``.
    """
    axes.get_xlim()  # brings limits that are not set up to date
    place = (axes.transScale + axes.transLimits).transform
    ordered = sorted(((*place((x, y)), text, colour) for x, y, text, colour in labels), key=lambda entry: entry[1])
    wanted = np.clip([y for _, y, _, _ in ordered], 0, 1)
    figure = axes.get_figure(root=True)
    gap = 11 / (72 * 0.7 * (figure.get_figheight() if figure else 3))  # a line of text
    steps = gap * np.arange(len(ordered))
    up, down = np.maximum.accumulate(wanted - steps), np.minimum.accumulate((wanted - steps)[::-1])[::-1]
    for (x, _, text, colour), end, y in zip(ordered, wanted, (up + down) / 2 + steps, strict=True):
        axes.annotate(
            text,
            (min(x, 1.0), end),
            (at, y),
            xycoords="axes fraction",
            color=colour,
            fontsize=8,
            ha=side,
            va="center",
            annotation_clip=False,
            arrowprops={
                **{"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 2},
                "relpos": (0.0 if side == "left" else 1.0, 0.5),
            },
        )


def not_empty(name: str, values: Any) -> None:
    """Raises UsageError where there is nothing to draw."""
    if not len(values):
        raise UsageError(f"{name} must not be empty: there is nothing to draw")


def series(name: str, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a list of pairs or a tuple of two arrays, sorted by x, without the points that are not finite."""
    not_empty(name, values)
    pairs = np.asarray([np.asarray(value, dtype=np.float64) for value in values])
    if isinstance(values, tuple) and len(values) == 2:
        pairs = pairs.T
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise UsageError(f"{name} must be a list of (x, y) pairs, got shape {pairs.shape}")
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    not_empty(name, pairs)
    x, y = pairs[np.argsort(pairs[:, 0], kind="stable")].T
    return x, y


def curve_of(name: str) -> str:
    """The curve that a name holds as a word of its own ("merge linear-8x50", "1-sqrt"), or "" if none."""
    words = name.lower().replace("1-sqrt", "minus_sqrt")
    return next((c for c in CURVE_COLOURS if re.search(rf"(?<![a-z_]){c}(?![a-z_])", words)), "")


def label(name: str, pattern: str) -> str:
    """A bare curve name spelt out in ``pattern``; in any other name the curve is spelt as in all figures."""
    curve = curve_of(name)
    return (
        pattern.format(CURVE_LABELS[name]) if name in CURVE_LABELS else name.replace(curve, CURVE_LABELS.get(curve, ""))
    )


def look(name: str, *, real: bool = False, other: str = RAW) -> dict[str, Any]:
    """Colour and marker of the curve in a name, dashed and hollow for a real decay; ``other`` without a curve."""
    curve = curve_of(name)
    look = {"color": CURVE_COLOURS.get(curve, other), "marker": CURVE_MARKERS.get(curve, "o")}
    return look | ({"linestyle": CURVE_DASHES[curve], "markerfacecolor": "white"} if real and curve else {})


def steps_axis(axes: Axes, tokens_per_step: int | None = None, ticks: Sequence[float] | None = None) -> None:
    """Steps below and, if given, tokens above; the ticks are steps."""

    def letters(tokens: float, _: int | None = None) -> str:
        size, letter = next((p for p in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")) if tokens >= p[0]), (1, ""))
        return f"{tokens / size:.3g}{letter}"

    def locate(axis: Any, scale: float) -> None:
        nice = MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10])
        axis.set_major_locator(nice if ticks is None else FixedLocator([tick * scale for tick in ticks]))
        axis.set_minor_locator(NullLocator())

    axes.set_xlabel("step")
    locate(axes.xaxis, 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if tokens_per_step is not None:
        if tokens_per_step < 1:
            raise UsageError(f"tokens_per_step must be at least 1, got {tokens_per_step}")
        above = axes.secondary_xaxis(
            "top", functions=(lambda x: np.multiply(x, tokens_per_step), lambda x: np.divide(x, tokens_per_step))
        )
        above.set_xlabel("tokens")
        locate(above.xaxis, tokens_per_step)
        above.xaxis.set_major_formatter(FuncFormatter(letters))


def branch_line(axes: Axes, step: int | None) -> None:
    """A dotted vertical line where the decays start, if given."""
    if step is not None:
        axes.axvline(step, color=GREY, linewidth=0.9, linestyle=":", zorder=0.9, label="branch")


def around(losses: Any) -> tuple[float, float]:
    """Limits that leave a margin around the losses."""
    low, high = float(np.min(losses)), float(np.max(losses))
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin


def thin(x: np.ndarray, y: np.ndarray, most: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours, so that at most ``most`` points are left: more would be a solid block of ink."""
    starts = np.linspace(0, x.size, min(x.size, most), endpoint=False).astype(int)
    sizes = np.diff(np.append(starts, x.size))
    return np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes


def smooth(losses: np.ndarray) -> np.ndarray:
    """Centred moving average over a fifteenth of the points, weights falling to the sides, renormalised at the ends."""
    kernel = np.hanning(losses.size // 15 + 3)
    cut = kernel.size // 2
    sums = [np.convolve(v, kernel)[cut : cut + losses.size] for v in (losses, np.ones(losses.size))]
    return sums[0] / sums[1]
