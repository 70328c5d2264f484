"""plots: the figures show the data they were given, and saving is atomic and repeatable."""

import matplotlib
import matplotlib.axes
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from wsm_jax import DECAYS, merge_weights
from wsm_jax.errors import UsageError
from wsm_jax.reporting import plot_style, plots

NATS = "nats per token"
TRAIN = [(step, 3.0 + 50 / step) for step in range(10, 1001, 10)]
CONSTANT = [(step, 3.0 + 50 / step) for step in range(100, 1001, 100)]
VALIDATION = {
    "constant": CONSTANT,
    "merged": [(step, loss - 0.05) for step, loss in CONSTANT],
    "linear": [(step, 2.9) for step in (900, 1000)],
    "minus_sqrt": [(step, 2.91) for step in (900, 1000)],
}
GAINS = [
    {"name": "merge linear-4x50", "group": "merges", "difference": -0.05, "low": -0.06, "high": -0.045},
    {"name": "merge 1-sqrt-4x50", "group": "merges", "difference": -0.03, "low": -0.04, "high": 0.01},
    {"name": "decay linear", "group": "real decays", "difference": -0.1, "low": -0.11, "high": -0.08},
]
WINDOWS = {"linear": [(50, 1.25), (100, 1.22), (200, 1.24)], "ema": [(50, 1.26), (100, 1.25), (200, 1.23)]}
REFERENCES = {"raw checkpoint": 1.31, "linear": 1.18}


def lines(axes: matplotlib.axes.Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.get_lines()}


