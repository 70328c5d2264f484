"""What the records of ``benchmarks/merge.py`` say: goals, tables and figure.

    python benchmarks/merge_report.py benchmarks/results/merge

reads merge.jsonl again, writes the goals into it anew, draws the figure and prints the tables.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import merge_cases as cases_lib  # beside this file
import results_file
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from merge_cases import (
    ENGINE,
    FORTY,
    FROM_US,
    LOOP,
    LOOP_WINDOWS,
    MEMORY,
    MERGEKIT,
    MERGEKIT_WINDOWS,
    OURS,
    PEERS,
    PREVIOUS,
    READ,
    WRITE,
    WRITTEN,
)

from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import print_table

Record = dict[str, Any]
OWN_FORMATS = ("safetensors", "stream")
BOUND = 3.0  # a peer that takes less than this times what disk or memory need cannot be beaten by that factor
COLOURS = {"safetensors": "#0072B2", "stream": "#D55E00", "orbax": "#009E73"}
LINES = {"warm": "-", "cold": "--"}


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
    real = [r for r in find(records) if r["size"] != "tiny"]
    return [*_rates(real), *_memory(real), *_many(real), *_beside_peers(real), *_beside_the_previous(real)]


def _rates(real: list[Record]) -> Iterator[Goal]:
    for format in OWN_FORMATS:
        for cache, baseline, least in (("cold", READ, 0.8), ("warm", MEMORY, 0.7)):
            for ours in (ENGINE, WRITTEN):  # the result in new memory, or on disk
                ratios = _against(real, ours, baseline, "inner_seconds", format=format, cache=cache)
                text = f"{format}, {cache}: {ours}, at least {least} of the rate of the {baseline}"
                yield _goal(text, ratios, lambda ratio, least=least: ratio >= least, "{:.2f}")


def _memory(real: list[Record]) -> Iterator[Goal]:
    for size, format in dict.fromkeys((r["size"], r["format"]) for r in find(real, contender=OURS)):
        if format in OWN_FORMATS:
            ours = find(real, contender=OURS, size=size, format=format)
            peaks = [max(r["peak_rss"]) for r in ours]
            flat = {"highest over lowest": max(peaks) / min(peaks)} if len({r["count"] for r in ours}) > 1 else {}
            text = f"{size}, {format}: peak memory flat in the number of inputs (highest over lowest at most 1.1)"
            yield _goal(text, flat, lambda x: x <= 1.1, "{:.2f}")
    for format in OWN_FORMATS:
        ours = find(real, contender=OURS, size="774M", format=format)
        peaks = {_label(r): max(r["peak_rss"]) / 1e9 for r in ours}
        yield _goal(f"774M, {format}: peak memory under 1 GB", peaks, lambda peak: peak < 1.0, "{:.2f} GB")
    ours = find(real, contender=OURS, size="125M", format="safetensors", count=8)
    peaks = {_label(r): max(r["peak_rss"]) / 1e6 for r in ours}
    yield _goal("125M x8 safetensors: peak memory under 300 MB", peaks, lambda peak: peak < 300, "{:.0f} MB")


def _many(real: list[Record]) -> Iterator[Goal]:
    for format in OWN_FORMATS:
        slower = _share(real, FORTY, ENGINE, "inner_seconds", format=format)
        yield _goal(f"{format}: 40 merges take at most twice the time of one", slower, lambda x: x <= 2, "{:.2f}")
    for tool in (MERGEKIT_WINDOWS, LOOP_WINDOWS):
        faster = {k: v * len(cases_lib.CURVES) for k, v in _against(real, FORTY, tool, "seconds").items()}
        yield _goal(f"40 merges at least 10x faster than 5 x ({tool})", faster, lambda x: x >= 10, "{:.1f}x")


def _beside_peers(real: list[Record]) -> Iterator[Goal]:
    for peer, most in ((LOOP, 0.75), (MERGEKIT, 0.3)):
        share = _share(real, OURS, peer, "seconds", size="125M", format="safetensors", count=8)
        text = f"125M x8 safetensors: at most {most} of the time of {peer}"
        yield _goal(text, share, lambda x, most=most: x <= most, "{:.2f}")
    faster = _against(real, OURS, MERGEKIT, "seconds", size="125M")
    yield _goal("125M: at least 2x faster than mergekit", faster, lambda x: x >= 2, "{:.1f}x")
    for peer in PEERS:
        faster = {k: v for k, v in _against(real, OURS, peer, "seconds").items() if not _bound(real, peer, k)}
        text = f"at least 3x faster than {peer} where neither disk nor memory binds it"
        yield _goal(text, faster, lambda x: x >= 3, "{:.1f}x")
    faster = _against(real, OURS, LOOP, "seconds", size="774M")
    yield _goal("774M: never slower than the plain loop", faster, lambda x: x >= 1, "{:.2f}x")
    for peer in PEERS:
        for memory, name in (("peak_rss", "resident"), ("peak_anonymous", "anonymous")):
            share = _share(real, OURS, peer, memory)
            yield _goal(f"less peak {name} memory than {peer}", share, lambda x: x < 1, "{:.2f} of it")


def _beside_the_previous(real: list[Record]) -> Iterator[Goal]:
    """None without one: a goal that only a comparison of versions has."""
    if not any(r["contender"].endswith(PREVIOUS) for r in real):
        return
    share = _share(real, FORTY, FORTY + PREVIOUS, "inner_seconds")
    yield _goal("40 merges at most 0.9 of the previous version's time", share, lambda x: x <= 0.9, "{:.2f}")
    for ours in FROM_US:
        figure = "seconds" if ours == OURS else "inner_seconds"
        slower = {}
        for r in find(real, contender=ours):
            for before in find(real, contender=ours + PREVIOUS):
                if _label(before) == _label(r):
                    slower[_label(r)] = median(r[figure]) / max(before[figure])
        text = f"{ours}: not slower than the previous version's slowest round"
        yield _goal(text, slower, lambda x: x <= 1, "{:.2f} of it")


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


def _share(records: list[Record], ours: str, other: str, figure: str, **fields: Any) -> dict[str, float]:
    """Case -> our figure over the other's."""
    return {case: 1 / ratio for case, ratio in _against(records, ours, other, figure, **fields).items()}


