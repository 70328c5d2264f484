"""A comparison as files: report.md, report.html, table.csv, table.json and figures (PNG and SVG)."""

import csv
import io
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsm_jax import config as config_lib
from wsm_jax.checkpoints.run import Run
from wsm_jax.core.decay import DECAYS
from wsm_jax.io import disk, files, machine, publish
from wsm_jax.reporting import document, plot_style, plots
from wsm_jax.reporting.comparison import Comparison, Row
from wsm_jax.reporting.document import Page, Picture, Section, Table
from wsm_jax.reporting.effects import Effect, forest

GROUPS = {
    "merge": "merges at the decay's window",
    "chosen": "merge chosen on validation",
    "learned": "merge learned on validation",
    "decay": "real decays, from the branch",
}
HEADER = ("", "window (steps)", "test loss", "minus raw [95%]", "tokens", "extra tokens", "extra seconds")


def table(result: Comparison) -> list[list[str]]:
    """Header and rows of the table as text."""
    return [list(HEADER), *(_cells(row) for row in result.rows)]


def _cells(row: Row) -> list[str]:
    low, high = row.difference.interval
    around = f" [{low:+.4f}, {high:+.4f}]" if math.isfinite(low) else ""
    return [
        row.name,
        f"{row.window:,}" if row.window else "–",
        f"{row.test.loss:.4f}",
        "–" if row.group == "raw" else f"{row.difference.loss:+.4f}{around}",
        f"{row.tokens:,}",
        f"{row.extra_tokens:,}",
        f"{row.seconds:.1f}",
    ]


def to_json(result: Comparison) -> dict[str, Any]:
    """The comparison with its provenance, JSON-ready."""
    base = result.base
    return {
        "rows": [
            {
                "name": row.name,
                "group": row.group,
                "window": row.window,
                "test": {name: _known(value) for name, value in row.test.summary().items()},
                "difference": row.difference.loss,
                "difference_stderr": _known(row.difference.stderr),
                "difference_interval": [_known(end) for end in row.difference.interval],
                "tokens": row.tokens,
                "extra_tokens": row.extra_tokens,
                "seconds": round(row.seconds, 3),
            }
            for row in result.rows
        ],
        "chosen": {"curve": result.chosen[0], "count": result.chosen[1]},
        "validation_windows": result.windows,
        "validation_references": result.references,
        "merged_series": result.series,
        "branch_step": result.branch_step,
        "count_at_equal_window": result.count,
        "interval": base.plan.merge_interval,
        "seed": base.config.seed,
        "config": config_lib.to_dict(base.config),
        "config_hash": base.facts["config_hash"],
        "config_id": base.config_id,
        "data_hash": base.facts["data_hash"],
        "parameters": base.facts["parameters"],
        "training_seconds": round(sum(record["seconds"] for record in base.metrics("train")), 1),
        **machine.environment(),
    }


def _known(value: Any) -> Any:
    """The value, or None for the NaN that the error over one document is, which JSON has no word for."""
    return None if isinstance(value, float) and math.isnan(value) else value


def findings(result: Comparison) -> list[str]:
    """How far the merges are from the real decays, as sentences."""
    raw = result.rows[0]
    by_group = {group: [row for row in result.rows if row.group == group] for group in ("merge", "chosen", "decay")}
    best_decay = min(by_group["decay"], key=lambda row: row.test.loss)
    gain = -best_decay.difference.loss
    lines = [
        f"The best real decay ({best_decay.name.removeprefix('real decay, ')}) changes the test loss of the last "
        f"checkpoint ({raw.test.loss:.4f}) by {best_decay.difference.loss:+.4f} nats a token."
    ]
    pairs = []
    for decay in by_group["decay"]:
        same = next(row for row in by_group["merge"] if row.curve == decay.curve)
        if decay.difference.loss < 0:
            share = same.difference.loss / decay.difference.loss
            pairs.append(f"{decay.name.removeprefix('real decay, ')} {share:.0%}")
    if pairs:
        lines.append(f"Share of each real decay's gain that the merge emulating it recovers: {', '.join(pairs)}.")
    if gain > 0:
        best_merge = min(by_group["merge"], key=lambda row: row.test.loss)
        for row, how in (
            (best_merge, "the best merge at the decay's window, picked on test"),
            (by_group["chosen"][0], "the merge chosen on validation"),
        ):
            lines.append(
                f"{how[0].upper()}{how[1:]} ({row.curve}, {row.window} steps) changes it by "
                f"{row.difference.loss:+.4f}: {-row.difference.loss / gain:.0%} of the decay's gain."
            )
    return lines


