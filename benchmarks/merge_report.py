"""What the records of ``benchmarks/merge.py`` say: tables and a figure.

    python benchmarks/merge_report.py benchmarks/results/merge

reads merge.jsonl again, draws the figure and prints the tables.
"""

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from merge_cases import ENGINE, MANY, OURS, PEERS, PREVIOUS, TIMED_INSIDE  # beside this file

from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import print_table

Record = dict[str, Any]
HEADER = ["case", "s", "lowest to highest", "s inside", "ours / it", "CPU-s", "peak RSS, GB", "anonymous, GB"]
PRECISION = ["dtype", "count", "float32_result", "same_dtype_result", "same_dtype_sum"]


def label(record: Record) -> str:
    """The case of a record, in words."""
    return f"{record['size']} x{record['count']} {record['format']} {record['cache']}"


def ratio(record: Record, records: list[Record]) -> float | None:
    """Our time over that of ``record``, the median of the ratios within the rounds; None where nothing compares.

    ``wsm merge`` is held against whole processes that write; what is timed inside a process against ``merge_many``, and
    what a previous version does against the same of ours.
    """
    name = record["contender"]
    inside = name.removesuffix(PREVIOUS) in TIMED_INSIDE
    ours = name.removesuffix(PREVIOUS) if name.endswith(PREVIOUS) else ENGINE if inside else OURS
    if name in (OURS, ENGINE, *MANY):
        return None
    for other in records:
        if other["contender"] == ours and label(other) == label(record):
            figure = "inner_seconds" if inside else "seconds"
            return median(a / b for a, b in zip(other[figure], record[figure], strict=True))
    return None


def row(r: Record, records: list[Record]) -> list[str]:
    """Medians over the rounds, and the highest of the memory."""
    ours, inner = ratio(r, records), [x for x in r["inner_seconds"] if x]
    return [
        f"{label(r)}: {r['contender']}",
        *(f"{median(r['seconds']):.2f}", f"{min(r['seconds']):.2f} to {max(r['seconds']):.2f}"),
        f"{median(inner):.2f}" if inner else "",
        "" if ours is None else f"{ours:.2f}",
        f"{median(r['cpu_seconds']):.2f}",
        *(f"{max(r[name]) / 1e9:.2f}" for name in ("peak_rss", "peak_anonymous")),
    ]


@plot_style.styled_figure
def figure(merges: list[Record]) -> Figure:
    """Seconds and peak memory of whole processes that write safetensors; of the cases that have a peer, if any has."""
    shown = [r for r in merges if r["format"] == "safetensors" and r["contender"] in (OURS, *PEERS)]
    beside = {label(r) for r in shown if r["contender"] in PEERS}
    shown = [r for r in shown if label(r) in beside] or shown
    made = Figure(figsize=(plot_style.WIDTH, 0.8 + 0.25 * len(shown)))
    made.get_layout_engine().set(w_pad=0.15)  # type: ignore[union-attr]
    seconds, memory = made.subplots(1, 2, sharey=True)
    names = [f"{r['contender']}, {r['size']} x{r['count']}, {r['cache']}" for r in shown]
    colours = ["#0072B2" if r["contender"] == OURS else "#999999" for r in shown]
    seconds.barh(names, [median(r["seconds"]) for r in shown], color=colours)
    memory.barh(names, [max(r["peak_rss"]) / 1e9 for r in shown], color=colours)
    seconds.set_xlabel("seconds, output written")
    memory.set_xlabel("peak resident memory, GB")
    seconds.invert_yaxis()
    for axes in (seconds, memory):
        axes.tick_params(axis="y", labelsize=6)
        axes.margins(y=0.01)
        axes.grid(False, axis="y")
    return made


def report(path: Path) -> None:
    """Reads PATH.jsonl, writes PATH.png and .svg, and prints the tables."""
    records = [json.loads(line) for line in Path(f"{path}.jsonl").read_text().splitlines()]
    merges = [r for r in records if r["kind"] == "merge"]
    plot_style.save(figure(merges), path)
    print_table(HEADER, [row(r, merges) for r in merges], title="Merging checkpoints")
    errors = [[r[name] for name in PRECISION] for r in records if r["kind"] == "precision"]
    rows = [[f"{x:.1e}" if isinstance(x, float) else str(x) for x in found] for found in errors]
    print_table(PRECISION, rows, title="Relative rms error of wsm_jax.merge against float64")


if __name__ == "__main__":
    report(Path(sys.argv[1]))
