"""What the records of ``benchmarks/merge.py`` say: tables and a figure.

    python benchmarks/merge_report.py benchmarks/results/merge

reads merge.jsonl again, draws the figure and prints the tables.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from merge_cases import ENGINE, MANY, OURS, PEERS, PREVIOUS, TIMED_INSIDE  # beside this file

from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import print_table

Record = dict[str, Any]
COLOURS = {"safetensors": "#0072B2", "stream": "#D55E00", "orbax": "#009E73"}
LINES = {"warm": "-", "cold": "--"}


def find(records: Iterable[Record], **fields: Any) -> list[Record]:
    """The merge records with these fields."""
    return [r for r in records if r["kind"] == "merge" and all(r[name] == value for name, value in fields.items())]


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
    for other in find(records, contender=ours):
        if label(other) == label(record):
            figure = "inner_seconds" if inside else "seconds"
            return median(a / b for a, b in zip(other[figure], record[figure], strict=True))
    return None


def rate(record: Record) -> float:
    """GB/s of inputs inside the process."""
    return record["input_bytes"] / median(record["inner_seconds"]) / 1e9


def print_tables(records: list[Record]) -> None:
    """Medians over the rounds; errors."""
    rows = []
    for r in find(records):
        ours, inner = ratio(r, records), [x for x in r["inner_seconds"] if x]
        rows.append(
            [
                f"{label(r)}: {r['contender']}",
                *(f"{median(r['seconds']):.2f}", f"{min(r['seconds']):.2f} to {max(r['seconds']):.2f}"),
                f"{median(inner):.2f}" if inner else "",
                "" if ours is None else f"{ours:.2f}",
                f"{median(r['cpu_seconds']):.2f}",
                *(f"{max(r[name]) / 1e9:.2f}" for name in ("peak_rss", "peak_anonymous")),
            ]
        )
    header = ["case", "s", "lowest to highest", "s inside", "ours / it", "CPU-s", "peak RSS, GB", "anonymous, GB"]
    print_table(header, rows, title="Merging checkpoints")
    header = ["dtype", "count", "float32_result", "same_dtype_result", "same_dtype_sum"]
    errors = [[r[name] for name in header] for r in records if r["kind"] == "precision"]
    rows = [[f"{x:.1e}" if isinstance(x, float) else str(x) for x in row] for row in errors]
    print_table(header, rows, title="Relative rms error of wsm_jax.merge against float64")


@plot_style.styled_figure
def figure(records: list[Record]) -> Figure:
    """Seconds of whole processes with a peer; rate and peak memory by number of inputs."""
    made = Figure(figsize=(plot_style.WIDTH, 8.0))
    made.get_layout_engine().set(w_pad=0.15)  # type: ignore[union-attr]
    seconds, rates, memory = made.subplots(3, 1, height_ratios=(2, 1, 1))
    _bars(seconds, [r for r in find(records, format="safetensors") if r["contender"] in (OURS, *PEERS)])
    for size, format, cache in dict.fromkeys((r["size"], r["format"], r["cache"]) for r in find(records)):
        same = find(records, size=size, format=format, cache=cache)
        look: dict[str, Any] = {"color": COLOURS[format], "linestyle": LINES[cache]}
        look |= {"marker": "s" if size == "774M" else "o", "label": f"{size}, {format}, {cache}"}
        if points := sorted((r["count"], rate(r)) for r in find(same, contender=ENGINE)):
            rates.plot(*zip(*points, strict=True), **look)
        if points := sorted((r["count"], max(r["peak_rss"]) / 1e9) for r in find(same, contender=OURS)):
            memory.plot(*zip(*points, strict=True), **look)
    for peer, marker in zip(PEERS, "xP*", strict=True):
        if points := [(r["count"], max(r["peak_rss"]) / 1e9) for r in find(records, contender=peer)]:
            memory.plot(*zip(*points, strict=True), color="#999999", marker=marker, linestyle="", label=peer)
    rates.set(ylabel="GB/s of inputs", title="merge_many, one merge, inside the process", yscale="log")
    memory.set(xlabel="inputs", ylabel="peak resident memory, GB", title="whole processes", yscale="log")
    for axes in (rates, memory):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "25" else "")
    made.legend(*memory.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=6.5)
    return made


def _bars(axes: Axes, shown: list[Record]) -> None:
    """Whole processes; of the cases that have a peer, where any has."""
    beside = {label(r) for r in shown if r["contender"] in PEERS}
    shown = [r for r in shown if label(r) in beside] or shown
    names = [f"{r['contender']}, {r['size']} x{r['count']}, {r['cache']}" for r in shown]
    colours = [COLOURS["safetensors"] if r["contender"] == OURS else "#999999" for r in shown]
    axes.barh(names, [median(r["seconds"]) for r in shown], color=colours)
    axes.set(xlabel="seconds, output written", title="whole processes, safetensors")
    axes.tick_params(axis="y", labelsize=6)
    axes.invert_yaxis()
    axes.grid(False, axis="y")


def report(path: Path) -> None:
    """Reads PATH.jsonl, writes PATH.png and .svg, and prints the tables."""
    records = [json.loads(line) for line in Path(f"{path}.jsonl").read_text().splitlines()]
    plot_style.save(figure(records), path)
    print_tables(records)


if __name__ == "__main__":
    report(Path(sys.argv[1]))
