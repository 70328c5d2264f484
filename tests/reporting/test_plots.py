"""plots: the figures show the data they were given, and saving is atomic and repeatable."""

import itertools

import matplotlib
import matplotlib.axes
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from wsm_jax import DECAYS, merge_weights
from wsm_jax.errors import UsageError
from wsm_jax.reporting import effects, plot_style, plots
from wsm_jax.reporting.effects import Effect

NATS = "nats per token"
TRAIN = [(step, 3.0 + 50 / step) for step in range(10, 1001, 10)]
CONSTANT = [(step, 3.0 + 50 / step) for step in range(100, 1001, 100)]
DIFFERENCES = {
    "mean of 10": [(step, -0.05) for step, _ in CONSTANT],
    "decay, linear": [(800, 0.0), (900, -0.04), (1000, -0.1)],
    "decay, minus_sqrt": [(800, 0.0), (900, -0.06), (1000, -0.09)],
}
EFFECTS = [
    Effect("merge linear-4x50", -0.05, -0.06, -0.045, "better", "merges"),
    Effect("a name so long that it does not fit on one line of the figure", -0.0003, -0.001, 0.001, "equal", "merges"),
    Effect("decay linear", 0.1, 0.08, 0.11, "worse", "real decays"),
    Effect("one document", 0.02, group="real decays"),
]
WINDOWS = {"linear": [(50, -0.06), (100, -0.09), (200, -0.07)], "ema": [(50, -0.05), (100, -0.06), (200, -0.08)]}
REFERENCES = {"linear": -0.13}


def lines(axes: matplotlib.axes.Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.get_lines()}


def heights(axes: matplotlib.axes.Axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]


def labels(axes: matplotlib.axes.Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_every_curve_has_its_own_look():
    assert (
        list(plot_style.CURVE_COLOURS)
        == list(plot_style.CURVE_MARKERS)
        == list(plot_style.CURVE_LABELS)
        == list(DECAYS)
    )
    assert len(set(plot_style.CURVE_COLOURS.values()) | {plot_style.RAW}) == len(DECAYS) + 1
    assert len(set(plot_style.CURVE_MARKERS.values())) == len(DECAYS)


@pytest.mark.parametrize(
    ("name", "curve"),
    [("merge linear-8x50", "linear"), ("decay 1-sqrt", "minus_sqrt"), ("minus_sqrt-8x50-at-400", "minus_sqrt")]
    + [("EMA", "ema"), ("inverse_sqrt", "inverse_sqrt"), ("remaining", ""), ("constant", ""), ("bilinear", "")],
)
def test_curve_in_a_name(name: str, curve: str):
    assert plot_style.curve_of(name) == curve


def test_schedules():
    steps = np.arange(5)
    decay = [(step, 1e-3 * (1 - step / 4)) for step in range(5)]
    figure = plots.schedules_figure({"constant": (steps, np.full(5, 1e-3)), "linear": decay}, branch_step=2)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "learning rate")
    drawn = lines(axes)
    assert list(drawn) == ["constant", "linear decay", "branch"]
    assert labels(axes) == ["linear decay", "constant"] and not figure.legends
    np.testing.assert_array_equal(drawn["linear decay"], decay)
    np.testing.assert_array_equal(drawn["branch"][:, 0], [2, 2])
    # Two pairs in a list are points, whatever their shape says.
    drawn = lines(plots.schedules_figure({"linear": [(0, 1.0), (9, 0.5)]}).axes[0])
    np.testing.assert_array_equal(drawn["linear decay"], [(0, 1.0), (9, 0.5)])