def heights(axes: matplotlib.axes.Axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


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
    assert list(drawn) == ["constant", "linear decay", "branch"] == legend(figure)
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
    assert figure.axes[0].get_ylabel() == "rate / peak"
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
    assert legend(figure) == ["update weight $w_i$", "checkpoint weight $c_j$"]


def test_loss():
    figure = plots.loss_figure(TRAIN, VALIDATION, tokens_per_step=1000, merged_name="merged", branch_step=800)
    whole, zoom = figure.axes
    assert (whole.get_xlabel(), whole.get_ylabel()) == ("step", f"validation loss ({NATS})")
    expected = ["constant", "merged", "real linear decay", "real 1-sqrt decay", "branch"]
    expected += ["training, smoothed", "training"]
    assert sorted(legend(figure)) == sorted(expected)
    for axes in (whole, zoom):
        drawn = lines(axes)
        np.testing.assert_array_equal(drawn["constant"], CONSTANT)
        np.testing.assert_array_equal(drawn["merged"], VALIDATION["merged"])
        # The decay is drawn from the checkpoint it branched from.
        np.testing.assert_array_equal(drawn["real linear decay"], [CONSTANT[7], *VALIDATION["linear"]])
        (above,) = axes.child_axes
        assert above.get_xlabel() == "tokens"
    figure.draw_without_rendering()
    np.testing.assert_allclose(whole.child_axes[0].get_xlim(), 1000 * np.asarray(whole.get_xlim()))
    assert whole.get_ylim()[1] < 3.0 + 50 / 100  # the start's losses are outside
    assert 700 < zoom.get_xlim()[0] < 800 and zoom.get_ylim()[1] < whole.get_ylim()[1]


def test_loss_of_a_run_without_branches():
    figure = plots.loss_figure([], {"constant": [(100, 3.0)]}, tokens_per_step=1)
    assert len(figure.axes) == 1 and legend(figure) == ["constant"]
    broken = plots.loss_figure(TRAIN, {"constant": [*CONSTANT, (1100, float("nan"))]}, tokens_per_step=1)
    np.testing.assert_array_equal(lines(broken.axes[0])["constant"], CONSTANT)


def test_smoothing_keeps_a_constant():
    for size in (1, 2, 7, 400):
        np.testing.assert_allclose(plot_style.smooth(np.full(size, 3.5)), np.full(size, 3.5))


def test_a_long_run_is_thinned():
    steps = np.arange(100_003)
    x, y = plot_style.thin(steps, steps * 2.0)
    assert x.size == 500 and np.all(np.diff(x) > 0)
    np.testing.assert_allclose(y, 2 * x)
    np.testing.assert_array_equal(plot_style.thin(steps[:7], steps[:7]), [steps[:7]] * 2)
    figure = plots.loss_figure(np.stack([steps, steps], axis=1), VALIDATION, tokens_per_step=1)
    assert len(lines(figure.axes[0])["training, smoothed"]) == 500


def test_gains():
    figure = plots.gains_figure(GAINS, title="a title")
    (axes,) = figure.axes
    assert axes.get_xlabel() == f"difference to the raw checkpoint ({NATS}; negative is better)"
    assert [label.get_text() for label in axes.get_yticklabels()] == [row["name"] for row in GAINS]
    assert [text.get_text() for text in axes.texts] == ["merges", "real decays"]
    assert len(axes.containers) == len(GAINS)
    for row, container in zip(GAINS, axes.containers, strict=True):
        point, _, (bar,) = container.lines  # type: ignore[attr-defined]
        assert point.get_xdata() == [row["difference"]]
        np.testing.assert_allclose(bar.get_segments()[0][:, 0], [row["low"], row["high"]])
    values = [label.get_text() for label in axes.child_axes[0].get_yticklabels()]
    assert values == ["−0.0500", "−0.0300", "−0.1000"]
    assert figure.get_suptitle() == "a title"


def test_window():
    figure = plots.window_figure(WINDOWS, references=REFERENCES | {"cosine": float("nan")}, tokens_per_step=10)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "merge window (steps)" and axes.get_ylabel() == f"validation loss ({NATS})"
    drawn = lines(axes)
    np.testing.assert_array_equal(drawn["linear merge"], WINDOWS["linear"])
    np.testing.assert_array_equal(drawn["EMA merge"], WINDOWS["ema"])
    np.testing.assert_array_equal(drawn["real linear decay"][:, 1], [1.18, 1.18])
    best = [np.asarray(line.get_xydata()).tolist()[0] for line in axes.get_lines() if line.get_gid() == "best"]
    assert best == [[100, 1.22], [200, 1.23]]
    assert legend(figure) == ["linear merge", "EMA merge", "best window", "raw checkpoint", "real linear decay"]


def test_window_spread_over_orders_of_magnitude_and_outliers():
    values = {"linear": [(50 * 2**i, 1.2 + 0.01 * i) for i in range(6)] + [(3200, 9.0)]}
    (axes,) = plots.window_figure(values, references=REFERENCES, tokens_per_step=10).axes
    assert axes.get_xscale() == "log" and axes.get_ylim()[1] < 1.5
    (axes,) = plots.window_figure(values, references={}, tokens_per_step=10).axes
    assert axes.get_ylim()[1] > 9


def test_previews_stand_beside_the_run_itself():
    previews = {"linear-4x10": CONSTANT[3:], "linear-8x10": CONSTANT[5:], "minus_sqrt-4x10": CONSTANT[3:]}
    figure = plots.preview_figure(CONSTANT, previews, tokens_per_step=10)
    shown = lines(figure.axes[0])
    assert legend(figure) == ["constant rate", *previews]
    for name, points in {"constant rate": CONSTANT, **previews}.items():
        np.testing.assert_array_equal(shown[name], points)
    first, second, third = (line for line in figure.axes[0].get_lines()[1:])
    assert first.get_color() == second.get_color() != third.get_color()
    assert first.get_linestyle() != second.get_linestyle()


BAD = {
    "no schedule": lambda: plots.schedules_figure({}),
    "schedule without points": lambda: plots.schedules_figure({"constant": [(0, float("nan"))]}),
    "schedule of triples": lambda: plots.schedules_figure({"constant": np.zeros((1, 3))}),
    "no curve": lambda: plots.weights_figure([], 4),
    "unknown curve": lambda: plots.weights_figure(["linear", "parabola"], 4),
    "count 0": lambda: plots.weights_figure(["linear"], 0),
    "weights of another curve": lambda: plots.weights_figure(["linear"], 2, {"ema": [0.5, 0.5]}),
    "too few weights": lambda: plots.weights_figure(["linear"], 4, {"linear": [0.5, 0.5]}),
    "weights off 1": lambda: plots.weights_figure(["linear"], 2, {"linear": [0.5, 0.6]}),
    "no validation": lambda: plots.loss_figure(TRAIN, {}, tokens_per_step=1),
    "unknown merged name": lambda: plots.loss_figure(TRAIN, VALIDATION, tokens_per_step=1, merged_name="other"),
    "tokens": lambda: plots.loss_figure(TRAIN, VALIDATION, tokens_per_step=0),
    "no row": lambda: plots.gains_figure([]),
    "field missing": lambda: plots.gains_figure([{"name": "a", "group": "b", "difference": 0.0, "low": 0.0}]),
    "interval": lambda: plots.gains_figure([GAINS[0] | {"low": 0.0}]),
    "not a number": lambda: plots.gains_figure([GAINS[0] | {"difference": float("nan")}]),
    "no preview": lambda: plots.preview_figure(CONSTANT, {}, tokens_per_step=1),
    "no window": lambda: plots.window_figure({}, references={}, tokens_per_step=1),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str):
    with pytest.raises(UsageError):
        BAD[case]()


@pytest.mark.parametrize("suffix", ["", ".png", ".svg"])
def test_save(tmp_path, suffix: str):
    base = tmp_path / "new" / "loss-8x50.v1"
    figure = plots.gains_figure(GAINS)
    paths = plots.save(figure, f"{base}{suffix}")
    assert [path.name for path in paths] == ["loss-8x50.v1.png", "loss-8x50.v1.svg"]
    assert sorted(base.parent.iterdir()) == paths
    png, svg = (path.read_bytes() for path in paths)
    assert png.startswith(b"\x89PNG") and b"<svg" in svg and b"<dc:date>" not in svg


BUILD = {
    "schedules": lambda: plots.schedules_figure({"constant": CONSTANT, "linear": CONSTANT}, branch_step=500),
    "weights": lambda: plots.weights_figure(["linear", "ema"], 8),
    "loss": lambda: plots.loss_figure(TRAIN, VALIDATION, tokens_per_step=10, merged_name="merged", branch_step=800),
    "gains": lambda: plots.gains_figure(GAINS),
    "preview": lambda: plots.preview_figure(CONSTANT, {"linear-4x10": CONSTANT}, tokens_per_step=10),
    "window": lambda: plots.window_figure(WINDOWS, references=REFERENCES, tokens_per_step=10),
}


@pytest.mark.parametrize("name", BUILD)
def test_the_same_figure_gives_the_same_bytes(tmp_path, name: str):
    figure = BUILD[name]()
    first = [path.read_bytes() for path in plots.save(figure, tmp_path / "a")]
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "svg.hashsalt": "other"}):  # a user's matplotlibrc
        built_again = [path.read_bytes() for path in plots.save(BUILD[name](), tmp_path / "b")]
    assert built_again == first
    assert [path.read_bytes() for path in plots.save(figure, tmp_path / "a")] == first


def test_a_failed_save_leaves_the_old_files(tmp_path, monkeypatch):
    figure = plots.gains_figure(GAINS)
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
