"""Table 1 and Figure 3: a real decay (WSD) against merges (WSM) along the tokens since the switch to better text.

    python -m experiments.wsd_vs_wsm [--scale=small]

Both arms leave a stable run at 3/4 of the steps, each at the peak rate tuned for it, and read the same annealing text.
WSD decays along 1-sqrt to zero in 16 intervals, and along linear for one row more. WSM goes on at the constant rate for
20 and merges its latest 8, 12, 16 or 20 checkpoints with equal weights (the paper's default). Compared at equal tokens,
with the number of checkpoints chosen on validation; at equal storage, where WSM may keep as many parameters as WSD's
one full state; and the paper's own way, the best of all its checkpoints on the reported figure itself. Finding 4 is
looked at with the same arms without the switch: their gap on the text that they were trained on, and the leads of both
on the same text.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from configs import matrix
from experiments import corpus, domains, figures, protocol
from experiments.intervals import CLAIMS, HOLDS, claimed, shown
from experiments.jobs import EXTRA, WSD, WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import Seeds, plus_minus, source, unswitched
from experiments.training import SEED_SCALES, matrix_of, rates
from experiments.trajectories import window
from wsm_jax import plot_style
from wsm_jax.tables import markdown_table

COUNTS = (8, 12, 16, 20)
END = matrix.DECAY  # intervals since the switch at which arms are compared
EVERY = 4  # intervals between the points of the figure
STORED, APART = 3, 5  # checkpoints in the room of parameters and both moments, over nearly the decay's length
TEXTS = {"stable": "the old text", "anneal": "the new text", "eval": "the benchmarks"}  # before, after the switch
RAW, MERGE, SPARSE, LINEAR = "raw", "merge", "sparse merge", "wsd, linear"
LINEAR_WSD = (LINEAR, 0, END, True)
PAPER = {WSD: 62.67, WSM: 63.95}  # overall of Table 1


def measure(folder: Path, seed: int, settings: list[str]) -> list[Record]:
    """Every point of every arm of a seed."""
    runs, rate = matrix_of(folder, settings), rates(folder.parent.name)
    switched = runs.run(seed, rate[WSM], "switched")
    decays = {
        True: runs.run(seed, rate[WSD], "switched-minus_sqrt"),
        False: runs.run(seed, rate[WSD], "decay-minus_sqrt"),
    }
    paths = {True: runs.path(seed, rate[WSM], "switched"), False: runs.path(seed, rate[WSM], "constant")}
    recipes = {}
    for since in range(EVERY, END + EXTRA + 1, EVERY):
        for switch in (True, False) if since == END else (True,):
            step, path = runs.branch_step + since * runs.interval, paths[switch]
            recipes[RAW, 1, since, switch] = protocol.single(path[step])
            recipes |= {(MERGE, n, since, switch): window(path, "linear", n, step) for n in COUNTS}
            if since == END:
                recipes[SPARSE, STORED, since, switch] = window(path, "linear", STORED, step, apart=APART)
            if since <= END:
                recipes[WSD, 0, since, switch] = protocol.single(decays[switch].merge_stream / str(step))
    linear = runs.run(seed, rate[WSD], "switched-linear")
    recipes[LINEAR_WSD] = protocol.single(linear.merge_stream / str(runs.steps))
    found = domains.losses(recipes, domains.evaluators(runs, switched))
    facts = {"switched": runs.switches, "peak_lr": rate[WSM], "wsd_peak_lr": rate[WSD], **protocol.provenance(switched)}
    return [
        {"arm": arm, "count": count, "since": since, "switch": switch, **loss, **facts}
        for (arm, count, since, switch), loss in found.items()
    ]


def present(records: list[Record]) -> Page:
    """Table 1, its variants, finding 4 and Figure 3."""
    table = Seeds(records, "arm", "count", "since", "switch")
    names = list(records[0]["domains"])
    merges = [(MERGE, n, END, True) for n in COUNTS]
    raw, wsd, wsm = (RAW, 1, END, True), (WSD, 0, END, True), table.best(merges)
    picked = min(
        ((MERGE, n, s, True) for n in COUNTS for s in range(EVERY, END + EXTRA + 1, EVERY)), key=lambda k: table.mean(k)
    )
    arms = {
        "before merge": raw,
        "WSD": wsd,
        f"WSM, {wsm[1]} checkpoints (chosen on validation)": wsm,
        f"WSM at equal storage, {STORED} checkpoints": (SPARSE, STORED, END, True),
        f"WSM the paper's way: best on test, {picked[1]} checkpoints, {picked[2]} intervals": picked,
    }
    if LINEAR_WSD in table:  # it is younger than some records
        arms["WSD, linear decay"] = LINEAR_WSD
    rows = [["", *names, "mean", "minus WSD"]]
    for name, key in arms.items():
        cells = [f"{table.mean(key, 'domains', [domain]):.4f}" for domain in names]
        rows.append([name, *cells, plus_minus(table.of(key)), "–" if key == wsd else shown(table.minus(key, wsd))])
    first = records[0]
    lines = [
        "# WSD against WSM (Table 1, Figure 3)",
        "",
        f"Test loss in bits per byte, lower is better, {END} intervals after the switch where a row does not "
        f"say otherwise. {source(records)}"
        f"{unswitched(records)} Peak rate {first['peak_lr']:g} (WSM) and {first['wsd_peak_lr']:g} (WSD). WSD decays "
        "along 1-sqrt, as the paper's, where a row does not say otherwise. *Old text*: of the domains before the "
        "switch; *new text*: after it.",
        "",
        *markdown_table(rows),
        "",
        f"The paper's mean over 41 benchmarks, higher is better: {PAPER[WSD]} (WSD), {PAPER[WSM]} (WSM, 16 "
        "checkpoints, at 425B tokens against WSD's 400B).",
        "",
        *markdown_table(claims(table, wsm, picked)),
        "",
        HOLDS,
        "",
        "![Loss of both arms along the tokens since the switch](figure3.png)",
        "",
        "Bits per byte; bars are 95% intervals of the difference over seeds.",
    ]
    return Page(lines, {"figure3": figure(table)})


def claims(table: Seeds, wsm: tuple, picked: tuple) -> list[list[str]]:
    """Header and rows: claim, difference, verdict."""
    wsd = {switch: (WSD, 0, END, switch) for switch in (True, False)}
    names, raw = phases(table), (RAW, 1, END, True)
    plain = table.best([(MERGE, n, END, False) for n in COUNTS], "validation_domains", names["stable"])
    lead = table.minus(wsm, wsd[True])
    without = table.minus(plain, wsd[False], "domains", names["stable"])
    rows = [
        (
            "WSM is better than WSD at equal tokens",
            lead,
            f"{PAPER[WSM]} against {PAPER[WSD]}, picked on test, 6% more tokens",
        ),
        *_apart(names, "WSM is better than WSD", lambda group: table.minus(wsm, wsd[True], "domains", group)),
        *_alike(table, names, wsm, wsd[True]),
        (
            f"WSM with {END} checkpoints (as long a window as the decay) is better than WSD",
            table.minus((MERGE, END, END, True), wsd[True]),
            "–",
        ),
        (
            f"WSM with {STORED} checkpoints (the storage of one WSD full state) is better than WSD",
            table.minus((SPARSE, STORED, END, True), wsd[True]),
            "–",
        ),
        *(_linear(table, names, wsm, wsd[True]) if LINEAR_WSD in table else ()),
        (
            f"WSM is better than WSD the paper's way (picked on test, at {picked[2]} intervals against {END})",
            table.minus(picked, wsd[True]),
            f"{PAPER[WSM]} at 425B tokens against {PAPER[WSD]} at 400B",
        ),
        ("a merge is better than no merge", table.minus(wsm, raw), "63.63 against 60.33 (Table 4)"),
        (
            "WSD is better than the constant rate without a merge",
            table.minus(wsd[True], raw),
            f"{PAPER[WSD]} (Table 1) against 60.33 (Table 4)",
        ),
        *_apart(
            names,
            "WSD is better than the constant rate without a merge",
            lambda group: table.minus(wsd[True], raw, "domains", group),
        ),
        (
            f"without the switch, on its text, the merge ({plain[1]} checkpoints) is better than the decay",
            without,
            "it only matches",
        ),
        (
            "the merge's lead over the decay is larger with the switch than without (finding 4), all domains",
            _larger(lead, table.minus(plain, wsd[False])),
            "it is the switch that makes the lead",
        ),
        *_apart(
            names,
            "the lead is larger with the switch than without",
            lambda group: _larger(
                table.minus(wsm, wsd[True], "domains", group), table.minus(plain, wsd[False], "domains", group)
            ),
        ),
    ]
    return [CLAIMS, *(claimed(*row) for row in rows)]


def _apart(
    names: dict[str, list[str]], claim: str, values: Callable[[list[str]], list[float]]
) -> list[tuple[str, list[float], str]]:
    """A claim for the text of each phase by itself."""
    return [(f"{TEXTS[phase]} alone: {claim}", values(group), "–") for phase, group in names.items()]


def _alike(
    table: Seeds, names: dict[str, list[str]], first: tuple, second: tuple
) -> list[tuple[str, list[float], str]]:
    """The claim of the text that is trained on, both phases weighted alike; none where nothing was switched."""
    if "anneal" not in names:
        return []
    both = [table.minus(first, second, "domains", names[phase]) for phase in ("stable", "anneal")]
    claim = "old and new text weighted alike, without the benchmarks: WSM is better than WSD"
    return [(claim, [(a + b) / 2 for a, b in zip(*both, strict=True)], "–")]


def _linear(table: Seeds, names: dict[str, list[str]], wsm: tuple, wsd: tuple) -> list[tuple[str, list[float], str]]:
    """The real decay that is not the paper's, beside the merge and beside the one that is."""
    claim = "WSM is better than WSD with a linear decay"
    return [
        (claim, table.minus(wsm, LINEAR_WSD), "–"),
        *_apart(names, claim, lambda group: table.minus(wsm, LINEAR_WSD, "domains", group)),
        ("WSD with a linear decay is better than with the paper's 1-sqrt", table.minus(LINEAR_WSD, wsd), "–"),
    ]