def _bound(records: list[Record], peer: str, label: str) -> bool:
    """Whether a peer's time in a case is below ``BOUND`` times what reading or adding, and writing, take alone."""

    def took(contender: str, figure: str) -> float:
        return max((median(r[figure]) for r in find(records, contender=contender) if _label(r) == label), default=0.0)

    alone = max(took(READ, "inner_seconds"), took(MEMORY, "inner_seconds")) + took(WRITE, "inner_seconds")
    return took(peer, "seconds") < BOUND * alone


def _goal(text: str, figures: dict[str, float], met: Callable[[float], bool], form: str) -> Goal:
    measured = ", ".join(f"{form.format(figure)} ({label})" for label, figure in figures.items())
    return Goal(text, measured or "not measured", all(map(met, figures.values())) if figures else None)


def print_tables(records: list[Record], found: list[Goal]) -> None:
    """Medians over the rounds, errors, goals."""
    rows = []
    for r in find(records):
        inner = [x for x in r["inner_seconds"] if x]
        merges_all = r["contender"] not in (WRITE, LOOP_WINDOWS, MERGEKIT_WINDOWS)  # those move other amounts
        rate = f"{_rate(r):.2f}" if inner and merges_all else ""
        seconds = [f"{median(r['seconds']):.2f}", f"{min(r['seconds']):.2f} to {max(r['seconds']):.2f}"]
        memory = [f"{max(r[name]) / 1e9:.2f}" for name in ("peak_rss", "peak_anonymous")]
        rows.append([f"{_label(r)}: {r['contender']}", *seconds, f"{median(r['cpu_seconds']):.2f}", rate, *memory])
    header = ["case", "s", "lowest to highest", "CPU-s", "GB/s inside", "peak RSS, GB", "anonymous, GB"]
    print_table(header, rows, title="Merging checkpoints")
    header = ["dtype", "count", "float32_result", "same_dtype_result", "same_dtype_sum"]
    errors = [[r[name] for name in header] for r in records if r["kind"] == "precision"]
    rows = [[f"{x:.1e}" if isinstance(x, float) else str(x) for x in row] for row in errors]
    print_table(header, rows, title="Relative rms error of wsm_jax.merge against float64")
    answers = {True: "met", False: "NOT MET", None: "not measured"}
    print_table(["goal", "", "measured"], [[g.text, answers[g.met], g.measured] for g in found], title="Goals")


