"""What merges miss of a real decay, and what narrows it without any decay run.

    python -m experiments.gap [--scale=small]

On the text of the stable phase, no switch, equal tokens. Over the last quarter of the run: real decays (linear, cosine,
1-sqrt), and beside the plain merge of the constant run longer windows, means of the parameters over each interval,
weights that know AdamW's weight decay, learned weights, and merges of branches that differ from the constant run: a
quarter, half or twice its rate, twice its batch (half as many updates), or a start from the merge of the 16
checkpoints before it (a merge fed back). Each way's curve and window, the best way and the best decay are chosen on
validation.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from configs import matrix
from experiments import domains, protocol
from experiments.intervals import CLAIMS, HOLDS, claimed, interval, shown
from experiments.jobs import CURVES, RATE_FACTORS, WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import Seeds, plus_minus, source
from experiments.training import SEED_SCALES, matrix_of, rates
from experiments.trajectories import along, window
from wsm_jax import plot_style, tuning
from wsm_jax.checkpoints import PARAMS
from wsm_jax.merging import selection
from wsm_jax.merging.recipe import Recipe, make_recipe
from wsm_jax.merging.selection import MEAN, POINT
from wsm_jax.report import markdown_table

MERGED = ("linear", "cosine", "minus_sqrt", "ema")
COUNTS, LONG = (2, 4, 8, 12, 16), (24, 32)
RAW, REAL, PLAIN, LONGER = "raw", "decay", "merge", "longer windows"
MEANS, AWARE, LEARNED = "interval means", "weight-decay-aware weights", "learned weights"
BRANCHES = {f"rate-{factor:g}": f"{factor:g} × the rate" for factor in RATE_FACTORS}
BRANCHES |= {"batch-2": "2 × the batch", "merged-constant": "merge fed back"}
WAYS = (PLAIN, LONGER, MEANS, AWARE, LEARNED, *BRANCHES.values())


def measure(folder: Path, seed: int, settings: list[str]) -> list[Record]:
    """Every way of a seed."""
    runs = matrix_of(folder, settings)
    rate = rates(runs.scale)[WSM]
    constant, end = runs.run(seed, rate, "constant"), runs.steps
    path = runs.path(seed, rate, "constant")
    recipes = {(RAW, "", 1): protocol.single(path[end])}
    for curve in CURVES:
        decay = runs.run(seed, rate, f"decay-{curve}")
        recipes[REAL, curve, matrix.DECAY] = protocol.single(decay.merge_stream / str(end))
    for curve in MERGED:
        for n in (*COUNTS, *LONG):
            recipes[PLAIN if n in COUNTS else LONGER, curve, n] = window(path, curve, n, end)
        for n in COUNTS:
            recipes[MEANS, curve, n] = make_recipe(constant, curve, n, snapshot=MEAN)
            recipes[AWARE, curve, n] = make_recipe(constant, curve, n, snapshot=POINT, weight_decay_aware=True)
    chosen = selection.select(constant, matrix.DECAY, last_step=end)
    learned = tuning.learn(constant, chosen, seed=seed).weights
    recipes[LEARNED, "", matrix.DECAY] = Recipe(chosen.paths, (PARAMS,) * chosen.count, learned)
    for job, way in BRANCHES.items():
        own = along(runs.run(seed, rate, job))
        recipes |= {
            (way, curve, n): window(own, curve, n, max(own)) for curve in MERGED for n in COUNTS if n <= len(own)
        }
        recipes[way, "", 1] = protocol.single(own[max(own)])
    found = domains.losses(recipes, domains.evaluators(runs, constant))
    facts = {"peak_lr": rate, **protocol.provenance(constant)}
    return [{"way": way, "curve": curve, "count": n, **loss, **facts} for (way, curve, n), loss in found.items()]


def present(records: list[Record]) -> Page:
    """The ways beside the best real decay, and the best of them."""
    table, raw = Seeds(records, "way", "curve", "count"), (RAW, "", 1)
    keys = list(dict.fromkeys((r["way"], r["curve"], r["count"]) for r in records))
    best = {way: table.best([key for key in keys if key[0] == way]) for way in WAYS}
    real = table.best([(REAL, curve, matrix.DECAY) for curve in CURVES])
    gain = sum(table.minus(real, raw))
    rows = [["", "curve × checkpoints", "test loss", "minus no merge", "of the decay's gain", "minus real decay"]]

    def add(name: str, key: tuple, what: str) -> None:
        share = f"{sum(table.minus(key, raw)) / gain:.0%}"
        last = "–" if key == real else shown(table.minus(key, real))
        rows.append([name, what, plus_minus(table.of(key)), shown(table.minus(key, raw)), share, last])

    add("real decay", real, plot_style.CURVE_LABELS[real[1]])
    equal = (PLAIN, real[1], matrix.DECAY)
    add("merge of the same curve and length", equal, _words(equal))
    for way, key in best.items():
        add("merge" if way == PLAIN else way, key, _words(key))
    claims, plain = [CLAIMS], best[PLAIN]
    for way in WAYS[1:]:
        claims.append(claimed(f"{way}: better than the plain merge", table.minus(best[way], plain)))
    recipe = table.best(best.values())
    claims.append(claimed(f"the best recipe ({recipe[0]}) is better than the real decay", table.minus(recipe, real)))
    lines = [
        "# What merges miss of a real decay, and what narrows it",
        "",
        "Test loss in bits per byte, mean over the domains of the stable text; without a merge "
        f"{plus_minus(table.of(raw))}. {source(records)} Peak rate {records[0]['peak_lr']:g}, which tuning chose for "
        f"WSM; all ways have read equally many tokens, and the same ones but for *2 × the batch*. Learned weights are "
        "fitted on the validation text that the choice is made on.",
        "",
        *markdown_table(rows),
        "",
        f"The best recipe without a decay run, by validation: {recipe[0]}, {_words(recipe)}; on test "
        f"{sum(table.minus(recipe, raw)) / gain:.0%} of the best real decay's gain.",
        "",
        *markdown_table(claims),
        "",
        HOLDS,
        "",
        "![Every way beside the real decay](gap.png)",
    ]
    return Page(lines, {"gap": figure(table, {"real decay": real, **best}, raw)})


def _words(key: tuple) -> str:
    return f"{plot_style.CURVE_LABELS.get(key[1], 'learned' if key[0] == LEARNED else 'none')} × {key[2]}"


@plot_style.styled_figure
def figure(table: Seeds, arms: dict[str, tuple], raw: tuple) -> Figure:
    """A row for each way: test loss minus no merge, with its interval."""
    made = Figure(figsize=(plot_style.WIDTH * 0.75, 0.26 * len(arms) + 0.8))
    axes = made.subplots()
    for place, key in enumerate(arms.values()):
        mean, half = interval(table.minus(key, raw))
        axes.errorbar([mean], [place], xerr=[half], color="#D55E00" if not place else "#0072B2", marker="o", capsize=2)
        if not place:
            axes.axvline(mean, color="#D55E00", linestyle="--", linewidth=0.9)
    axes.set_yticks(range(len(arms)), [f"{name}, {_words(key)}" for name, key in arms.items()])
    axes.invert_yaxis()
    axes.set(xlabel="test loss minus no merge, bits per byte")
    return made


EXPERIMENT = Experiment("gap", SEED_SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