def _larger(with_switch: list[float], without: list[float]) -> list[float]:
    """How much further the merge is below the decay with the switch, by seed; negative is more."""
    return [a - b for a, b in zip(with_switch, without, strict=True)]


def phases(table: Seeds) -> dict[str, list[str]]:
    """Phase of the text -> its domains that were measured; without the switch all that there are are stable."""
    there = table.names("domains")
    found = {phase: [name for name in names if name in there] for phase, names in corpus.PHASES.items()}
    return {phase: names for phase, names in found.items() if names} or {"stable": there}


@plot_style.styled_figure
def figure(table: Seeds) -> Figure:
    """Against intervals since the switch: the mean loss, and by text the loss minus that before the merge."""
    texts = phases(table)
    made = Figure(figsize=(plot_style.WIDTH, 2.4 * -(-(1 + len(texts)) // 2) + 0.4))
    panels = made.subplots(-(-(1 + len(texts)) // 2), 2, sharex=True).ravel()
    blues = ("#9ECAE1", "#4292C6", "#2171B5", "#08306B")
    looks = {(RAW, 1): (plot_style.RAW, "s", "before merge"), (WSD, 0): ("#D55E00", "^", "WSD, 1-sqrt decay")}
    looks |= {(MERGE, n): (c, m, f"merge {n}") for n, c, m in zip(COUNTS, blues, "ovDP", strict=True)}
    looks |= {(LINEAR, 0): ("#E69F00", "*", "WSD, linear decay")} if LINEAR_WSD in table else {}
    for place, ((arm, count), (colour, marker, label)) in enumerate(looks.items()):
        there = [s for s in range(EVERY, END + EXTRA + 1, EVERY) if (arm, count, s, True) in table]
        look = {"color": colour, "marker": marker, "label": label}
        panels[0].plot(there, [table.mean((arm, count, s, True)) for s in there], **look)
        for axes, names in zip(panels[1:], texts.values(), strict=False):
            gains = [table.minus((arm, count, s, True), (RAW, 1, s, True), "domains", names) for s in there]
            figures.line(axes, [s + 0.15 * (place - 2.5) for s in there], gains, **look)  # side by side
    titles = ["mean over domains", *(TEXTS[phase] for phase in texts)]
    for place, (axes, title) in enumerate(zip(panels, titles, strict=False)):
        axes.axvline(END, color=plot_style.GREY, linewidth=0.8, linestyle=":", label="end of the decay")
        axes.set(title=title, ylabel="minus before merge" if place else "test loss, bits per byte")
        axes.set_xticks(range(EVERY, END + EXTRA + 1, EVERY))
    for axes in panels[len(titles) :]:
        axes.remove()
    for axes in panels[len(titles) - 2 : len(titles)]:
        axes.set_xlabel("intervals since the switch")
    made.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return made


EXPERIMENT = Experiment("wsd_vs_wsm", SEED_SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