@plot_style.styled_figure
def figure(records: list[Record]) -> Figure:
    """Seconds of whole processes with a peer; rate and peak memory by number of inputs."""
    made = Figure(figsize=(plot_style.WIDTH, 8.0))
    made.get_layout_engine().set(w_pad=0.15)  # type: ignore[union-attr]
    seconds, rate, memory = made.subplots(3, 1, height_ratios=(2, 1, 1))
    _seconds(seconds, [r for r in find(records, format="safetensors") if r["contender"] in (OURS, *PEERS)])
    for size, format, cache in dict.fromkeys((r["size"], r["format"], r["cache"]) for r in find(records)):
        same = find(records, size=size, format=format, cache=cache)
        look: dict[str, Any] = {"color": COLOURS[format], "linestyle": LINES[cache]}
        look |= {"marker": "s" if size == "774M" else "o", "label": f"{size}, {format}, {cache}"}
        if rates := sorted((r["count"], _rate(r)) for r in find(same, contender=ENGINE)):
            rate.plot(*zip(*rates, strict=True), **look)
        if peaks := sorted((r["count"], max(r["peak_rss"]) / 1e9) for r in find(same, contender=OURS)):
            memory.plot(*zip(*peaks, strict=True), **look)
    for peer, marker in zip(PEERS, "xP*", strict=True):
        if points := [(r["count"], max(r["peak_rss"]) / 1e9) for r in find(records, contender=peer)]:
            memory.plot(*zip(*points, strict=True), color="#999999", marker=marker, linestyle="", label=peer)
    rate.set(ylabel="GB/s of inputs", title="merge_many, one merge, inside the process", yscale="log")
    memory.set(xlabel="inputs", ylabel="peak resident memory, GB", title="whole processes", yscale="log")
    for axes in (rate, memory):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "25" else "")
    made.legend(*memory.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=6.5)
    return made


def _rate(record: Record) -> float:
    return record["input_bytes"] / median(record["inner_seconds"]) / 1e9


def _seconds(axes: Axes, shown: list[Record]) -> None:
    """Bars of whole processes; of the cases that have a peer, where any has."""
    beside = {_label(r) for r in shown if r["contender"] in PEERS}
    shown = [r for r in shown if _label(r) in beside] or shown
    names = [f"{r['contender']}, {r['size']} x{r['count']}, {r['cache']}" for r in shown]
    colours = [COLOURS["safetensors"] if r["contender"] == OURS else "#999999" for r in shown]
    axes.barh(names, [median(r["seconds"]) for r in shown], color=colours)
    axes.set(xlabel="seconds, output written", title="whole processes, safetensors")
    axes.tick_params(axis="y", labelsize=6)
    axes.invert_yaxis()
    axes.grid(False, axis="y")


def report(path: Path) -> None:
    """Reads PATH.jsonl, adds the goals to it, writes PATH.png and .svg, and prints the tables."""
    records = [json.loads(line) for line in Path(f"{path}.jsonl").read_text().splitlines()]
    records = [record for record in records if record["kind"] != "goal"]
    found = goals(records)
    lines = [*records, *({"kind": "goal", **dataclasses.asdict(goal)} for goal in found)]
    results_file.write(Path(f"{path}.jsonl"), lines)
    plot_style.save(figure(records), path)
    print_tables(records, found)


if __name__ == "__main__":
    report(Path(sys.argv[1]))
