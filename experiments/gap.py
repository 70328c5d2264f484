"""What merges miss of a real decay, and what narrows it.

    python -m experiments.gap [--scale=small]

On the text of the stable phase, no switch, equal tokens. Over the last quarter of the run: real decays (linear, cosine,
1-sqrt), and beside the plain merge of the constant run longer windows, means of the parameters over each interval,
weights that know AdamW's weight decay, learned weights, and merges of branches that differ from the constant run: a
quarter, half or twice its rate, twice its batch (half as many updates), or a start from the merge of the 16
checkpoints before it (a merge fed back). Those branches cost as much training as a decay does, and a lower rate is a
decay in one step; the other ways cost nothing but the constant run. Each way's curve and window, the best way of either
kind and the best decay are chosen on validation. For the branches also their ends as they are: what of the gain is
the branch's own, not its merge's.
"""

import sys
from pathlib import Path

from configs import matrix
from experiments import domains, figures, protocol
from experiments.intervals import CLAIMS, HOLDS, claimed, share, shown
from experiments.jobs import CURVES, RATE_FACTORS, WSM
from experiments.protocol import Experiment, Page, Record
from experiments.seeds import TEST, Seeds, plus_minus, source
from experiments.training import SEED_SCALES, matrix_of, rates
from experiments.trajectories import along, window
from wsm_jax.checkpoints.orbax import PARAMS
from wsm_jax.evaluation import tuning
from wsm_jax.merging import selection
from wsm_jax.merging.recipe import make_recipe, of_steps
from wsm_jax.merging.selection import MEAN, POINT
from wsm_jax.reporting import plot_style
from wsm_jax.reporting.tables import markdown_table

MERGED = ("linear", "cosine", "minus_sqrt", "ema")
COUNTS, LONG = (2, 4, 8, 12, 16), (24, 32)
RAW, REAL, PLAIN, LONGER = "raw", "decay", "merge", "longer windows"
ALONE: tuple[str, int] = ("", 1)  # curve and count of what is not merged
MEANS, AWARE, LEARNED = "interval means", "weight-decay-aware weights", "learned weights"
BRANCHES = {f"rate-{factor:g}": f"{factor:g} × the rate" for factor in RATE_FACTORS}
BRANCHES |= {"batch-2": "2 × the batch", "merged-constant": "merge fed back"}
FREE = (PLAIN, LONGER, MEANS, AWARE, LEARNED)
WAYS = (*FREE, *BRANCHES.values())


def measure(folder: Path, seed: int, settings: list[str]) -> list[Record]:
    """Every way of a seed."""
    runs = matrix_of(folder, settings)
    rate = rates(runs.scale)[WSM]
    constant, end = runs.run(seed, rate, "constant"), runs.steps
    path = runs.path(seed, rate, "constant")
    recipes = {(RAW, *ALONE): protocol.single(path[end])}
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
    recipes[LEARNED, "", matrix.DECAY] = of_steps(chosen.paths, (PARAMS,) * chosen.count, learned)
    for job, way in BRANCHES.items():
        own = along(runs.run(seed, rate, job))
        recipes |= {
            (way, curve, n): window(own, curve, n, max(own)) for curve in MERGED for n in COUNTS if n <= len(own)
        }
        recipes[way, *ALONE] = protocol.single(own[max(own)])
    found = domains.losses(recipes, domains.evaluators(runs, constant))
    facts = {"peak_lr": rate, **protocol.provenance(constant)}
    return [{"way": way, "curve": curve, "count": n, **facts, **loss} for (way, curve, n), loss in found.items()]


