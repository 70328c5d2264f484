"""A comparison as files: report.md, table.csv, table.json and figures (PNG and SVG)."""

import csv
import io
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from wsm_jax import config as config_lib
from wsm_jax.checkpoints.run import Run
from wsm_jax.core.decay import DECAYS
from wsm_jax.io import disk, files, machine, publish
from wsm_jax.reporting import plots
from wsm_jax.reporting.comparison import Comparison, Row
from wsm_jax.reporting.tables import markdown_table

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
        figures = _figures(result)
        for name, (figure, _) in figures.items():
            plots.save(figure, folder / name)
        captions = {name: caption for name, (_, caption) in figures.items()}
        files.write_text(folder / "report.md", _markdown(result, captions))
        with publish.replaced(directory) as place:
            shutil.copytree(folder, place, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return directory


def _figures(result: Comparison) -> dict[str, tuple[Any, str]]:
    base, tokens = result.base, result.base.plan.tokens_per_step
    interval, count = base.plan.merge_interval, result.count
    validation = {
        "constant": [(r["step"], r["loss"]) for r in base.metrics("validation")],
        f"mean of {count}": result.series,
        **{
            f"decay, {label}": [(r["step"], r["loss"]) for r in run.metrics("validation")]
            for run, label in zip(result.decays, result.labels, strict=True)
        },
    }
    # Neither evaluation.interval="" nor a short decay leaves a validation to draw.
    validation = {name: points for name, points in validation.items() if points}
    train = [(r["step"], r["loss"]) for r in base.metrics("train")]
    gains = [
        {
            "name": row.name.removeprefix("real decay, ") if row.group == "decay" else row.curve or row.group,
            "group": GROUPS[row.group],
            "difference": row.difference.loss,
            "low": row.difference.interval[0],
            "high": row.difference.interval[1],
        }
        for row in result.rows
        if row.group != "raw"
    ]
    return {
        "loss": (
            plots.loss_figure(
                train,
                validation,
                tokens_per_step=tokens,
                merged_name=f"mean of {count}",
                branch_step=result.branch_step,
            ),
            "Loss along the run; merges and decays on validation. The merged curve is what an anneal would give now: "
            f"the mean of {count} checkpoints, {interval} steps apart.",
        ),
        "schedules": (
            plots.schedules_figure(result.rates, branch_step=result.branch_step),
            "Learning rates (the paper's Figure 1).",
        ),
        "weights": (
            plots.weights_figure(list(DECAYS), count),
            f"Merge weights of {count} checkpoints and the decays they emulate (the paper's Figure 2).",
        ),
        "gains": (
            plots.gains_figure(gains),
            "Test loss minus that of the last constant-rate checkpoint; bars: 95% over documents, one seed.",
        ),
        "windows": (
            plots.window_figure(result.windows, references=result.references, tokens_per_step=tokens),
            "Validation loss of the merges over their windows.",
        ),
    } | preview_figure(base)


def preview_figure(base: Run) -> dict[str, tuple[Any, str]]:
    """The previews that the constant run made on its way, and what they cost; nothing where it made none."""
    records = base.metrics("preview")
    if not records:
        return {}
    names = [name for name in records[-1] if name not in ("kind", "step", "seconds")]
    previews = {name: [(r["step"], r[name]) for r in records if name in r] for name in names}
    validation = [(r["step"], r["loss"]) for r in base.metrics("validation")]
    took, training = (sum(r["seconds"] for r in base.metrics(kind)) for kind in ("preview", "train"))
    caption = (
        "What an anneal would have given at each validation, merged and evaluated while training. "
        f"Merging and evaluating took {took:.1f} s beside {training:.1f} s of training ({took / training:.1%})."
    )
    figure = plots.preview_figure(validation, previews, tokens_per_step=base.plan.tokens_per_step)
    return {"preview": (figure, caption)}


def _markdown(result: Comparison, captions: dict[str, str]) -> str:
    base, interval = result.base, result.base.plan.merge_interval
    facts = to_json(result)
    raw = facts["rows"][0]["test"]
    lines = [
        f"# {base.path.name}: merging against real decays",
        "",
        *markdown_table(table(result)),
        "",
        f"Test split: {raw['tokens']:,} tokens, {raw['documents']:,} documents; "
        "intervals are over documents, paired with the last checkpoint of the constant-rate run (one training seed).",
        f"A window counts count x interval: {result.count} checkpoints x {interval} steps {_equal(result)}; the oldest "
        f"lies {(result.count - 1) * interval} steps before the newest, so the emulated decay stops one interval "
        "early.",
        "Curve and window of the chosen merge are those with the lowest validation loss.",
        "",
        *findings(result),
        "",
    ]
    for name, caption in captions.items():
        lines += [f"![{caption}]({name}.png)", "", caption, ""]
    lines += [
        "## Provenance",
        "",
        f"- {facts['parameters']:,} parameters, {base.plan.steps:,} steps of {base.plan.tokens_per_step:,} tokens, "
        f"seed {facts['seed']}, config {facts['config_hash']}, data {facts['data_hash'][:12]}",
        f"- {facts['machine']}; Python {facts['python']}; "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        f"- `{facts['command']}`",
        "",
    ]
    return "\n".join(lines)


def _equal(result: Comparison) -> str:
    """How the window of equal length compares with the decay."""
    window, decay = result.count * result.base.plan.merge_interval, result.base.plan.steps - result.branch_step
    if window == decay:
        return f"= the decay's {decay}"
    return f"= {window}, the multiple of the interval that is nearest to the decay's {decay}"
