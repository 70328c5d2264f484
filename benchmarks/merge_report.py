"""What the records of ``benchmarks/merge.py`` say: goals, tables and figure.

    python benchmarks/merge_report.py benchmarks/results/merge

reads merge.jsonl again, writes the goals into it anew, draws the figure and prints the tables.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import merge_cases as cases_lib  # beside this file
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from merge_cases import (
    ENGINE,
    FORTY,
    LOOP,
    LOOP_WINDOWS,
    MEMORY,
    MERGEKIT,
    MERGEKIT_WINDOWS,
    OURS,
    PEERS,
    READ,
    WRITE,
    WRITTEN,
)
from rich.console import Console
from rich.table import Table

from wsm_jax.reporting import plot_style

Record = dict[str, Any]
OWN_FORMATS = ("safetensors", "stream")
BOUND = 3.0  # a peer that takes less than this times what disk or memory need cannot be beaten by that factor
COLOURS = {"safetensors": "#0072B2", "stream": "#D55E00", "orbax": "#009E73"}
LINES = {"warm": "-", "cold": "--"}
MARKERS = {"safetensors": "o", "stream": "s", "orbax": "^"}


@dataclasses.dataclass(frozen=True)
class Goal:
    """One goal: what was asked, what was measured, and whether it is met (None: not measured)."""

    text: str
    measured: str
    met: bool | None


def find(records: Iterable[Record], **fields: Any) -> list[Record]:
    """The merge records with these fields."""
    return [r for r in records if r["kind"] == "merge" and all(r[name] == value for name, value in fields.items())]


def goals(records: list[Record]) -> list[Goal]:
    """Every goal, computed from the records. The tiny size has none: starting a process is all it takes."""
    real = [r for r in records if r["kind"] != "merge" or r["size"] != "tiny"]
    found = []
    for format in OWN_FORMATS:
        for cache, baseline, least in (("cold", READ, 0.8), ("warm", MEMORY, 0.7)):
            for ours in (ENGINE, WRITTEN):  # the result in new memory, or on disk
                ratios = _against(real, ours, baseline, "inner_seconds", format=format, cache=cache)
                text = f"{format}, {cache}: {ours}, at least {least} of the rate of the {baseline}"
                found.append(_goal(text, ratios, lambda ratio, least=least: ratio >= least, "{:.2f}"))
    for size, format in dict.fromkeys((r["size"], r["format"]) for r in find(real, contender=OURS)):
        if format in OWN_FORMATS:
            peaks = {f"x{r['count']} {r['cache']}": max(r["peak_rss"]) for r in _ours(real, size, format)}
            spread = max(peaks.values()) / min(peaks.values())
            text = f"{size}, {format}: peak memory flat in the number of inputs (highest over lowest at most 1.1)"
            several = len({r["count"] for r in _ours(real, size, format)}) > 1
            found.append(Goal(text, f"{spread:.2f}" if several else "not measured", spread <= 1.1 if several else None))
    for format in OWN_FORMATS:
        peaks = {_label(r): max(r["peak_rss"]) / 1e9 for r in _ours(real, "774M", format)}
        found.append(_goal(f"774M, {format}: peak memory under 1 GB", peaks, lambda peak: peak < 1.0, "{:.2f} GB"))
    for format in OWN_FORMATS:
        slower = {k: 1 / v for k, v in _against(real, FORTY, ENGINE, "inner_seconds", format=format).items()}
        found.append(
            _goal(f"{format}: 40 merges take at most twice the time of one", slower, lambda x: x <= 2, "{:.2f}")
        )
    for tool in (MERGEKIT_WINDOWS, LOOP_WINDOWS):
        faster = {k: v * len(cases_lib.CURVES) for k, v in _against(real, FORTY, tool, "seconds").items()}
        text = f"40 merges at least 10x faster than 5 x ({tool})"
        found.append(_goal(text, faster, lambda x: x >= 10, "{:.1f}x"))
    faster = _against(real, OURS, MERGEKIT, "seconds", size="125M")
    found.append(_goal("125M: at least 2x faster than mergekit", faster, lambda x: x >= 2, "{:.1f}x"))
    for peer in PEERS:
        faster = {k: v for k, v in _against(real, OURS, peer, "seconds").items() if not _bound(real, peer, k)}
        text = f"at least 3x faster than {peer} where neither disk nor memory binds it"
        found.append(_goal(text, faster, lambda x: x >= 3, "{:.1f}x"))
    faster = _against(real, OURS, LOOP, "seconds", size="774M")
    found.append(_goal("774M: never slower than the plain loop", faster, lambda x: x >= 1, "{:.2f}x"))
    for peer in PEERS:
        for memory, name in (("peak_rss", "resident"), ("peak_anonymous", "anonymous")):
            share = {k: 1 / v for k, v in _against(real, OURS, peer, memory).items()}
            found.append(_goal(f"less peak {name} memory than {peer}", share, lambda x: x < 1, "{:.2f} of it"))
    return found


def _ours(records: list[Record], size: str, format: str) -> list[Record]:
    return find(records, contender=OURS, size=size, format=format)


def _label(record: Record) -> str:
    return f"{record['size']} x{record['count']} {record['format']} {record['cache']}"


def _against(records: list[Record], ours: str, other: str, figure: str, **fields: Any) -> dict[str, float]:
    """Case -> the other's figure over ours, the median of the ratios within the rounds."""
    others = {_label(r): r for r in find(records, contender=other, **fields)}
    return {
        _label(r): median(b / a for a, b in zip(r[figure], others[_label(r)][figure], strict=True))
        for r in find(records, contender=ours, **fields)
        if _label(r) in others
    }