def present(records: list[Record]) -> Page:
    """The ways beside the best real decay, and the best of them."""
    table, raw = Seeds(records, "way", "curve", "count"), (RAW, *ALONE)
    keys = list(dict.fromkeys((r["way"], r["curve"], r["count"]) for r in records if (r["curve"], r["count"]) != ALONE))
    of = {way: [key for key in keys if key[0] == way] for way in WAYS}
    best = {way: table.best(own) for way, own in of.items()}
    real = table.best([(REAL, curve, matrix.DECAY) for curve in CURVES])
    gain = table.minus(real, raw)
    rows = [["", "curve × checkpoints", "test loss", "minus no merge", "of the decay's gain", "minus real decay"]]
    rows[0] += ["its end, unmerged, minus no merge", "*picked on test*, minus real decay"]

    def part(key: tuple) -> str:
        return "–" if key == real else share(table.minus(key, raw), gain)

    def behind(key: tuple) -> str:
        return "–" if key == real else shown(table.minus(key, real))

    def add(name: str, key: tuple, what: str) -> None:
        end = (key[0], *ALONE)
        rows.append([name, what, plus_minus(table.of(key)), shown(table.minus(key, raw)), part(key), behind(key)])
        rows[-1].append(shown(table.minus(end, raw)) if end in table else "–")
        rows[-1].append(behind(table.best(of[name], TEST)) if name in of else "–")

    add("real decay", real, plot_style.CURVE_LABELS[real[1]])
    equal = (PLAIN, real[1], matrix.DECAY)
    add("merge of the same curve and length", equal, _words(equal))
    for way, key in best.items():
        add(way, key, _words(key))
    plain = best[PLAIN]
    best_plain = f"the best plain merge ({_words(plain)})"
    best_real = f"the best real decay ({plot_style.CURVE_LABELS[real[1]]})"
    claims = [CLAIMS, claimed(f"{best_plain} is better than {best_real}", table.minus(plain, real), digits=5)]
    for way in WAYS[1:]:
        claims.append(claimed(f"{way}: better than the best plain merge", table.minus(best[way], plain), digits=5))
    chosen = {
        "without another run": table.best(best[way] for way in FREE),
        "with a branch of its own, no decay to zero": table.best(best[way] for way in BRANCHES.values()),
    }
    for words, key in chosen.items():
        claims.append(claimed(f"the best recipe {words} ({key[0]}) is better than {best_real}", table.minus(key, real)))
    found = "; ".join(f"{words}: {key[0]}, {_words(key)}, {part(key)}" for words, key in chosen.items())
    lines = [
        "# What merges miss of a real decay, and what narrows it",
        "",
        "Test loss in bits per byte, mean over the domains of the stable text; without a merge "
        f"{plus_minus(table.of(raw))}. {source(records)} Peak rate {records[0]['peak_lr']:g}, which tuning chose for "
        "WSM; all ways have read equally many tokens, and the same ones but for *2 × the batch*. The last five ways "
        "each take a branch of their own, as much training as the real decay; a lower rate is a decay in one step, "
        "and a larger batch makes updates less noisy too; no branch was decayed. The checkpoints of *2 × the batch* "
        f"are two intervals of tokens apart, so {matrix.DECAY // 2} are all that the branch has. The real decay is the "
        f"best of {len(CURVES)} curves at one length; a way chooses among up to {len(MERGED)} curves and {len(COUNTS)} "
        "windows, on validation or, in the last column, on test, as the paper does. Learned weights are fitted on the "
        "validation text that the choice is made on.",
        "",
        *markdown_table(rows),
        "",
        f"The best recipes by validation, with their share of the real decay's gain on test: {found}.",
        "",
        *markdown_table(claims),
        "",
        HOLDS,
        "",
        "![Every way beside the real decay](gap.png)",
    ]
    gains = {f"real decay, {rows[1][1]}": table.minus(real, raw)}
    gains |= {way + (f", {_words(key)}" if key[1] else ""): table.minus(key, raw) for way, key in best.items()}
    return Page(lines, {"gap": figures.rows(gains, "test loss minus no merge, bits per byte")})


def _words(key: tuple) -> str:
    return f"{plot_style.CURVE_LABELS.get(key[1], 'learned')} × {key[2]}"


EXPERIMENT = Experiment("gap", SEED_SCALES, measure, present)

if __name__ == "__main__":
    sys.exit(protocol.main(EXPERIMENT))
