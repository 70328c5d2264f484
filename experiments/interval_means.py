"""Interval means beside point checkpoints: what a merge recovers of the real decay, by window, at two sizes.

    python -m experiments.interval_means

Protocol: a constant-rate run that stores, every 20 steps, its parameters and the mean of them over the 20 steps; from
its checkpoint at 3/4 three real decays to zero (linear, cosine, 1-sqrt), 20 intervals long, on the tokens the constant
run reads there. Then merges of the latest 2 to 40 intervals, of points (the paper's) and of means (ours), along the
three curves, with plain and with weight-decay-aware weights. The best window of each kind is chosen on validation; what
is reported is of test. A window of K intervals has K point checkpoints (the oldest K - 1 intervals before the newest)
or K means.

Hardware and time: two CPU cores, about an hour. Writes results/interval_means/small.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments import protocol
from experiments.intervals import interval, shown, verdict
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import Seeds, source
from wsm_jax.checkpoints.run import Run
from wsm_jax.merging.recipe import make_recipe
from wsm_jax.merging.selection import MEAN, POINT, SNAPSHOTS
from wsm_jax.merging.spec import MergeSpec
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import markdown_table

CURVES = ("linear", "cosine", "minus_sqrt")
COUNTS = (2, 4, 6, 10, 20, 40)  # intervals in a window
DECAY = 20  # intervals in the real decay
RAW, REAL = "raw", "decay"
NAMES = {POINT: "point checkpoints", MEAN: "interval means"}
Key = tuple[str, str, int, bool]  # arm, curve, intervals, weight-decay-aware


@dataclasses.dataclass(frozen=True)
class Piece:
    """A constant-rate run, its decays and its merges."""

    size: str
    seed: int
    settings: tuple[str, ...] = ()


SETTINGS = (
    "--config.checkpoint.snapshot=both",
    "--config.model.scan_unroll=4",  # the same sums, a sixth faster on a CPU
    "--config.checkpoint.merge_interval=0.0125run",
    "--config.checkpoint.resume_interval=0.25run",
    "--config.evaluation.interval=",
)
DECAY_SETTINGS = (
    "--config.schedule.name=cooldown",
    "--config.checkpoint.snapshot=point",
    "--config.checkpoint.merge_interval=0.25run",
)
SMALLER = ("--config.model.layers=2", "--config.model.d_model=64", "--config.model.heads=2")
SIZES: dict[str, tuple[str, ...]] = {"0.4M": SMALLER, "1.3M": ()}
SCALES = {"small": {f"{size}-seed{s}": Piece(size, s, more) for size, more in SIZES.items() for s in range(3)}}
VALIDATION_TOKENS, TEST_TOKENS = 16384, 32768


def measure(folder: Path, piece: Piece, settings: list[str]) -> list[Record]:
    """Trains the run and its decays, and evaluates every merge."""
    own = [*SETTINGS, *piece.settings, f"--config.seed={piece.seed}", *settings]
    base = protocol.trained(folder / "constant", "demo.py", own)
    ((branch_step,), last) = base.plan.branch_points, base.plan.steps
    raw = (RAW, "", 0, False)
    recipes = {raw: protocol.single(base.merge_stream / str(last)), **merges(base)}
    for curve in CURVES:
        decay = protocol.trained(
            folder / f"decay-{curve}",
            "demo.py",
            [*own, *DECAY_SETTINGS, f"--config.schedule.curve={curve}"],
            branch_from=f"{base.path}@{branch_step}",
        )
        length = (last - branch_step) // base.plan.merge_interval
        recipes[REAL, curve, length, False] = protocol.single(decay.resume_stream / str(last))
    splits = protocol.evaluators(base, validation_tokens=VALIDATION_TOKENS, test_tokens=TEST_TOKENS)
    evaluations = protocol.evaluated(recipes, splits)
    facts = {"size": piece.size, "interval": base.plan.merge_interval, **protocol.provenance(base)}
    return [
        {
            **{"arm": arm, "curve": curve, "count": count, "weight_decay_aware": aware},
            **protocol.compared(found, evaluations[raw]),
            **facts,
            **protocol.trained_by(recipes[arm, curve, count, aware]),
        }
        for (arm, curve, count, aware), found in evaluations.items()
    ]


def merges(base: Run) -> dict[Key, MergeSpec]:
    """Both snapshots x windows x curves with plain weights, and the linear curve with weight-decay-aware ones."""
    kinds = [*((curve, False) for curve in CURVES), ("linear", True)]
    return {
        (snapshot, curve, count, aware): make_recipe(base, curve, count, snapshot=snapshot, weight_decay_aware=aware)
        for snapshot in SNAPSHOTS
        for curve, aware in kinds
        for count in COUNTS
    }


# --- the page --------------------------------------------------------------------------------------------------------


class Table(Seeds):
    """The records of one size by (arm, curve, intervals, weight-decay-aware)."""

    def __init__(self, records: Sequence[Record]):
        super().__init__(records, "arm", "curve", "count", "weight_decay_aware")

    def gain(self, key: Key) -> list[float]:
        """Test loss minus that of the last checkpoint, by seed."""
        return self.of(key, "minus_raw")

    def window(self, arm: str, curve: str, aware: bool) -> int:
        """The window with the lowest validation loss, mean over seeds."""
        return self.best((arm, curve, n, aware) for n in COUNTS)[2]


def present(records: list[Record]) -> Page:
    """Tables and figure for each size."""
    first = records[0]
    sizes = [size for size in SIZES if any(r["size"] == size for r in records)]
    tables = {size: Table([r for r in records if r["size"] == size]) for size in sizes}
    lines = [
        "# Interval means beside point checkpoints",
        "",
        "Test loss minus that of the last checkpoint of the constant-rate run, nats a token. Windows in intervals of "
        f"{first['interval']} steps; the real decays are {DECAY} intervals long. {source(records)}",
    ]
    for size, table in tables.items():
        parameters = next(r["parameters"] for r in records if r["size"] == size)
        raw = table.mean((RAW, "", 0, False))
        lines += ["", f"## {parameters:,} parameters", "", *markdown_table(_losses(table)), ""]
        lines += [f"The last checkpoint itself: {raw:.4f}. Share of the real decay's gain:", ""]
        for shown_table in (_shares(table), _differences(table), _claims(table)):
            lines += [*markdown_table(shown_table), ""]
    lines += [
        "*best window*: the one with the lowest validation loss, mean over seeds. A claim *holds* where the 95% "
        "interval of the difference, paired by seed, lies below zero.",
        "",
        "![Merged loss by window, points and means, beside the real decays](windows.png)",
    ]
    return Page(lines, {"windows": figure(tables)})


def _kinds() -> list[tuple[str, str, bool]]:
    return [(s, c, False) for c in CURVES for s in SNAPSHOTS] + [(s, "linear", True) for s in SNAPSHOTS]


def _name(snapshot: str, curve: str, aware: bool) -> str:
    return f"{NAMES[snapshot]}, {plot_style.CURVE_LABELS[curve]}{', weight-decay-aware' if aware else ''}"


def _losses(table: Table) -> list[list[str]]:
    rows = [["", *map(str, COUNTS), "best window"]]
    for snapshot, curve, aware in _kinds():
        cells = [shown(table.gain((snapshot, curve, count, aware))) for count in COUNTS]
        rows.append([_name(snapshot, curve, aware), *cells, str(table.window(snapshot, curve, aware))])
    for curve in CURVES:
        real = shown(table.gain((REAL, curve, DECAY, False)))
        cells = [real if count == DECAY else "" for count in COUNTS]
        rows.append([f"real decay, {plot_style.CURVE_LABELS[curve]}", *cells, ""])
    return rows


def _shares(table: Table) -> list[list[str]]:
    """Gain of a merge over that of the real decay along the same curve, by seed and as ratio of the means."""
    rows = [["", "equal window", "by seed", "best window", "by seed"]]
    for snapshot, curve, aware in _kinds():
        real = table.gain((REAL, curve, DECAY, False))
        cells = []
        for count in (DECAY, table.window(snapshot, curve, aware)):
            own = table.gain((snapshot, curve, count, aware))
            cells += [f"{sum(own) / sum(real):.0%}", " ".join(f"{a / b:.0%}" for a, b in zip(own, real, strict=True))]
        rows.append([_name(snapshot, curve, aware), *cells])
    return rows


def _differences(table: Table) -> list[list[str]]:
    """Means minus points at every window, and at the best one of each, paired by seed."""
    rows = [["interval means minus points", *map(str, COUNTS), "best of each"]]
    for curve in CURVES:
        windows = [dict.fromkeys(SNAPSHOTS, count) for count in COUNTS]
        windows.append({s: table.window(s, curve, False) for s in SNAPSHOTS})
        pairs = [
            table.minus((MEAN, curve, w[MEAN], False), (POINT, curve, w[POINT], False), "minus_raw") for w in windows
        ]
        rows.append([plot_style.CURVE_LABELS[curve], *map(shown, pairs)])
    return rows


def _claims(table: Table) -> list[list[str]]:
    rows = [["claim", "curve", "window", "difference", ""]]
    for curve in CURVES:
        for snapshot in SNAPSHOTS:
            for window, count in {"equal": DECAY, "best": table.window(snapshot, curve, False)}.items():
                pairs = table.minus((snapshot, curve, count, False), (REAL, curve, DECAY, False), "minus_raw")
                claim = f"{NAMES[snapshot]} are better than the real decay"
                rows.append([claim, plot_style.CURVE_LABELS[curve], window, shown(pairs), verdict(pairs)])
    return rows


@plot_style.styled_figure
def figure(tables: dict[str, Table]) -> Figure:
    """A panel for each size: minus raw against the window, by curve and snapshot, with intervals over seeds."""
    made = Figure(figsize=(plot_style.WIDTH, 3.4))
    panels = made.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, (size, table) in zip(panels, tables.items(), strict=True):
        for place, (snapshot, curve) in enumerate((s, c) for c in CURVES for s in SNAPSHOTS):
            found = [interval(table.gain((snapshot, curve, count, False))) for count in COUNTS]
            look = {"color": plot_style.CURVE_COLOURS[curve], "linestyle": "-" if snapshot == MEAN else ":"}
            look |= {"marker": plot_style.CURVE_MARKERS[curve], "capsize": 2, "elinewidth": 0.8}
            look |= {} if snapshot == MEAN else {"markerfacecolor": "white"}
            x = [count * 1.025 ** (place - 2.5) for count in COUNTS]  # side by side
            axes.errorbar(x, [m for m, _ in found], [h for _, h in found], label=_name(snapshot, curve, False), **look)
        for curve in CURVES:
            mean, _ = interval(table.gain((REAL, curve, DECAY, False)))
            label, dashes = (
                f"real decay, {plot_style.CURVE_LABELS[curve]}",
                {"linestyle": plot_style.CURVE_DASHES[curve]},
            )
            axes.axhline(mean, color=plot_style.CURVE_COLOURS[curve], linewidth=0.9, label=label, **dashes)
        axes.set_xscale("log")
        axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
        axes.minorticks_off()
        axes.set(title=f"{size} parameters", xlabel="window, intervals")
    panels[0].set_ylabel("test loss minus raw, nats a token")
    handles, labels = panels[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=3)
    return made


EXPERIMENT = Experiment("interval_means", SCALES, measure, present, fixed=("seed", "schedule.name", "schedule.curve"))

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
