"""Table 1 and Figure 3: a real decay (WSD) against merges (WSM) along the tokens since the switch to better text.

    python -m experiments.wsd_vs_wsm [--scale=small]

Both arms leave a stable run at 3/4 of the steps, each at the peak rate tuned for it, and read the same annealing text.
WSD decays along 1-sqrt to zero in 16 intervals, and along linear for one row more. WSM goes on at the constant rate for
20 and merges its latest 8, 12, 16 or 20 checkpoints with equal weights (the paper's default). Compared at equal tokens,
with the number of checkpoints chosen on validation; at equal storage, where WSM may keep as many parameters as WSD's
one full state; and the paper's own way, the best of all its checkpoints on the reported figure itself. Finding 4 is
looked at with the same arms without the switch: their gap on the text that they were trained on, and the leads of both
on the same text. The linear decay has the rate that was tuned for 1-sqrt, and what is not switched the rates that were
tuned with the switch.
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
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import markdown_table

COUNTS = (8, 12, 16, 20)
END = matrix.DECAY  # intervals since the switch at which arms are compared
EVERY = 4  # intervals between the points of the figure
STORED, APART = 3, 5  # checkpoints in the room of parameters and both moments, over nearly the decay's length
TEXTS = {"stable": "the old text", "anneal": "the new text", "eval": "the benchmarks"}  # before, after the switch
RAW, MERGE, SPARSE, LINEAR = "raw", "merge", "sparse merge", "wsd, linear"
LINEAR_WSD, LINEAR_UNSWITCHED = ((LINEAR, 0, END, switch) for switch in (True, False))
PAPER = {WSD: 62.67, WSM: 63.95}  # overall of Table 1
# Groups of its benchmarks that we have some of: ours, what it has for the group (Table 1) and for some (abstract).
GROUPS = {
    "mathematics (GSM8K, MATH-500)": (("gsm8k", "math500"), "58.81 against 57.49; MATH +3.5%"),
    "code (HumanEval)": (("humaneval",), "65.58 against 64.88; HumanEval +2.9%"),
    "professional knowledge (MMLU-Pro)": (("mmlu_pro",), "56.04 against 53.46; MMLU-Pro +5.5%"),
}


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
        for switch in (True, False) if since <= END else (True,):
            step, path = runs.branch_step + since * runs.interval, paths[switch]
            recipes[RAW, 1, since, switch] = protocol.single(path[step])
            recipes |= {(MERGE, n, since, switch): window(path, "linear", n, step) for n in COUNTS}
            if since == END:
                recipes[SPARSE, STORED, since, switch] = window(path, "linear", STORED, step, apart=APART)
            if since <= END:
                recipes[WSD, 0, since, switch] = protocol.single(decays[switch].merge_stream / str(step))
    for key, job in ((LINEAR_WSD, "switched-linear"), (LINEAR_UNSWITCHED, "decay-linear")):
        linear = runs.run(seed, rate[WSD], job)
        recipes[key] = protocol.single(linear.merge_stream / str(runs.steps))
    found = domains.losses(recipes, domains.evaluators(runs, switched))
    facts = {"switched": runs.switches, "peak_lr": rate[WSM], "wsd_peak_lr": rate[WSD], **protocol.provenance(switched)}
    return [
        {"arm": arm, "count": count, "since": since, "switch": switch, **facts, **loss}
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
    rows = [["", *arms]]
    for domain in names:
        rows.append([domain, *(plus_minus(table.of(key, "domains", [domain])) for key in arms.values())])
    rows.append(["mean", *(plus_minus(table.of(key)) for key in arms.values())])
    rows.append(["minus WSD", *("–" if key == wsd else shown(table.minus(key, wsd)) for key in arms.values())])
    first = records[0]
    lines = [
        "# WSD against WSM (Table 1, Figure 3)",
        "",
        f"Test loss in bits per byte, lower is better, {END} intervals after the switch where a column does not "
        f"say otherwise. {source(records)}"
        f"{unswitched(records)} Peak rate {first['peak_lr']:g} (WSM) and {first['wsd_peak_lr']:g} (WSD). WSD decays "
        "along 1-sqrt, as the paper's, where it is not said otherwise; the linear decay has its rate, and what is not "
        "switched has the rates that were tuned with the switch. *Old text*: of the domains before the switch; *new "
        "text*: after it.",
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
        "Bits per byte; the first panel has means over seeds, the bars of the others are 95% intervals of the "
        "difference over seeds.",
    ]
    made = {"figure3": figure(table)}
    if (WSD, 0, EVERY, False) in table:  # younger than some records, as the linear decay
        lines += ["", "![Loss of both arms without the switch](unswitched.png)", ""]
        lines += ["The same without the switch, on its text (finding 4)."]
        made["unswitched"] = unswitched_figure(table)
    return Page(lines, made)


def claims(table: Seeds, wsm: tuple, picked: tuple) -> list[list[str]]:
    """Header and rows: claim, difference, verdict."""
    wsd = {switch: (WSD, 0, END, switch) for switch in (True, False)}
    names, raw = phases(table), (RAW, 1, END, True)
    plain = table.best([(MERGE, n, END, False) for n in COUNTS], "validation_domains", names["stable"])
    without = table.minus(plain, wsd[False], "domains", names["stable"])
    rows = [
        (
            "WSM is better than WSD at equal tokens",
            table.minus(wsm, wsd[True]),
            f"{PAPER[WSM]} against {PAPER[WSD]}, picked on test, 6% more tokens since the switch",
        ),
        *_apart(names, "WSM is better than WSD", lambda group: table.minus(wsm, wsd[True], "domains", group)),
        *(
            (f"{group} alone: WSM is better than WSD", table.minus(wsm, wsd[True], "domains", ours), paper)
            for group, (ours, paper) in GROUPS.items()
            if {*ours} <= {*table.names("domains")}
        ),
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
            f"{PAPER[WSD]} (Table 1) against 60.33 (Table 4, perhaps at other tokens)",
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
        *_finding4(table, names, (wsm, plain), (wsd[True], wsd[False]), "the decay"),
        *(
            _finding4(table, names, (wsm, plain), (LINEAR_WSD, LINEAR_UNSWITCHED), "the linear decay")
            if LINEAR_UNSWITCHED in table
            else ()
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


def _finding4(
    table: Seeds, names: dict[str, list[str]], merges: tuple[tuple, tuple], decays: tuple[tuple, tuple], decay: str
) -> list[tuple[str, list[float], str]]:
    """How much further the merge is below a decay with the switch than without, by text; pairs are (with, without)."""

    def larger(group: list[str]) -> list[float]:
        leads = [table.minus(*pair, "domains", group) for pair in zip(merges, decays, strict=True)]
        return [a - b for a, b in zip(*leads, strict=True)]

    claim, paper = f"the merge's lead over {decay} is larger with the switch than without", "the switch makes the lead"
    rows = [(f"{claim} (finding 4), all domains", larger(table.names("domains")), paper)]
    return [*rows, *_apart(names, claim, larger)]


def phases(table: Seeds) -> dict[str, list[str]]:
    """Phase of the text -> its domains that were measured; without the switch all that there are are stable."""
    there = table.names("domains")
    found = {phase: [name for name in names if name in there] for phase, names in corpus.PHASES.items()}
    return {phase: names for phase, names in found.items() if names} or {"stable": there}


BLUES = ("#9ECAE1", "#4292C6", "#2171B5", "#08306B")
LOOKS = {(RAW, 1): (plot_style.RAW, "s", "before merge"), (WSD, 0): ("#D55E00", "^", "WSD, 1-sqrt decay")}
LOOKS |= {(MERGE, n): (c, m, f"merge {n}") for n, c, m in zip(COUNTS, BLUES, "ovDP", strict=True)}
LINEAR_LOOK = ("#E69F00", "*", "WSD, linear decay")


@plot_style.styled_figure
def unswitched_figure(table: Seeds) -> Figure:
    """Without the switch, on its text, against intervals since the branch: loss minus that before the merge."""
    made = Figure(figsize=(plot_style.WIDTH * 0.8, 2.9))
    axes, names = made.subplots(), phases(table)["stable"]
    for place, ((arm, count), (colour, marker, label)) in enumerate((LOOKS | {(LINEAR, 0): LINEAR_LOOK}).items()):
        there = [s for s in range(EVERY, END + 1, EVERY) if (arm, count, s, False) in table]
        gains = [table.minus((arm, count, s, False), (RAW, 1, s, False), "domains", names) for s in there]
        look = {"color": colour, "marker": marker, "label": label}
        figures.line(axes, [s + 0.15 * (place - 2.5) for s in there], gains, **look)  # side by side
    axes.set(xlabel="intervals since the branch", ylabel="minus before merge, bits per byte")
    axes.set_xticks(range(EVERY, END + 1, EVERY))
    made.legend(loc="outside right upper")
    return made


@plot_style.styled_figure
def figure(table: Seeds) -> Figure:
    """Against intervals since the switch: the mean loss, and by text the loss minus that before the merge."""
    texts = phases(table)
    made = Figure(figsize=(plot_style.WIDTH, 2.4 * -(-(1 + len(texts)) // 2) + 0.4))
    panels = made.subplots(-(-(1 + len(texts)) // 2), 2, sharex=True).ravel()
    looks = LOOKS | ({(LINEAR, 0): LINEAR_LOOK} if LINEAR_WSD in table else {})
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