def _bound(records: list[Record], peer: str, label: str) -> bool:
    """Whether a peer's time in a case is below ``BOUND`` times what reading or adding, and writing, take alone."""

    def took(contender: str, figure: str) -> float:
        return max((median(r[figure]) for r in find(records, contender=contender) if _label(r) == label), default=0.0)

    alone = max(took(READ, "inner_seconds"), took(MEMORY, "inner_seconds")) + took(WRITE, "inner_seconds")
    return took(peer, "seconds") < BOUND * alone


def _goal(text: str, figures: dict[str, float], met: Callable[[float], bool], form: str) -> Goal:
    measured = ", ".join(f"{form.format(figure)} ({label})" for label, figure in figures.items())
    return Goal(text, measured or "not measured", all(map(met, figures.values())) if figures else None)


def table(records: list[Record]) -> Table:
    """Medians over the rounds."""
    shown = Table(title="Merging checkpoints", title_justify="left")
    for column in (
        "case",
        "contender",
        "s",
        "lowest to highest",
        "CPU-s",
        "GB/s inside",
        "peak RSS, GB",
        "anonymous, GB",
    ):
        shown.add_column(column, justify="left" if column in ("case", "contender") else "right")
    last = ""
    for r in find(records):
        inner = [x for x in r["inner_seconds"] if x]
        merges_all = r["contender"] not in (WRITE, LOOP_WINDOWS, MERGEKIT_WINDOWS)  # those move other amounts
        rate = f"{r['input_bytes'] / median(inner) / 1e9:.2f}" if inner and merges_all else ""
        spread = f"{min(r['seconds']):.2f} to {max(r['seconds']):.2f}"
        memory = [f"{max(r[name]) / 1e9:.2f}" for name in ("peak_rss", "peak_anonymous")]
        case, last = ("" if _label(r) == last else _label(r)), _label(r)
        seconds = [f"{median(r[name]):.2f}" for name in ("seconds", "cpu_seconds")]
        shown.add_row(case, r["contender"], seconds[0], spread, seconds[1], rate, *memory)
    return shown


def precision_table(records: list[Record]) -> Table:
    """Relative rms errors."""
    shown = Table(title="Relative rms error of wsm_jax.merge against float64", title_justify="left")
    columns = {
        "inputs": "count",
        "of dtype": "dtype",
        "result in float32": "float32_result",
        "result in the inputs' dtype": "same_dtype_result",
        "summed in the inputs' dtype throughout": "same_dtype_sum",
    }
    for column in columns:
        shown.add_column(column, justify="right")
    for r in records:
        if r["kind"] == "precision":
            shown.add_row(*(f"{r[c]:.1e}" if isinstance(r[c], float) else str(r[c]) for c in columns.values()))
    return shown


def goal_table(found: list[Goal]) -> Table:
    """One row a goal."""
    shown = Table(title="Goals", title_justify="left", show_lines=True)
    for column in ("goal", "measured", ""):
        shown.add_column(column, overflow="fold")
    for goal in found:
        shown.add_row(goal.text, goal.measured, {True: "met", False: "NOT MET", None: "not measured"}[goal.met])
    return shown


