"""The LAWA paper's experiment: averages of the latest checkpoints, early in training, at low and at high peak rates.

    python -m experiments.lawa                                   (1.3M parameters on the standard library, 3 seeds)
    python -m experiments.lawa --scale=gpt2_small --parallel=1   (the authors' small model; accelerators, OpenWebText)

Protocol (arXiv 2306.03241): AdamW with a warm-up and a cosine to a tenth of the peak; LAWA is the uniform mean of the
k = 5 latest checkpoints, at several spacings; beside it the parameters as they are, the EMA with 0.9 at every step, and
SWA, here the uniform mean of all checkpoints since the warm-up. Peak rates: nanoGPT's, ten times it, and between them.
All is measured at the same steps of the same run. At the small scale the paper's third peak rate and the spacings are
ours, and the spacing that is compared with EMA and SWA is chosen on validation for each rate and step.

Hardware and time of the default: two CPU cores, under an hour. Writes results/lawa/small.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments import protocol
from experiments.intervals import interval, shown, verdict
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import Seeds, source
from wsm_jax.checkpoints.run import Run
from wsm_jax.merging.recipe import make_recipe
from wsm_jax.merging.spec import MergeSpec
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import markdown_table

COUNT = 5
SHARES = (0.25, 0.5, 0.75, 1.0)
EARLY = (0.25, 0.5)  # where the claims are looked at
SPACINGS = (1, 2, 4)  # in intervals of the merge stream
RAW, EMA, SWA = "raw", "EMA 0.9", "SWA"


@dataclasses.dataclass(frozen=True)
class Piece:
    """One run: a configuration, its peak rate and seed, further settings, and how many tokens are evaluated."""

    config: str
    peak_lr: float
    seed: int
    settings: tuple[str, ...] = ()
    validation_tokens: int = 8192
    test_tokens: int = 24576


SMALL = (
    "--config.model.scan_unroll=4",  # the same sums, a sixth faster on a CPU
    "--config.duration=640steps",
    "--config.schedule.name=cosine",
    "--config.schedule.end_fraction=0.1",
    "--config.schedule.warmup=0.05run",
    "--config.averaging.names=ema",
    "--config.averaging.ema_decay=0.9/step",
    "--config.checkpoint.merge_interval=0.025run",
    "--config.checkpoint.resume_interval=0.5run",
    "--config.checkpoint.branch_points=",
    "--config.evaluation.interval=",
)
KEEP_ALL = ("--config.checkpoint.merge_keep=0",)
SCALES = {
    "small": {f"{lr:g}-seed{s}": Piece("demo.py", lr, s, SMALL) for lr in (6e-4, 2e-3, 6e-3) for s in range(3)},
    **{
        f"gpt2_{size}": {
            f"{lr:g}-seed{s}": Piece(f"lawa.py:{size}{kind}", lr, s, KEEP_ALL, 10**6, 10**6)
            for kind, lr in (("", high), (",nanogpt", low))
            for s in range(3)
        }
        for size, high, low in (("small", 6e-3, 6e-4), ("medium", 3e-3, 3e-4), ("large", 2e-3, 2e-4))
    },
}


def lawa(spacing: int) -> str:
    """Name of LAWA with checkpoints so many intervals apart."""
    return f"LAWA, spacing {spacing}"


def measure(folder: Path, piece: Piece, settings: list[str]) -> list[Record]:
    """Trains a run and evaluates every average at every share of it."""
    own = [f"--config.optimizer.peak_lr={piece.peak_lr}", f"--config.seed={piece.seed}"]
    run = protocol.trained(folder / "run", piece.config, [*piece.settings, *own, *settings])
    recipes, apart = {}, run.plan.merge_interval
    for share in SHARES:
        step = min(round(share * run.plan.steps / apart), run.plan.steps // apart) * apart
        recipes |= {(share, step, name): recipe for name, recipe in averages(run, step).items()}
    splits = protocol.evaluators(run, validation_tokens=piece.validation_tokens, test_tokens=piece.test_tokens)
    evaluations = protocol.evaluated(recipes, splits)
    facts = {"peak_lr": piece.peak_lr, "interval": run.plan.merge_interval, **protocol.provenance(run)}
    records = []
    for (share, step, name), found in evaluations.items():
        compared = protocol.compared(found, evaluations[share, step, RAW])
        records.append({"share": share, "step": step, "arm": name, **compared, **facts})
    return records


def averages(run: Run, step: int) -> dict[str, MergeSpec]:
    """Name -> what is averaged at ``step``; LAWA and SWA only where their checkpoints lie after the warm-up."""
    newest, own = run.merge_stream / str(step), run.plan.merge_interval
    warm = run.config.duration_steps("schedule.warmup", run.config.schedule.warmup)
    found = {RAW: protocol.single(newest), EMA: protocol.single(newest, "ema")}
    windows = {lawa(k): (COUNT, k * own) for k in SPACINGS} | {SWA: ((step - warm) // own + 1, own)}
    for name, (count, apart) in windows.items():
        if count > 0 and step - (count - 1) * apart >= warm:
            found[name] = make_recipe(run, "lawa", count, interval=apart, last_step=step)
    return found


# --- the page --------------------------------------------------------------------------------------------------------


class Table(Seeds):
    """The records by (peak rate, share of the run, arm)."""

    def __init__(self, records: Sequence[Record]):
        super().__init__(records, "peak_lr", "share", "arm")
        self.rates = sorted({r["peak_lr"] for r in records})
        averaged = {lawa(k) for k in SPACINGS}
        self.shares = sorted({r["share"] for r in records if r["arm"] in averaged})  # after the warm-up

    def gain(self, *key: Any) -> list[float]:
        """Test loss minus raw by seed; empty where the arm was not measured."""
        return self.of(key, "minus_raw") if key in self else []

    def chosen(self, rate: float, share: float) -> str:
        """The spacing of LAWA with the lowest validation loss, mean over seeds."""
        return self.best(key for k in SPACINGS if (key := (rate, share, lawa(k))) in self)[2]


def present(records: list[Record]) -> Page:
    """Tables, claims and figure."""
    table, first = Table(records), records[0]
    arms = [EMA, SWA, *(lawa(k) for k in SPACINGS)]
    rows = [["peak rate", "share of the run", "raw, test loss", *(f"{arm}, minus raw" for arm in arms), "chosen"]]
    for rate in table.rates:
        for share in table.shares:
            raw = table.mean((rate, share, RAW))
            cells = [shown(values) if (values := table.gain(rate, share, arm)) else "–" for arm in arms]
            rows.append([f"{rate:g}", f"{share:g}", f"{raw:.4f}", *cells, table.chosen(rate, share).split()[-1]])
    steps = max(r["step"] for r in records)
    lines = [
        "# LAWA early in training (arXiv 2306.03241)",
        "",
        f"Test loss in nats a token; k = {COUNT}; a spacing of 1 is {first['interval']} steps. {source(records)}",
        "",
        *markdown_table(rows),
        "",
        "*chosen*: the spacing with the lowest validation loss. –: its checkpoints would reach into the warm-up.",
        "",
        f"At a spacing of 1 the {COUNT} checkpoints span {(COUNT - 1) * first['interval'] / steps:.1%} of the run; the "
        "authors' span 1.1% (small), 11.4% (medium) and 5.7% (large) of theirs. The longer the span, the further an "
        "average lags behind a model that still improves fast.",
        "",
        "## The paper's claims",
        "",
        *markdown_table(claims(table)),
        "",
        "Every difference is of test losses, paired by seed; a claim *holds* where its 95% interval lies below zero.",
        "",
        "![Loss of each average minus that of the parameters as they are, along the run](gains.png)",
    ]
    return Page(lines, {"gains": figure(table, first["interval"])})


def claims(table: Table) -> list[list[str]]:
    """Header and rows: claim, where, difference, verdict."""
    rows = [["claim", "peak rate", "share", "difference", ""]]

    def add(claim: str, rate: str, share: float, values: Sequence[float]) -> None:
        rows.append([claim, rate, f"{share:g}", shown(values), verdict(values)])

    low, high = table.rates[0], table.rates[-1]
    for share in (each for each in EARLY if each in table.shares):
        for rate in table.rates:
            best = table.chosen(rate, share)
            add("LAWA is better than the raw model", f"{rate:g}", share, table.gain(rate, share, best))
        gains = [table.gain(rate, share, table.chosen(rate, share)) for rate in (high, low)]
        if high > low:
            add(
                "its gain grows with the rate",
                f"{high:g} against {low:g}",
                share,
                [a - b for a, b in zip(*gains, strict=True)],
            )
        for rate in table.rates:
            known = [arm for k in SPACINGS if table.gain(rate, share, arm := lawa(k))]
            if len(known) > 1:
                growth = table.minus((rate, share, known[-1]), (rate, share, known[0]), "minus_raw")
                add(f"its gain grows with the spacing, {known[-1][-1]} against 1", f"{rate:g}", share, growth)
        for other in (EMA, SWA):
            for rate in table.rates:
                best = table.chosen(rate, share)
                values = table.minus((rate, share, best), (rate, share, other), "minus_raw")
                add(f"it is better than {other}", f"{rate:g}", share, values)
    return rows


@plot_style.styled_figure
def figure(table: Table, interval_steps: int) -> Figure:
    """A panel for each rate: minus raw against the share of the run, with intervals over seeds."""
    made = Figure(figsize=(plot_style.WIDTH, 2.9))
    panels = made.subplots(1, len(table.rates), sharey=True, squeeze=False)[0]
    looks = {EMA: ("#009E73", "^"), SWA: ("#E69F00", "s")}
    blues = ("#9ECAE1", "#4292C6", "#08519C")
    looks |= {lawa(k): (colour, "o") for k, colour in zip(SPACINGS, blues, strict=True)}
    for axes, rate in zip(panels, table.rates, strict=True):
        for place, (arm, (colour, marker)) in enumerate(looks.items()):
            there = [share for share in table.shares if table.gain(rate, share, arm)]
            found = [interval(table.gain(rate, share, arm)) for share in there]
            x = [share + 0.012 * (place - 2) for share in there]  # side by side
            y, error = [mean for mean, _ in found], [half for _, half in found]
            label = arm if arm in (EMA, SWA) else f"LAWA, every {int(arm.split()[-1]) * interval_steps} steps"
            axes.errorbar(x, y, error, color=colour, marker=marker, label=label, capsize=2, elinewidth=0.8)
        axes.axhline(0.0, color=plot_style.RAW, linewidth=0.8)
        axes.set(title=f"peak rate {rate:g}", xlabel="share of the run", xticks=SHARES)
        axes.set_yscale("symlog", linthresh=0.01)
        axes.axhspan(-0.01, 0.01, color="#F2F2F2", zorder=0)
    panels[0].set_ylabel("test loss minus raw, nats a token\n(grey: linear, outside logarithmic)")
    handles, labels = panels[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=5)
    return made


EXPERIMENT = Experiment("lawa", SCALES, measure, present, fixed=("seed", "optimizer.peak_lr"))

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
