"""Figures of a run and its merges: plain data in, ``matplotlib.figure.Figure`` out; no pyplot, no global state.

Points that are not finite are left out. Every function raises UsageError for input that is empty, does not fit or names
no curve. Colours, markers and saving are in ``plot_style.py``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    decays, others = [], []
    start = 0 if branch_step is None else branch_step
    for name, values in schedules.items():
        steps, rates = style.series(name, values)
        look: dict[str, Any] = style.look(name, real=True) | {"marker": ""}
        text = style.label(name, "{} decay")
        axes.plot(steps, rates, label=text, linewidth=1.6, **look)
        # The decays end at one point: each is named where it has a quarter of its way behind it.
        x = start + (steps[-1] - start) / 4 if style.curve_of(name) else steps[-1]
        place = (float(x), float(np.interp(x, steps, rates)), text, look["color"])
        (decays if style.curve_of(name) else others).append(place)
    style.steps_axis(axes)
    axes.margins(x=0.02)
    axes.set(ylabel="learning rate", ylim=(0, None))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    style.branch_line(axes, branch_step)
    low, high = axes.get_xlim()
    style.label_lines(axes, decays, at=(start - low) / (high - low) - 0.03 if start else 0.5, side="right")
    style.label_lines(axes, others)
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
    figure = Figure(figsize=(4.6, 3.6) if single else (style.WIDTH, 0.2 + 2.5 * rows))
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
            title=style.label(curve, "{}"),
            ylim=(0, 1.05),
            yticks=(0, 0.5, 1),
            ylabel="" if column else "decay $f(t)$,\nupdates $w_i$ (dots)",
        )
        below.set(ylim=(0, 1.12 * top), ylabel="" if column else "checkpoints $c_j$")
        for axes in (above, below):
            axes.set(xlim=(-0.6, max(last + 0.6, count + 0.15)), xticks=range(0, last + 1, max(1, -(-last // 4))))
            axes.grid(False, axis="x")
            axes.tick_params(labelleft=column == 0, labelbottom=axes is below and index + columns >= len(curves))
        if index + columns >= len(curves):
            below.set_xlabel("checkpoint, oldest first")
    return figure


@style.styled_figure
def loss_figure(
    train: style.Points,
    validation: style.Points,
    differences: Mapping[str, style.Points],
    *,
    tokens_per_step: int,
    branch_step: int | None = None,
) -> Figure:
    """Loss of the constant run; beside it, what its merges and the real decays change at the same step.

    The limits leave out the high losses of the first fifth of the run.

    Args:
      train: (step, training loss) of the constant run; may be empty. More than 500 points are averaged in 500 blocks.
      validation: (step, validation loss) of the constant run; may be empty.
      differences: name -> (step, validation loss minus that of the constant run); may be empty.
      tokens_per_step: for the upper axis.
      branch_step: where the real decays branch off.
    """
    steps, losses = style.thin(*style.series("train", train)) if len(train) else (np.empty(0), np.empty(0))
    shown = {"validation": style.series("validation", validation)} if len(validation) else {}
    if steps.size:
        shown["training, smoothed"] = steps, style.smooth(losses)
    style.not_empty("train and validation", shown)
    figure = Figure(figsize=(style.WIDTH, 3.0))
    axes, *beside = figure.subplots(1, 2 if differences else 1, squeeze=False)[0]
    colours = {"validation": style.RAW, "training, smoothed": style.GREY}
    for name, (x, y) in shown.items():
        axes.plot(x, y, color=colours[name], label=name)
    axes.plot(steps, losses, color="#E4E4E4", linewidth=0.5, zorder=1, label="training")
    end = max(float(x[-1]) for x, _ in shown.values())
    axes.set_ylim(style.around(np.concatenate([y[x >= 0.2 * end] for x, y in shown.values()])))
    axes.set(ylabel="loss (nats per token)", xlim=(0, end))
    style.steps_axis(axes, tokens_per_step)
    # Named in the corner that a falling loss leaves empty.
    places = [(0.22 * end, float(np.interp(0.22 * end, x, y)), name, colours[name]) for name, (x, y) in shown.items()]
    style.label_lines(axes, places, at=0.96, side="right")
    for panel in beside:
        _along(panel, differences, tokens_per_step, branch_step)
    return figure


def _along(axes: Axes, differences: Mapping[str, style.Points], tokens: int, branch_step: int | None = None) -> None:
    """Differences to the run along it, each line named at its end; a curve's second window is another kind of line."""
    axes.axhline(0, color=style.RAW, linewidth=1)
    series = {name: style.series(name, points) for name, points in differences.items()}
    seen: list[str] = []
    labels = [(max(float(x[-1]) for x, _ in series.values()), 0.0, "constant rate", style.RAW)]
    for name, (x, y) in series.items():
        curve, real = style.curve_of(name), name.startswith("decay")
        look = style.look(name, real=real, other=style.CURVE_COLOURS["linear"])
        look |= {} if real else {"linestyle": ("-", "--", ":", "-.")[seen.count(curve) % 4]}
        seen.append(curve)
        axes.plot(x, y, label=name, markevery=-(-x.size // 25), **look)
        labels.append((float(x[-1]), float(y[-1]), style.label(name, "{}"), look["color"]))
    # Early merges average what still falls fast: the limits are those of the second half.
    axes.set_ylim(style.around(np.concatenate([[0.0], *(y[2 * x >= x[-1]] for x, y in series.values())])))
    axes.set_ylabel("difference (nats per token)")
    style.branch_line(axes, branch_step)
    style.steps_axis(axes, tokens)
    style.label_lines(axes, labels)


@style.styled_figure
def preview_figure(previews: Mapping[str, style.Points], *, tokens_per_step: int) -> Figure:
    """What the merges that were made along the run change at each step.

    Args:
      previews: name -> (step, validation loss minus the run's own); a name with a curve in it gets its colour.
      tokens_per_step: for the upper axis.
    """
    style.not_empty("previews", previews)
    figure = Figure(figsize=(style.WIDTH, 3.0))
    _along(figure.add_subplot(), previews, tokens_per_step)
    return figure


@style.styled_figure
def window_figure(
    values: Mapping[str, style.Points], *, references: Mapping[str, float], tokens_per_step: int
) -> Figure:
    """What merges change against the length of their window; the best window of each curve is filled.

    Differences far above the last checkpoint, as of windows that reach into the warm-up, leave the figure at its top.

    Args:
      values: curve (or another name) -> (window in steps, validation loss minus that of the last checkpoint).
      references: name -> the same difference of each real decay: horizontal lines.
      tokens_per_step: for the upper axis.
    """
    style.not_empty("values", values)
    references = {name: loss for name, loss in references.items() if np.isfinite(loss)}
    figure = Figure(figsize=(style.WIDTH, 3.4))
    axes = figure.add_subplot()
    series = {name: style.series(name, points) for name, points in values.items()}
    windows = np.unique(np.concatenate([x for x, _ in series.values()]))
    labels = [(float(windows[-1]), 0.0, "last checkpoint", style.RAW)]
    for name, (x, y) in series.items():
        best, look = int(np.argmin(y)), style.look(name, other=style.GREY)
        axes.plot(x, y, markerfacecolor="white", label=style.label(name, "{} merge"), **look)
        axes.plot(x[best], y[best], markersize=6, zorder=4, gid="best", **look)
        labels.append((float(x[-1]), float(y[-1]), style.label(name, "{} merge"), look["color"]))
    axes.axhline(0, color=style.RAW, linewidth=1)
    for name, loss in references.items():
        look: dict[str, Any] = style.look(name, real=True) | {"marker": ""}
        axes.axhline(loss, linewidth=1.1, zorder=1.5, label=style.label(name, "real {} decay"), **look)
        labels.append((float(windows[-1]), loss, style.label(name, "real {} decay"), look["color"]))
    differences = np.concatenate([[0.0], *(y for _, y in series.values()), list(references.values())])
    axes.set_ylim(style.around(np.minimum(differences, -differences.min() or differences.max())))
    ticks = None
    if windows[0] > 0 and windows[-1] >= 16 * windows[0]:
        axes.set_xscale("log", base=2)
        ticks = [windows[0]]
        for window in windows:  # labels need about a tenth of the width
            if window / ticks[-1] > (windows[-1] / windows[0]) ** 0.09:
                ticks.append(window)
    style.steps_axis(axes, tokens_per_step, ticks)
    axes.set(xlabel="merge window (steps)", ylabel="difference (nats per token)")
    style.label_lines(axes, labels)
    return figure