@plot_style.styled_figure
def figure(records: list[Record]) -> Figure:
    """Seconds of whole processes; rate and peak memory by number of inputs; precision."""
    made = Figure(figsize=(plot_style.WIDTH, 8.0))
    made.get_layout_engine().set(w_pad=0.08)  # type: ignore[union-attr]
    (seconds, rate), (memory, precision) = made.subplots(2, 2)
    _seconds(seconds, records)
    sizes = list(dict.fromkeys(r["size"] for r in find(records)))
    cases = dict.fromkeys((r["size"], r["format"], r["cache"], r["machine"]["cpu"]) for r in find(records))
    named: set[str] = set()
    for size, format, cache, cpu in cases:
        same = [r for r in find(records, size=size, format=format, cache=cache) if r["machine"]["cpu"] == cpu]
        look = {"color": COLOURS[format], "marker": MARKERS[format], "linestyle": LINES[cache]}
        look |= {} if size == sizes[-1] else {"markerfacecolor": "white"}
        label = f"{size}, {format}, {cache}"
        if rates := sorted((r["count"], _rate(r)) for r in find(same, contender=ENGINE)):
            rate.plot(*zip(*rates, strict=True), **look)
        if peaks := sorted((r["count"], max(r["peak_rss"]) / 1e9) for r in find(same, contender=OURS)):
            memory.plot(*zip(*peaks, strict=True), label="_" + label if label in named else label, **look)
            named.add(label)
    for contender, cache, colour in ((READ, "cold", plot_style.GREY), (MEMORY, "warm", plot_style.RAW)):
        if found := find(records, contender=contender, cache=cache):
            look = {"color": colour, "linestyle": LINES[cache], "linewidth": 0.9}
            rate.axhline(median(map(_rate, found)), label=f"{contender}, {cache}: median of all cases", **look)
    for peer, marker in zip(PEERS, "xP*", strict=True):
        for place, r in enumerate(find(records, contender=peer, cache="warm")):
            at = r["count"] * (1.0 if r["size"] == sizes[0] else 1.12), max(r["peak_rss"]) / 1e9
            memory.plot(*at, color="#999999", marker=marker, linestyle="", label="_" * (place > 0) + f"{peer}, warm")
            memory.annotate(r["size"], at, (5, -2), textcoords="offset points", fontsize=6, color=plot_style.GREY)
    for dtype, colour in (("float32", "#0072B2"), ("bfloat16", "#D55E00")):
        rows = [r for r in records if r["kind"] == "precision" and r["dtype"] == dtype]
        for name, line in (("float32_result", "-"), ("same_dtype_result", "--"), ("same_dtype_sum", ":")):
            label = f"{dtype}: {name.replace('same_dtype', dtype).replace('_', ' ')}"
            if rows and (dtype, name) != ("float32", "same_dtype_result"):  # that is the line before
                x, y = [r["count"] for r in rows], [r[name] for r in rows]
                precision.plot(x, y, color=colour, linestyle=line, marker="o", label=label)
    rate.set(xlabel="inputs", ylabel="GB/s of inputs, inside the process", title="merge_many, one merge", yscale="log")
    memory.set(xlabel="inputs", ylabel="peak resident memory, GB", title="whole processes; grey: peers", yscale="log")
    precision.set(xlabel="inputs", ylabel="relative rms error", title="against float64", yscale="log")
    for axes in (rate, memory, precision):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    for axes in (rate, precision):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=6, handlelength=3.2, loc="lower right" if axes is rate else "center right")
    handles, labels = memory.get_legend_handles_labels()
    title = "upper right and lower left; a line joins what was measured on one model of processor"
    small = {"fontsize": 6.5, "title_fontsize": 7, "handlelength": 3.2}
    made.legend(handles, labels, title=title, loc="outside lower center", ncols=4, **small)
    for axes in (rate, memory):
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "25" else "")
    return made


def _rate(record: Record) -> float:
    return record["input_bytes"] / median(record["inner_seconds"]) / 1e9


def _seconds(axes: Axes, records: list[Record]) -> None:
    """Bars of whole processes, where there is a peer."""
    shown = [r for r in find(records, format="safetensors") if r["contender"] in (OURS, *PEERS)]
    beside = {(r["size"], r["count"], r["cache"]) for r in shown if r["contender"] in PEERS}
    shown = [r for r in shown if (r["size"], r["count"], r["cache"]) in beside] or shown
    if not shown:  # other formats alone were measured
        axes.set_axis_off()
        return
    groups = list(dict.fromkeys((r["size"], r["count"], r["cache"]) for r in shown))
    ticks: dict[float, str] = {}
    for place, r in enumerate(shown):
        at = place + 1.2 * groups.index((r["size"], r["count"], r["cache"]))
        ticks[at] = r["contender"]
        axes.barh(at, median(r["seconds"]), color=COLOURS["safetensors"] if r["contender"] == OURS else "#999999")
        if r["contender"] == OURS:  # the first of its group
            axes.annotate(
                f"{r['size']} x{r['count']}, page cache {r['cache']}", (0, at - 0.95), va="center", fontsize=6
            )
    axes.set(xlabel="seconds, output written", title="whole processes, safetensors", ylim=(max(ticks) + 0.7, -1.5))
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def report(path: Path) -> None:
    """Reads PATH.jsonl, adds the goals to it, writes PATH.png and .svg, and prints the tables."""
    records = [json.loads(line) for line in Path(f"{path}.jsonl").read_text().splitlines()]
    records = [record for record in records if record["kind"] != "goal"]
    found = goals(records)
    lines = [*records, *({"kind": "goal", **dataclasses.asdict(goal)} for goal in found)]
    Path(f"{path}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot_style.save(figure(records), path)
    console = Console()
    for shown in (table(records), precision_table(records), goal_table(found)):
        (console if console.is_terminal else Console(width=160)).print(shown)
    console.print(f"written: {path}.jsonl, .png, .svg")


if __name__ == "__main__":
    report(Path(sys.argv[1]))