def write(result: Comparison, directory: str | Path) -> Path:
    """Writes the report into ``directory`` (made if missing; files of an earlier report are replaced), all or nothing.

    Returns:
      the directory.
    """
    directory = Path(directory)
    with (
        tempfile.TemporaryDirectory() as made,  # drawing takes seconds; a kill meanwhile leaves nothing beside runs
        disk.writing(made, lambda: disk.disk_bytes(made)),
    ):
        folder = Path(made)
        text = io.StringIO()
        csv.writer(text).writerows(table(result))
        files.write_text(folder / "table.csv", text.getvalue())
        files.write_json(folder / "table.json", to_json(result))
        document.write(page(result), folder, "report.md", "report.html")
        with publish.replaced(directory) as place:
            shutil.copytree(folder, place, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return directory


def page(result: Comparison) -> Page:
    """The report as data."""
    base, interval = result.base, result.base.plan.merge_interval
    header, *rows = table(result)
    test = result.rows[0].test
    reading = (
        f"Test split: {test.tokens.sum():,} tokens, {test.tokens.size:,} documents; intervals are over documents, "
        "paired with the last checkpoint of the constant-rate run (one training seed). "
        f"A window counts count x interval: {result.count} checkpoints x {interval} steps {_equal(result)}; the oldest "
        f"lies {(result.count - 1) * interval} steps before the newest, so the emulated decay stops one interval "
        "early. Curve and window of the chosen merge are those with the lowest validation loss."
    )
    gains, *others = _pictures(result)
    sections = [
        Section("", [*findings(result), gains]),
        Section("Test loss", [Table(header, rows), reading]),
        Section("Figures", others),
        Section("Provenance", [_provenance(result)]),
    ]
    return Page(f"{base.path.name}: merging against real decays", sections)


def _provenance(result: Comparison) -> Table:
    base, facts = result.base, to_json(result)
    rows = {
        "run": f"{facts['parameters']:,} parameters, {base.plan.steps:,} steps of {base.plan.tokens_per_step:,} "
        f"tokens, seed {facts['seed']}",
        "identity": f"config {facts['config_hash']}, data {facts['data_hash'][:12]}",
        "machine": facts["machine"],
        "versions": ", ".join(f"{n} {v}" for n, v in {"Python": facts["python"], **facts["versions"]}.items()),
        "command": f"`{facts['command']}`",
        "data": "[table.json](table.json), [table.csv](table.csv)",
    }
    return Table(["", "value"], [*map(list, rows.items())], numbers=False)


def _pictures(result: Comparison) -> list[Picture]:
    base, tokens = result.base, result.base.plan.tokens_per_step
    interval, count = base.plan.merge_interval, result.count
    validation = _validation(base)
    along = {f"mean of {count}": _minus(result.series, validation)}
    for run, label in zip(result.decays, result.labels, strict=True):
        fork = [(result.branch_step, 0.0)]  # there the decay is the run itself
        along[f"decay, {label}"] = [*fork, *_minus(_validation(run), validation)]
    # Neither evaluation.interval="" nor a short decay leaves a validation to draw.
    along = {name: points for name, points in along.items() if len(points) > 1}
    raw = result.references["constant rate"]
    windows = {curve: [(steps, loss - raw) for steps, loss in points] for curve, points in result.windows.items()}
    references = {name: loss - raw for name, loss in result.references.items() if name != "constant rate"}
    train = [(r["step"], r["loss"]) for r in base.metrics("train")]
    return [
        Picture(
            "gains",
            forest([_effect(row) for row in result.rows if row.group != "raw"], unit="nats per token"),
            "Test loss minus that of the last constant-rate checkpoint; bars: 95% over documents, one seed.",
        ),
        Picture(
            "loss",
            plots.loss_figure(train, validation, along, tokens_per_step=tokens, branch_step=result.branch_step),
            f"Left: loss of the constant rate. Right: what an anneal would give now, the mean of {count} checkpoints, "
            f"{interval} steps apart, and what the real decays give; validation loss minus the constant rate's at the "
            "same step.",
        ),
        Picture(
            "windows",
            plots.window_figure(windows, references=references, tokens_per_step=tokens),
            "Validation loss of the merges over their windows, minus that of the last checkpoint; filled: the best "
            "window of each curve.",
        ),
        Picture(
            "schedules",
            plots.schedules_figure(result.rates, branch_step=result.branch_step),
            "Learning rates (the paper's Figure 1).",
        ),
        Picture(
            "weights",
            plots.weights_figure(list(DECAYS), count),
            f"Merge weights of {count} checkpoints and the decays they emulate (the paper's Figure 2).",
        ),
        *preview_picture(base),
    ]


def _effect(row: Row) -> Effect:
    low, high = row.difference.interval
    verdict = "" if math.isnan(low) else "better" if high < 0 else "worse" if low > 0 else "open"
    name = row.name.removeprefix("real decay, ") if row.group == "decay" else row.curve or row.group
    return Effect(plot_style.label(name, "{}"), row.difference.loss, low, high, verdict, GROUPS[row.group])


def _validation(run: Run) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in run.metrics("validation")]


def _minus(points: Sequence[tuple[int, float]], run: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Losses minus the run's at the same step, which is between two of its validations."""
    steps, losses = np.transpose(run) if run else (np.empty(0), np.empty(0))
    inside = [(step, loss) for step, loss in points if run and steps[0] <= step <= steps[-1]]
    return [(step, loss - float(np.interp(step, steps, losses))) for step, loss in inside]


def preview_picture(base: Run) -> list[Picture]:
    """The previews that the constant run made on its way, and what they cost; nothing where it made none."""
    records, validation = base.metrics("preview"), _validation(base)
    names = [name for name in (records or [{}])[-1] if name not in ("kind", "step", "seconds")]
    previews = {name: _minus([(r["step"], r[name]) for r in records if name in r], validation) for name in names}
    previews = {name: points for name, points in previews.items() if points}
    if not previews:
        return []
    took, training = (sum(r["seconds"] for r in base.metrics(kind)) for kind in ("preview", "train"))
    caption = (
        "What an anneal would have given at each validation, merged and evaluated while training; minus the run "
        f"itself. Merging and evaluating took {took:.1f} s beside {training:.1f} s of training ({took / training:.1%})."
    )
    return [Picture("preview", plots.preview_figure(previews, tokens_per_step=base.plan.tokens_per_step), caption)]


def _equal(result: Comparison) -> str:
    """How the window of equal length compares with the decay."""
    window, decay = result.count * result.base.plan.merge_interval, result.base.plan.steps - result.branch_step
    if window == decay:
        return f"= the decay's {decay}"
    return f"= {window}, the multiple of the interval that is nearest to the decay's {decay}"
