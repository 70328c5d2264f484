"""Figures of a run and its merges: plain data in, ``matplotlib.figure.Figure`` out; no pyplot, no global state.

Points that are not finite are left out. Every function raises UsageError for input that is empty, does not fit or names
no curve. Colours, markers and saving are in ``plot_style.py``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from wsm_jax.core.coefficients import update_weights
from wsm_jax.core.decay import DECAYS
from wsm_jax.core.merge_weights import merge_weights
from wsm_jax.errors import UsageError
from wsm_jax.reporting import plot_style as style
from wsm_jax.reporting.plot_style import save as save


@style.styled_figure
def schedules_figure(
    schedules: Mapping[str, style.Points | tuple[style.Numbers, style.Numbers]], *, branch_step: int | None = None
) -> Figure:
    """Learning rate against step for the constant run (WSM) and the real decays: the paper's Figure 1 for this run.

    Args:
      schedules: name -> list of (step, rate), or a tuple (steps, rates). A name with a curve in it gets its colour.
      branch_step: where the decays leave the constant run; a vertical line.
    """
    style.not_empty("schedules", schedules)
    figure = Figure(figsize=(style.WIDTH, 2.6))
    axes = figure.add_subplot()
    for name, values in schedules.items():
        steps, rates = style.series(name, values)
        decaying = np.flatnonzero(steps > (0 if branch_step is None else branch_step)) if style.curve_of(name) else []
        look: dict[str, Any] = style.look(name, real=True) | (
            {"zorder": 2} if style.curve_of(name) else {"zorder": 3, "marker": ""}
        )
        marked = [int(i) for i in decaying[len(decaying) // 16 :: len(decaying) // 8 + 1]]
        axes.plot(steps, rates, label=style.label(name, "{} decay"), linewidth=1.6, markevery=marked, **look)
    style.steps_axis(axes)
    axes.margins(x=0.02)
    axes.set(ylabel="learning rate", ylim=(0, None))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    style.branch_line(axes, branch_step)
    figure.legend(loc="outside right upper")
    return figure


@style.styled_figure
def weights_figure(curves: Sequence[str], count: int, weights: Mapping[str, style.Numbers] | None = None) -> Figure:
    """Decay curves above the checkpoint weights that emulate them: the paper's Figure 2, one column a curve.

    The upper panel has f(t) over the window and the update weights w_i that the merge gives, w_i = f(i / count) for
    the plain map; f is dotted over the last interval, which no update weight covers. Below, one bar a checkpoint.

    Args:
      curves: names in DECAYS; others, e.g. ``wma``, need their ``weights`` and have no f.
      count: checkpoints in the window.
      weights: curve -> checkpoint weights to show instead of ``merge_weights(curve, count)``, oldest first: ``count``
        numbers, or count + 1 for interval means and the end point.
    """
    style.not_empty("curves", curves)
    if stray := set(weights or ()) - set(curves):
        raise UsageError(f"weights given for {', '.join(sorted(stray))}, but the curves are {', '.join(curves)}")
    given = weights or {}
    shown = {c: np.asarray(given[c] if c in given else merge_weights(c, count), dtype=np.float64) for c in curves}
    for curve, bars in shown.items():
        if bars.shape not in ((count,), (count + 1,)):
            raise UsageError(f"weights of {curve} have shape {bars.shape}; {count} or {count + 1} numbers are needed")
    columns = min(len(curves), 3 if len(curves) in (5, 6) else 4)
    rows, single = -(-len(curves) // columns), len(curves) == 1
    figure = Figure(figsize=(4.6, 3.6) if single else (style.WIDTH, 0.5 + 2.5 * rows))
    top, last = max(bars.max() for bars in shown.values()), max(bars.size for bars in shown.values()) - 1
    place = np.linspace(1e-6, count, 400)
    for index, curve in enumerate(curves):
        row, column = divmod(index, columns)
        above, below = (figure.add_subplot(2 * rows, columns, (2 * row + i) * columns + column + 1) for i in (0, 1))
        colour, bars = style.CURVE_COLOURS.get(curve, style.GREY), shown[curve]
        if curve in DECAYS:
            f, covered = DECAYS[curve](place / count), place <= bars.size - 1
            above.plot(place[covered], f[covered], color=colour)
            above.plot(place[~covered], f[~covered], color=colour, linestyle=":")
        if bars.size > 1:
            above.plot(
                range(1, bars.size), update_weights(bars), "o", color=colour, clip_on=False, gid="update weights"
            )
        container = below.bar(range(bars.size), bars, width=0.72, color=colour)
        if single and count <= 12:
            below.bar_label(container, fmt=lambda c: f"{c:.3f}".lstrip("0"), fontsize=7, padding=1)
        above.set(
            title=style.label(curve, "{}"), ylim=(0, 1.05), yticks=(0, 0.5, 1), ylabel="" if column else "rate / peak"
        )
        below.set(ylim=(0, 1.12 * top), ylabel="" if column else "weight $c_j$")
        for axes in (above, below):
            axes.set(xlim=(-0.6, max(last + 0.6, count + 0.15)), xticks=range(0, last + 1, max(1, -(-last // 4))))
            axes.grid(False, axis="x")
            axes.tick_params(labelleft=column == 0, labelbottom=axes is below and index + columns >= len(curves))
        if index + columns >= len(curves):
            below.set_xlabel("checkpoint, oldest first")
    handles: list[Any] = [
        Line2D([], [], color=style.GREY, label="update weight $w_i$", linestyle="", marker="o"),
        Patch(color=style.GREY, label="checkpoint weight $c_j$"),
    ]
    if not DECAYS.keys().isdisjoint(curves):
        handles.insert(0, Line2D([], [], color=style.GREY, label="decay curve $f(t)$"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@style.styled_figure
def loss_figure(
    train: style.Points,
    validation: Mapping[str, style.Points],
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
    style.not_empty("validation", validation)
    if merged_name is not None and merged_name not in validation:
        raise UsageError(f"merged_name {merged_name!r} is not among the validation curves: {', '.join(validation)}")
    series = {name: style.series(name, points) for name, points in validation.items()}
    steps, losses = style.thin(*style.series("train", train)) if len(train) else (np.empty(0), np.empty(0))
    looks = {name: style.look(name, real=name != merged_name) for name in series}
    if merged_name is not None:
        colour = style.CURVE_COLOURS[style.curve_of(merged_name) or "linear"]
        looks[merged_name] |= {"color": colour, "linewidth": 2.0, "zorder": 4}
    runs = [series[name] for name in series if name != merged_name and not style.curve_of(name)]
    forks = [(step, loss) for x, y in runs for step, loss in zip(x, y, strict=True) if step == branch_step]
    for name, (x, y) in series.items():
        decay = name != merged_name and style.curve_of(name)
        if decay and forks and x[0] > forks[0][0]:  # it starts where the run was
            series[name] = np.append(forks[0][0], x), np.append(forks[0][1], y)
    end = max(float(x[-1]) for x, _ in series.values())
    spans = [(0.0, 0.2 * end)]  # from where to draw, from where to choose the limits
    if branch_step is not None and branch_step < end:
        zoom = max(0.0, branch_step - 0.3 * (end - branch_step))
        spans.append((zoom, zoom))
    figure = Figure(figsize=(style.WIDTH, 3.6))
    panels = figure.subplots(1, len(spans), squeeze=False)[0]
    for axes, (start, settled) in zip(panels, spans, strict=True):
        for name, (x, y) in series.items():
            axes.plot(x, y, label=style.label(name, "real {} decay"), markevery=-(-x.size // 25), **looks[name])
        in_view = list(series.values())
        if len(train) and axes is panels[0]:
            in_view.append((steps, style.smooth(losses)))
            axes.plot(*in_view[-1], color="#9A9A9A", linewidth=1.0, zorder=1.5, label="training, smoothed")
            axes.plot(steps, losses, color="#DADADA", linewidth=0.5, zorder=1, label="training")
        style.branch_line(axes, branch_step)
        style.steps_axis(axes, tokens_per_step)
        side = 0.02 * (end - start) or 1.0
        axes.set(
            xlim=(start - side, end + side), ylim=style.around(np.concatenate([y[x >= settled] for x, y in in_view]))
        )
    panels[0].set_ylabel("validation loss (nats per token)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure


@style.styled_figure
def preview_figure(validation: style.Points, previews: Mapping[str, style.Points], *, tokens_per_step: int) -> Figure:
    """Validation loss along the run: of its parameters, and of the merges that were made on the way.

    Args:
      validation: (step, loss) of the run itself.
      previews: name -> (step, loss); a name with a curve in it gets its colour, further windows of it other lines.
      tokens_per_step: for the upper axis.
    """
    style.not_empty("previews", previews)
    figure = Figure(figsize=(style.WIDTH, 3.0))
    axes = figure.add_subplot()
    seen: list[str] = []
    for name, points in {"constant rate": validation, **previews}.items():
        curve = style.curve_of(name)
        line = ("-", "--", ":", "-.")[seen.count(curve) % 4]
        seen.append(curve)
        axes.plot(*style.series(name, points), label=name, linestyle=line, **style.look(name))
    losses = np.concatenate([style.series(name, points)[1] for name, points in previews.items()])
    axes.set_ylim(style.around(np.append(losses, style.series("validation", validation)[1][-1])))
    axes.set_ylabel("validation loss (nats per token)")
    style.steps_axis(axes, tokens_per_step)
    figure.legend(loc="outside right upper")
    return figure


@style.styled_figure
def gains_figure(rows: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Figure:
    """Paired differences to the raw checkpoint with their 95% intervals, one line a model, grouped.

    Args:
      rows: {"name", "group", "difference", "low", "high"} in nats per token, both ends NaN where they are not known;
        groups stay in order of first mention.
      title: above the figure.
    """
    style.not_empty("rows", rows)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if missing := {"name", "group", "difference", "low", "high"} - set(row):
            raise UsageError(f"row {row.get('name', row)!r} has no {', '.join(sorted(missing))}")
        unknown = np.isnan(row["low"]) and np.isnan(row["high"])
        if not unknown and not row["low"] <= row["difference"] <= row["high"]:
            raise UsageError(f"row {row['name']!r}: {row['difference']} is not between {row['low']} and {row['high']}")
        groups.setdefault(row["group"], []).append(row)
    lines = len(rows) + len(groups)
    figure = Figure(figsize=(style.WIDTH, 0.75 + 0.2 * lines))
    axes = figure.add_subplot()
    axes.axvline(0, color=style.RAW, linewidth=1, zorder=1)
    ticks: dict[int, tuple[str, str]] = {}
    line = -1
    for index, (group, members) in enumerate(groups.items()):
        line += 1  # the heading has a line of its own inside the axes, where no data can be
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        heading: dict[str, Any] = {"fontsize": 8, "fontweight": "bold", "va": "center", "bbox": box}
        axes.text(0.0, line, group, transform=axes.get_yaxis_transform(), **heading)
        for row in members:
            line += 1
            middle, colour = row["difference"], style.look(row["name"])["color"]
            reach = np.nan_to_num([[middle - row["low"]], [row["high"] - middle]])
            axes.errorbar(middle, line, xerr=reach, fmt="oDs^v"[index % 5], color=colour, markersize=4.5, capsize=2.5)
            ticks[line] = style.label(row["name"], "{}"), f"{middle:+.4f}".replace("-", "−")
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


@style.styled_figure
def window_figure(
    values: Mapping[str, style.Points], *, references: Mapping[str, float], tokens_per_step: int
) -> Figure:
    """Validation loss of merges against the length of their window; the best window of each curve is filled.

    Losses far above the references, as of windows that reach into the warm-up, leave the figure at its top.

    Args:
      values: curve (or another name) -> (window in steps, validation loss).
      references: name -> validation loss of the raw checkpoint and of each real decay: horizontal lines.
      tokens_per_step: for the upper axis.
    """
    style.not_empty("values", values)
    references = {name: loss for name, loss in references.items() if np.isfinite(loss)}
    figure = Figure(figsize=(style.WIDTH, 3.2))
    axes = figure.add_subplot()
    series = {name: style.series(name, points) for name, points in values.items()}
    for name, (x, y) in series.items():
        best, look = int(np.argmin(y)), style.look(name, other=style.GREY)
        axes.plot(x, y, markerfacecolor="white", label=style.label(name, "{} merge"), **look)
        axes.plot(x[best], y[best], markersize=6, zorder=4, gid="best", **look)
    axes.plot([], [], "o", color=style.GREY, markersize=6, label="best window")
    for name, loss in sorted(references.items(), key=lambda item: -item[1]):
        look: dict[str, Any] = style.look(name, real=True) | {"marker": ""}
        axes.axhline(loss, linewidth=1.1, zorder=1.5, label=style.label(name, "real {} decay"), **look)
    windows = np.unique(np.concatenate([x for x, _ in series.values()]))
    losses = np.concatenate([*(y for _, y in series.values()), list(references.values())])
    low, level = losses.min(), max(references.values(), default=np.inf)
    axes.set_ylim(style.around(np.minimum(losses, 2 * level - low) if level > low else losses))
    ticks = None
    if windows[0] > 0 and windows[-1] >= 16 * windows[0]:
        axes.set_xscale("log", base=2)
        ticks = [windows[0]]
        for window in windows:  # labels need about a tenth of the width
            if window / ticks[-1] > (windows[-1] / windows[0]) ** 0.09:
                ticks.append(window)
    style.steps_axis(axes, tokens_per_step, ticks)
    axes.set(xlabel="merge window (steps)", ylabel="validation loss (nats per token)")
    figure.legend(loc="outside right upper")
    return figure
