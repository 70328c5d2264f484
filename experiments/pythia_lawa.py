"""LAWA along a public series of checkpoints: import it, merge the latest few at several spacings, score every merge.

    python -m experiments.pythia_lawa EleutherAI/pythia-160m@step10000,step11000,... --text=text:PATH --output=DIR
    python -m experiments.pythia_lawa FOLDER_OF_STEPS --text=text:PATH --output=DIR     (local: no hub needed)

Pythia was in the LAWA paper (arXiv 2306.03241), which finds most to gain early in training. Its rate decays by cosine:
part of what a merge emulates has happened already, so it says little of WSM. For that take a series of a stable phase:

    python -m experiments.pythia_lawa HuggingFaceTB/SmolLM2-135M-intermediate-checkpoints@step-240000,step-480000,... \
        --curve=minus_sqrt --context=2048 --text=text:PATH --output=DIR

SmolLM2 was trained with WSD: the card of HuggingFaceTB/SmolLM2-nanotron-ckpt says so, and that its "pre-decay"
checkpoint is of the stable rate. No card says at which step the decay begins; leave out the last fifth of the steps.

Beside each merge stand the parameters as they are, on the same text, with the paired difference and its 95% interval.
DIR/run is the imported run, DIR/records.jsonl a line for each merge, DIR/table.md the table.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints.run import Run
from wsm_jax.errors import UsageError, ended
from wsm_jax.evaluation import evaluate
from wsm_jax.evaluation.losses import Evaluation, paired_difference
from wsm_jax.interchange import incoming
from wsm_jax.io.files import write_jsonl, write_text
from wsm_jax.merging import offline, recipe, selection, weighting
from wsm_jax.reporting.tables import markdown_table

COUNT, SPACINGS = 5, (1, 2, 4)


def measure(
    run: Run, text: str, *, curve: str = "lawa", count: int = COUNT, spacings: Sequence[int] = SPACINGS, limit: int = 0
) -> list[dict[str, Any]]:
    """One record for every merge of ``count`` checkpoints that fits, in order of its newest step.

    Args:
      run: an imported series, evenly spaced where windows are to fit.
      text: as ``wsm eval --source`` takes it.
      curve: any rule that needs no losses.
      count: checkpoints of a merge.
      spacings: between them, in intervals of the series.
      limit: tokens of the text; 0 = all.

    Raises:
      UsageError: no window fits.
    """
    rule, own = weighting.parse(curve), run.plan.merge_interval
    there = orbax.complete_steps(run.merge_stream)
    windows = [
        (spacing, window)
        for spacing in spacings
        for window in selection.windows_over(run, there, count, own, interval=spacing * own)
    ]
    if not windows:
        raise UsageError(f"{run.path} has {len(there)} checkpoints; no {count} of them are {spacings[0]} x {own} apart")
    evaluator = evaluate.run_evaluator(run, "train", source=text, limit_tokens=limit)
    raw: dict[int, Evaluation] = {}
    for step in sorted({window.steps[-1] for _, window in windows}):
        raw[step] = evaluator(evaluate.load(run, run.merge_stream / str(step)))
    specs = {f"{spacing}x{own}-at-{w.steps[-1]}": recipe.window_recipe(rule, run, w) for spacing, w in windows}
    records = []
    merges = offline.in_memory(specs, shardings=evaluate.shardings(run))
    for (spacing, window), (_, merged) in zip(windows, merges, strict=True):
        found, before = evaluator(merged), raw[window.steps[-1]]
        difference = paired_difference(found, before)
        records.append(
            {
                "step": window.steps[-1],
                "interval": spacing * own,
                "count": count,
                "curve": curve,
                "raw": before.loss,
                "raw_bits_per_byte": before.bits_per_byte,
                "loss": found.loss,
                "bits_per_byte": found.bits_per_byte,
                "difference": difference.loss,
                "interval_95": list(difference.interval),
                "data_hash": found.data_hash,
            }
        )
    return sorted(records, key=lambda record: (record["step"], record["interval"]))


def table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: a row for each step, a column for each spacing."""
    intervals = sorted({record["interval"] for record in records})
    rows = [["step", "as it is", *(f"every {interval} (minus raw)" for interval in intervals)]]
    for step in sorted({record["step"] for record in records}):
        found = {record["interval"]: record for record in records if record["step"] == step}
        first = next(iter(found.values()))
        cells = [_cell(found[interval]) if interval in found else "–" for interval in intervals]
        rows.append([str(step), f"{first['raw']:.4f}", *cells])
    return markdown_table(rows)


def _cell(record: dict[str, Any]) -> str:
    low, high = record["interval_95"]
    return f"{record['loss']:.4f} ({record['difference']:+.4f}, {low:+.4f} to {high:+.4f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Imports the series, unless that is done, and measures."""
    parser = argparse.ArgumentParser(prog="pythia_lawa", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="as wsm import takes it")
    parser.add_argument("--text", required=True, help="as wsm eval --source takes it")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--curve", default="lawa")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--spacings", default=",".join(map(str, SPACINGS)), help="in intervals of the series")
    parser.add_argument("--context", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="tokens of the text; 0 = all")
    options = parser.parse_args(arguments)

    def work() -> int:
        place = options.output / "run"
        if not (place / "run.json").is_file():
            incoming.bring_in(options.source, place, context=options.context, say=print)
        spacings = tuple(int(spacing) for spacing in options.spacings.split(","))
        asked = {"curve": options.curve, "count": options.count, "spacings": spacings, "limit": options.limit}
        records = measure(Run(place), options.text, **asked)
        write_jsonl(options.output / "records.jsonl", records)
        lines = table(records)
        write_text(options.output / "table.md", "\n".join(lines) + "\n")
        print("\n".join(lines))
        return 0

    return ended("pythia_lawa", work)


if __name__ == "__main__":
    sys.exit(main())