@pytest.mark.parametrize("curves", [["minus_sqrt"], ["linear", "cosine", "minus_sqrt", "ema"], list(DECAYS)])
def test_weights(curves: list[str]):
    figure = plots.weights_figure(curves, 10)
    assert len(figure.axes) == 2 * len(curves)
    below = figure.axes[1::2]
    for curve, upper, lower in zip(curves, figure.axes[::2], below, strict=True):
        np.testing.assert_array_equal(heights(lower), merge_weights(curve, 10))
        assert {to_hex(bar.get_facecolor()).upper() for bar in lower.patches} == {plot_style.CURVE_COLOURS[curve]}
        (points,) = [line for line in upper.get_lines() if line.get_gid() == "update weights"]
        np.testing.assert_array_equal(points.get_xdata(), range(1, 10))
        np.testing.assert_allclose(np.asarray(points.get_ydata()), [DECAYS[curve](i / 10) for i in range(1, 10)])
    assert len({axes.get_ylim() for axes in below}) == 1
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert figure.axes[0].get_ylabel() == "decay $f(t)$,\nupdates $w_i$ (dots)"
    assert below[-1].get_xlabel() == "checkpoint, oldest first"
    if len(curves) == 1:
        assert [text.get_text() for text in below[0].texts][:2] == [".316", ".131"]  # as the paper prints them


def test_weights_given():
    means = merge_weights("cosine", 6, snapshot="mean")
    figure = plots.weights_figure(["linear", "cosine"], 6, {"cosine": means})
    assert [len(axes.patches) for axes in figure.axes[1::2]] == [6, 7]
    np.testing.assert_array_equal(heights(figure.axes[3]), means)
    assert len(plots.weights_figure(["linear"], 1).axes[1].patches) == 1


def test_weights_of_what_is_no_curve():
    figure = plots.weights_figure(["wma"], 3, {"wma": [1 / 6, 2 / 6, 3 / 6]})
    (points,) = figure.axes[0].get_lines()
    np.testing.assert_allclose(np.asarray(points.get_ydata()), [5 / 6, 3 / 6])


def test_loss():
    figure = plots.loss_figure(TRAIN, CONSTANT, DIFFERENCES, tokens_per_step=1000, branch_step=800)
    whole, beside = figure.axes
    assert (whole.get_xlabel(), whole.get_ylabel()) == ("step", f"loss ({NATS})")
    assert beside.get_ylabel() == f"difference ({NATS})"
    assert sorted(labels(whole)) == ["training, smoothed", "validation"]
    # From the lowest to the highest.
    assert labels(beside) == ["decay, linear", "decay, 1-sqrt", "mean of 10", "constant rate"] and not figure.legends
    np.testing.assert_array_equal(lines(whole)["validation"], CONSTANT)
    for name, points in DIFFERENCES.items():
        np.testing.assert_array_equal(lines(beside)[name], points)
    (above,) = whole.child_axes
    assert above.get_xlabel() == "tokens"
    figure.draw_without_rendering()
    np.testing.assert_allclose(above.get_xlim(), 1000 * np.asarray(whole.get_xlim()))
    assert whole.get_ylim()[1] < 3.0 + 50 / 100  # the start's losses are outside


def test_loss_of_a_run_without_branches():
    figure = plots.loss_figure([], [(100, 3.0)], {}, tokens_per_step=1)
    assert len(figure.axes) == 1 and labels(figure.axes[0]) == ["validation"]
    broken = plots.loss_figure(TRAIN, [*CONSTANT, (1100, float("nan"))], {}, tokens_per_step=1)
    np.testing.assert_array_equal(lines(broken.axes[0])["validation"], CONSTANT)


def test_labels_of_lines_that_end_together_do_not_touch():
    points = {name: [(0, 0.0), (1, -0.1 - place / 1e6)] for place, name in enumerate(DECAYS)}
    figure = plots.preview_figure(points, tokens_per_step=1)
    figure.draw_without_rendering()
    boxes = sorted((Text.get_window_extent(text) for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == len(DECAYS) + 1
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))


def test_smoothing_keeps_a_constant():
    for size in (1, 2, 7, 400):
        np.testing.assert_allclose(plot_style.smooth(np.full(size, 3.5)), np.full(size, 3.5))


def test_a_long_run_is_thinned():
    steps = np.arange(100_003)
    x, y = plot_style.thin(steps, steps * 2.0)
    assert x.size == 500 and np.all(np.diff(x) > 0)
    np.testing.assert_allclose(y, 2 * x)
    np.testing.assert_array_equal(plot_style.thin(steps[:7], steps[:7]), [steps[:7]] * 2)
    figure = plots.loss_figure(np.stack([steps, steps], axis=1), CONSTANT, {}, tokens_per_step=1)
    assert len(lines(figure.axes[0])["training, smoothed"]) == 500


