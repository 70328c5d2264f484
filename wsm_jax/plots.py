"""Figures of a run and its merges: plain data in, ``matplotlib.figure.Figure`` out; no pyplot, no global state.

Okabe and Ito's colours, which colour-blind readers tell apart: each decay curve has one colour and one marker in every
figure; black is the constant-rate run without a merge. Full lines are merges, dashed lines real decays. Points that are
not finite are left out. Every function raises UsageError for input that is empty, does not fit or names no curve.
"""

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from wsm_jax.coefficients import merge_weights, update_weights
from wsm_jax.decay import get_decay
from wsm_jax.errors import UsageError

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
CURVE_LABELS = {c: c for c in CURVE_COLOURS} | {"minus_sqrt": "1-sqrt", "inverse_sqrt": "inverse sqrt", "ema": "EMA"}
RAW, GREY = "#000000", "#666666"
WIDTH = 7.0  # inches

_STYLE: dict[str, Any] = {
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


def _styled(build: Callable[P, Figure]) -> Callable[P, Figure]:
    """Builds under our style over matplotlib's defaults, whatever the user's matplotlibrc says, and lays out once.

    The layout is then fixed: laid out again at every save it would move by roundings, and no two files be the same.
    """

    @functools.wraps(build)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.style.context(["default", _STYLE]):
            figure = build(*args, **kwargs)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            return figure

    return styled


@_styled
def schedules_figure(
    schedules: Mapping[str, Points | tuple[Numbers, Numbers]], *, branch_step: int | None = None
) -> Figure:
    """Learning rate against step for the constant run (WSM) and the real decays: the paper's Figure 1 for this run.

    Args:
      schedules: name -> list of (step, rate), or a tuple (steps, rates). A name with a curve in it gets its colour.
      branch_step: where the decays leave the constant run; a vertical line.
    """
    _not_empty("schedules", schedules)
    figure = Figure(figsize=(WIDTH, 2.6))
    axes = figure.add_subplot()
    for name, values in schedules.items():
        steps, rates = _series(name, values)
        decaying = np.flatnonzero(steps > (0 if branch_step is None else branch_step)) if _curve(name) else []
        look: dict[str, Any] = _look(name, real=True) | ({"zorder": 2} if _curve(name) else {"zorder": 3, "marker": ""})
        marked = [int(i) for i in decaying[len(decaying) // 16 :: len(decaying) // 8 + 1]]
        axes.plot(steps, rates, label=_label(name, "{} decay"), linewidth=1.6, markevery=marked, **look)
    _steps_axis(axes)
    axes.margins(x=0.02)
    axes.set(ylabel="learning rate", ylim=(0, None))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    _branch(axes, branch_step)
    figure.legend(loc="outside right upper")
    return figure


@_styled
def weights_figure(curves: Sequence[str], count: int, weights: Mapping[str, Numbers] | None = None) -> Figure:
    """Decay curves above the checkpoint weights that emulate them: the paper's Figure 2, one column a curve.

    The upper panel has f(t) over the window and the update weights w_i that the merge gives, w_i = f(i / count) for
    the plain map; f is dotted over the last interval, which no update weight covers. Below, one bar a checkpoint.

    Args:
      curves: names in DECAYS.
      count: checkpoints in the window.
      weights: curve -> checkpoint weights to show instead of ``merge_weights(curve, count)``, oldest first: ``count``
        numbers, or count + 1 for interval means and the end point.
    """
    _not_empty("curves", curves)
    if stray := set(weights or ()) - set(curves):
        raise UsageError(f"weights given for {', '.join(sorted(stray))}, but the curves are {', '.join(curves)}")
    shown = {c: np.asarray((weights or {}).get(c, merge_weights(c, count)), dtype=np.float64) for c in curves}
    for curve, bars in shown.items():
        if bars.shape not in ((count,), (count + 1,)):
            raise UsageError(f"weights of {curve} have shape {bars.shape}; {count} or {count + 1} numbers are needed")
    columns = min(len(curves), 3 if len(curves) in (5, 6) else 4)
    rows, single = -(-len(curves) // columns), len(curves) == 1
    figure = Figure(figsize=(4.6, 3.6) if single else (WIDTH, 0.5 + 2.5 * rows))
    top, last = max(bars.max() for bars in shown.values()), max(bars.size for bars in shown.values()) - 1
    place = np.linspace(1e-6, count, 400)
    for index, curve in enumerate(curves):
        row, column = divmod(index, columns)
        above, below = (figure.add_subplot(2 * rows, columns, (2 * row + i) * columns + column + 1) for i in (0, 1))
        colour, bars = CURVE_COLOURS.get(curve, GREY), shown[curve]
        f, covered = get_decay(curve)(place / count), place <= bars.size - 1
        above.plot(place[covered], f[covered], color=colour)
        above.plot(place[~covered], f[~covered], color=colour, linestyle=":")
        if bars.size > 1:
            above.plot(
                range(1, bars.size), update_weights(bars), "o", color=colour, clip_on=False, gid="update weights"
            )
        container = below.bar(range(bars.size), bars, width=0.72, color=colour)
        if single and count <= 12:
            below.bar_label(container, fmt=lambda c: f"{c:.3f}".lstrip("0"), fontsize=7, padding=1)
        above.set(title=_label(curve, "{}"), ylim=(0, 1.05), yticks=(0, 0.5, 1), ylabel="" if column else "rate / peak")
        below.set(ylim=(0, 1.12 * top), ylabel="" if column else "weight $c_j$")
        for axes in (above, below):
            axes.set(xlim=(-0.6, max(last + 0.6, count + 0.15)), xticks=range(0, last + 1, max(1, -(-last // 4))))
            axes.grid(False, axis="x")
            axes.tick_params(labelleft=column == 0, labelbottom=axes is below and index + columns >= len(curves))
        if index + columns >= len(curves):
            below.set_xlabel("checkpoint, oldest first")
    handles: list[Any] = [
        Line2D([], [], color=GREY, label="decay curve $f(t)$"),
        Line2D([], [], color=GREY, label="update weight $w_i$", linestyle="", marker="o"),
        Patch(color=GREY, label="checkpoint weight $c_j$"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@_styled
def loss_figure(
    train: Points,
    validation: Mapping[str, Points],
    *,
    tokens_per_step: int,
    merged_name: str | None = None,
    branch_step: int | None = None,
) -> Figure:
    """Loss of the constant run, of its merges over time ("what an anneal would give now") and of the real decays.

    The whole run and, with ``branch_step``, beside it the part from shortly before the branch on. The limits leave out
    the high losses of the first fifth of the run.

    Args:
      train: (step, training loss) of the constant run; may be empty. More than 500 points are averaged in 500 blocks.
      validation: name -> (step, validation loss). A name with a curve in it is a real decay, another one a run.
      tokens_per_step: for the upper axis.
      merged_name: which of ``validation`` is the merged model's curve.
      branch_step: where the real decays branch off.
    """
    _not_empty("validation", validation)
    if merged_name is not None and merged_name not in validation:
        raise UsageError(f"merged_name {merged_name!r} is not among the validation curves: {', '.join(validation)}")
    series = {name: _series(name, points) for name, points in validation.items()}
    steps, losses = _thin(*_series("train", train)) if len(train) else (np.empty(0), np.empty(0))
    looks = {name: _look(name, real=name != merged_name) for name in series}
    if merged_name is not None:
        colour = CURVE_COLOURS[_curve(merged_name) or "linear"]
        looks[merged_name] |= {"color": colour, "linewidth": 2.0, "zorder": 4}
    runs = [series[name] for name in series if name != merged_name and not _curve(name)]
    forks = [(step, loss) for x, y in runs for step, loss in zip(x, y, strict=True) if step == branch_step]
    for name, (x, y) in series.items():
        if name != merged_name and _curve(name) and forks and x[0] > forks[0][0]:  # a decay starts where the run was
            series[name] = np.append(forks[0][0], x), np.append(forks[0][1], y)
    end = max(float(x[-1]) for x, _ in series.values())
    spans = [(0.0, 0.2 * end)]  # from where to draw, from where to choose the limits
    if branch_step is not None and branch_step < end:
        zoom = max(0.0, branch_step - 0.3 * (end - branch_step))
        spans.append((zoom, zoom))
    figure = Figure(figsize=(WIDTH, 3.6))
    panels = figure.subplots(1, len(spans), squeeze=False)[0]
    for axes, (start, settled) in zip(panels, spans, strict=True):
        for name, (x, y) in series.items():
            axes.plot(x, y, label=_label(name, "real {} decay"), markevery=-(-x.size // 25), **looks[name])
        in_view = list(series.values())
        if len(train) and axes is panels[0]:
            in_view.append((steps, _smooth(losses)))
            axes.plot(*in_view[-1], color="#9A9A9A", linewidth=1.0, zorder=1.5, label="training, smoothed")
            axes.plot(steps, losses, color="#DADADA", linewidth=0.5, zorder=1)
        _branch(axes, branch_step)
        _steps_axis(axes, tokens_per_step)
        side = 0.02 * (end - start) or 1.0
        axes.set(xlim=(start - side, end + side), ylim=_around(np.concatenate([y[x >= settled] for x, y in in_view])))
    panels[0].set_ylabel("loss (nats per token)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure


@_styled
def gains_figure(rows: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Figure:
    """Paired differences to the raw checkpoint with their 95% intervals, one line a model, grouped.

    Args:
      rows: {"name", "group", "difference", "low", "high"} in nats per token; groups stay in order of first mention.
      title: above the figure.
    """
    _not_empty("rows", rows)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if missing := {"name", "group", "difference", "low", "high"} - set(row):
            raise UsageError(f"row {row.get('name', row)!r} has no {', '.join(sorted(missing))}")
        if not row["low"] <= row["difference"] <= row["high"]:
            raise UsageError(f"row {row['name']!r}: {row['difference']} is not between {row['low']} and {row['high']}")
        groups.setdefault(row["group"], []).append(row)
    lines = len(rows) + len(groups)
    figure = Figure(figsize=(WIDTH, 0.75 + 0.2 * lines))
    axes = figure.add_subplot()
    axes.axvline(0, color=RAW, linewidth=1, zorder=1)
    ticks: dict[int, tuple[str, str]] = {}
    line = -1
    for index, (group, members) in enumerate(groups.items()):
        line += 1  # the heading has a line of its own inside the axes, where no data can be
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        heading: dict[str, Any] = {"fontsize": 8, "fontweight": "bold", "va": "center", "bbox": box}
        axes.text(0.0, line, group, transform=axes.get_yaxis_transform(), **heading)
        for row in members:
            line += 1
            middle, colour = row["difference"], _look(row["name"])["color"]
            reach = [[middle - row["low"]], [row["high"] - middle]]
            axes.errorbar(middle, line, xerr=reach, fmt="oDs^v"[index % 5], color=colour, markersize=4.5, capsize=2.5)
            ticks[line] = row["name"], f"{middle:+.4f}".replace("-", "−")
    axes.set(ylim=(lines - 0.4, -0.6), xlabel="difference to the raw checkpoint (nats per token; negative is better)")
    axes.set_yticks(list(ticks), [name for name, _ in ticks.values()])
    right = axes.secondary_yaxis("right")
    right.set_yticks(list(ticks), [value for _, value in ticks.values()])
    for side in (axes, right):
        side.tick_params(axis="y", length=0)
        side.spines[["left", "right"]].set_visible(False)
    axes.grid(False, axis="y")
    if title:
        figure.suptitle(title)
    return figure


@_styled
def window_figure(values: Mapping[str, Points], *, references: Mapping[str, float], tokens_per_step: int) -> Figure:
    """Validation loss of merges against the length of their window; the best window of each curve is filled.

    Losses far above the references, as of windows that reach into the warm-up, leave the figure at its top.

    Args:
      values: curve (or another name) -> (window in steps, validation loss).
      references: name -> validation loss of the raw checkpoint and of each real decay: horizontal lines.
      tokens_per_step: for the upper axis.
    """
    _not_empty("values", values)
    references = {name: loss for name, loss in references.items() if np.isfinite(loss)}
    figure = Figure(figsize=(WIDTH, 3.2))
    axes = figure.add_subplot()
    series = {name: _series(name, points) for name, points in values.items()}
    for name, (x, y) in series.items():
        best, look = int(np.argmin(y)), _look(name, other=GREY)
        axes.plot(x, y, markerfacecolor="white", label=_label(name, "{} merge"), **look)
        axes.plot(x[best], y[best], markersize=6, zorder=4, gid="best", **look)
    axes.plot([], [], "o", color=GREY, markersize=6, label="best window")
    for name, loss in sorted(references.items(), key=lambda item: -item[1]):
        look: dict[str, Any] = _look(name, real=True) | {"marker": ""}
        axes.axhline(loss, linewidth=1.1, zorder=1.5, label=_label(name, "real {} decay"), **look)
    windows = np.unique(np.concatenate([x for x, _ in series.values()]))
    losses = np.concatenate([*(y for _, y in series.values()), list(references.values())])
    low, level = losses.min(), max(references.values(), default=np.inf)
    axes.set_ylim(_around(np.minimum(losses, 2 * level - low) if level > low else losses))
    ticks = None
    if windows[0] > 0 and windows[-1] >= 16 * windows[0]:
        axes.set_xscale("log", base=2)
        ticks = [windows[0]]
        for window in windows:  # labels need about a tenth of the width
            if window / ticks[-1] > (windows[-1] / windows[0]) ** 0.09:
                ticks.append(window)
    _steps_axis(axes, tokens_per_step, ticks)
    axes.set(xlabel="merge window (steps)", ylabel="validation loss (nats per token)")
    figure.legend(loc="outside right upper")
    return figure


def save(figure: Figure, path_without_suffix: str | os.PathLike[str]) -> list[Path]:
    """Writes PATH.png (200 dpi) and PATH.svg, each atomically; the same figure gives the same bytes.

    Args:
      figure: what one of the functions above returned.
      path_without_suffix: a trailing ``.png`` or ``.svg`` is dropped; missing folders are made.

    Returns:
      The two paths, PNG first.
    """
    base = re.sub(r"\.(png|svg)$", "", os.fspath(path_without_suffix))
    paths = [Path(f"{base}.png"), Path(f"{base}.svg")]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path, metadata in zip(paths, ({"Software": None}, {"Date": None}), strict=True):
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with matplotlib.style.context(["default", _STYLE]):
                figure.savefig(temporary, format=path.suffix[1:], dpi=200, metadata=metadata)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return paths


def _not_empty(name: str, values: Any) -> None:
    if not len(values):
        raise UsageError(f"{name} must not be empty: there is nothing to draw")


def _series(name: str, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a list of pairs or a tuple of two arrays, sorted by x, without the points that are not finite."""
    _not_empty(name, values)
    pairs = np.asarray([np.asarray(value, dtype=np.float64) for value in values])
    if isinstance(values, tuple) and len(values) == 2:
        pairs = pairs.T
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise UsageError(f"{name} must be a list of (x, y) pairs, got shape {pairs.shape}")
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    _not_empty(name, pairs)
    x, y = pairs[np.argsort(pairs[:, 0], kind="stable")].T
    return x, y


def _curve(name: str) -> str:
    """The curve that a name holds as a word of its own ("merge linear-8x50", "1-sqrt"), or "" if none."""
    words = name.lower().replace("1-sqrt", "minus_sqrt")
    return next((c for c in CURVE_COLOURS if re.search(rf"(?<![a-z_]){c}(?![a-z_])", words)), "")


def _label(name: str, pattern: str) -> str:
    """A bare curve name spelt out in ``pattern``; any other name as it is."""
    return pattern.format(CURVE_LABELS[name]) if name in CURVE_LABELS else name


def _look(name: str, *, real: bool = False, other: str = RAW) -> dict[str, Any]:
    """Colour and marker of the curve in a name, dashed and hollow for a real decay; ``other`` without a curve."""
    curve = _curve(name)
    look = {"color": CURVE_COLOURS.get(curve, other), "marker": CURVE_MARKERS.get(curve, "o")}
    return look | ({"linestyle": "--", "markerfacecolor": "white"} if real and curve else {})


def _steps_axis(axes: Axes, tokens_per_step: int | None = None, ticks: Sequence[float] | None = None) -> None:
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


def _branch(axes: Axes, step: int | None) -> None:
    if step is not None:
        axes.axvline(step, color=GREY, linewidth=0.9, linestyle=":", zorder=0.9, label="branch")


def _around(losses: Any) -> tuple[float, float]:
    """Limits that leave a margin around the losses."""
    low, high = float(np.min(losses)), float(np.max(losses))
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin


def _thin(x: np.ndarray, y: np.ndarray, most: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours, so that at most ``most`` points are left: more would be a solid block of ink."""
    starts = np.linspace(0, x.size, min(x.size, most), endpoint=False).astype(int)
    sizes = np.diff(np.append(starts, x.size))
    return np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes


def _smooth(losses: np.ndarray) -> np.ndarray:
    """Centred moving average over a fifteenth of the points, weights falling to the sides, renormalised at the ends."""
    kernel = np.hanning(losses.size // 15 + 3)
    cut = kernel.size // 2
    sums = [np.convolve(v, kernel)[cut : cut + losses.size] for v in (losses, np.ones(losses.size))]
    return sums[0] / sums[1]