def test_a_forest_plot():
    figure = effects.forest(EFFECTS, unit=NATS, smallest=0.002)
    (axes,) = figure.axes
    assert axes.get_xlabel() == NATS
    names = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
    assert names == [effect.name for effect in EFFECTS]
    assert labels(axes) == ["merges", "real decays", "← better", "worse →"]
    values = [label.get_text() for label in axes.child_axes[0].get_yticklabels()]
    assert values == [
        "−0.0500 [−0.0600, −0.0450] better",
        "−0.0003 [−0.0010, +0.0010] equal",
        "+0.1000 [+0.0800, +0.1100] worse",
        "+0.0200",
    ]
    places = axes.get_yticks()
    drawn = [np.asarray(line.get_xydata()).tolist() for line in axes.get_lines()]
    for effect, place in zip(EFFECTS, places, strict=True):
        assert [[effect.estimate, place]] in drawn
        assert ([[effect.low, place], [effect.high, place]] in drawn) == (effect.name != "one document")
    markers = {str(line.get_marker()) for line in axes.get_lines() if line.get_gid() == "estimate"}
    assert markers == {"o", "D", "s"}


def test_an_interval_far_wider_than_the_others_ends_in_arrows():
    wide = Effect("of two seeds", 0.01, -3.0, 3.02, "open")
    (axes,) = effects.forest([*EFFECTS, wide], unit=NATS).axes
    assert max(np.abs(axes.get_xlim())) < 0.5
    assert [m for m in (str(line.get_marker()) for line in axes.get_lines()) if m in "<>"] == ["<", ">"]
    (axes,) = effects.forest([wide], unit=NATS).axes
    assert axes.get_xlim()[1] > 3.02


def test_window():
    figure = plots.window_figure(WINDOWS, references=REFERENCES | {"cosine": float("nan")}, tokens_per_step=10)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "merge window (steps)" and axes.get_ylabel() == f"difference ({NATS})"
    drawn = lines(axes)
    np.testing.assert_array_equal(drawn["linear merge"], WINDOWS["linear"])
    np.testing.assert_array_equal(drawn["EMA merge"], WINDOWS["ema"])
    np.testing.assert_array_equal(drawn["real linear decay"][:, 1], [-0.13, -0.13])
    best = [np.asarray(line.get_xydata()).tolist()[0] for line in axes.get_lines() if line.get_gid() == "best"]
    assert best == [[100, -0.09], [200, -0.08]]
    assert labels(axes) == ["real linear decay", "EMA merge", "linear merge", "last checkpoint"] and not figure.legends


def test_window_spread_over_orders_of_magnitude_and_outliers():
    values = {"linear": [(50 * 2**i, -0.1 + 0.01 * i) for i in range(6)] + [(3200, 8.0)]}
    (axes,) = plots.window_figure(values, references=REFERENCES, tokens_per_step=10).axes
    assert axes.get_xscale() == "log" and axes.get_ylim()[1] < 0.5
    (axes,) = plots.window_figure({"linear": [(50, 3.0), (100, 9.0)]}, references={}, tokens_per_step=10).axes
    assert axes.get_ylim()[1] > 9


def test_previews_of_one_curve_are_told_apart():
    previews = {"linear-4x10": CONSTANT[3:], "linear-8x10": CONSTANT[5:], "minus_sqrt-4x10": CONSTANT[3:]}
    (axes,) = plots.preview_figure(previews, tokens_per_step=10).axes
    for name, points in previews.items():
        np.testing.assert_array_equal(lines(axes)[name], points)
    first, second, third = (line for line in axes.get_lines() if line.get_label() in previews)
    assert first.get_color() == second.get_color() != third.get_color()
    assert first.get_linestyle() != second.get_linestyle()


BAD = {  # what is said -> what it is said to
    "schedules must not be empty": lambda: plots.schedules_figure({}),
    "constant must not be empty": lambda: plots.schedules_figure({"constant": [(0, float("nan"))]}),
    r"constant must be a list of \(x, y\) pairs": lambda: plots.schedules_figure({"constant": np.zeros((1, 3))}),
    "curves must not be empty": lambda: plots.weights_figure([], 4),
    "unknown curve 'parabola'": lambda: plots.weights_figure(["linear", "parabola"], 4),
    "count must be a whole number": lambda: plots.weights_figure(["linear"], 0),
    "weights given for ema": lambda: plots.weights_figure(["linear"], 2, {"ema": [0.5, 0.5]}),
    "4 or 5 numbers are needed": lambda: plots.weights_figure(["linear"], 4, {"linear": [0.5, 0.5]}),
    "sum to 1.1, not to 1": lambda: plots.weights_figure(["linear"], 2, {"linear": [0.5, 0.6]}),
    "train and validation must not be empty": lambda: plots.loss_figure([], [], {}, tokens_per_step=1),
    "tokens_per_step must be at least 1": lambda: plots.loss_figure(TRAIN, CONSTANT, {}, tokens_per_step=0),
    "effects must not be empty": lambda: effects.forest([], unit=NATS),
    "cells must not be empty": lambda: effects.heat_map({}, rows="a", columns="b", unit=NATS),
    "0.0 is not between 0.1 and 0.2": lambda: Effect("a", 0.0, 0.1, 0.2),
    "0.0 is not between nan": lambda: Effect("a", 0.0, float("nan"), 0.2),
    "nan is not between": lambda: Effect("a", float("nan")),
    "previews must not be empty": lambda: plots.preview_figure({}, tokens_per_step=1),
    "values must not be empty": lambda: plots.window_figure({}, references={}, tokens_per_step=1),
}


@pytest.mark.parametrize("said", BAD)
def test_bad_input(said: str):
    with pytest.raises(UsageError, match=said):
        BAD[said]()


@pytest.mark.parametrize("suffix", ["", ".png", ".svg"])
def test_save(tmp_path, suffix: str):
    base = tmp_path / "new" / "loss-8x50.v1"
    figure = effects.forest(EFFECTS, unit=NATS)
    paths = plots.save(figure, f"{base}{suffix}")
    assert [path.name for path in paths] == ["loss-8x50.v1.png", "loss-8x50.v1.svg"]
    assert sorted(base.parent.iterdir()) == paths
    png, svg = (path.read_bytes() for path in paths)
    assert png.startswith(b"\x89PNG") and b"<svg" in svg and b"<dc:date>" not in svg


BUILD = {
    "schedules": lambda: plots.schedules_figure({"constant": CONSTANT, "linear": CONSTANT}, branch_step=500),
    "weights": lambda: plots.weights_figure(["linear", "ema"], 8),
    "loss": lambda: plots.loss_figure(TRAIN, CONSTANT, DIFFERENCES, tokens_per_step=10, branch_step=800),
    "forest": lambda: effects.forest(EFFECTS, unit=NATS),
    "heat map": lambda: effects.heat_map({("", "a", "b"): EFFECTS[0]}, rows="r", columns="c", unit=NATS),
    "preview": lambda: plots.preview_figure({"linear-4x10": CONSTANT}, tokens_per_step=10),
    "window": lambda: plots.window_figure(WINDOWS, references=REFERENCES, tokens_per_step=10),
}


FIRST, *MORE = BUILD  # all are saved by one function; the others are drawn again by make test-all


@pytest.mark.parametrize("name", [FIRST, *(pytest.param(name, marks=pytest.mark.integration) for name in MORE)])
def test_the_same_figure_gives_the_same_bytes(tmp_path, name: str):
    figure = BUILD[name]()
    first = [path.read_bytes() for path in plots.save(figure, tmp_path / "a")]
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "svg.hashsalt": "other"}):  # a user's matplotlibrc
        built_again = [path.read_bytes() for path in plots.save(BUILD[name](), tmp_path / "b")]
    assert built_again == first
    assert [path.read_bytes() for path in plots.save(figure, tmp_path / "a")] == first


def test_a_failed_save_leaves_the_old_files(tmp_path, monkeypatch):
    figure = effects.forest(EFFECTS, unit=NATS)
    before = [path.read_bytes() for path in plots.save(figure, tmp_path / "gains")]

    def half(path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        plots.save(figure, tmp_path / "gains")
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


def test_no_global_state(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.save(BUILD["window"](), tmp_path / "window")
    assert dict(matplotlib.rcParams) == before
