"""How often the 95% intervals of claims hold the truth, and how often a claim is found where there is nothing.

    python -m experiments.coverage [TRIALS]

Made-up losses of the shape that experiments have: 3 or 5 seeds, 5 domains of 20 to 30 documents whose sizes differ, and
noise of seeds, of documents, and of both together. Beside the rule of ``wsm_jax.evaluation.statistics``, other rules
that were tried. Written to results/coverage: coverage.json, and README.md made of it.
"""

import dataclasses
import itertools
import math
import platform
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from scipy import special

from experiments.trials import DOMAINS, KINDS, NOISE, SPREADS, Trial, draw
from wsm_jax.evaluation import statistics
from wsm_jax.evaluation.statistics import Estimate
from wsm_jax.io import files
from wsm_jax.reporting.tables import markdown_table
from wsm_jax.sweeps import difference
from wsm_jax.sweeps.experiment import Statistic

RESULTS = Path("results/coverage")
TRIALS, SEED, RESAMPLES = 2000, 0, 300
CLAIMS = 7


# --- other rules -----------------------------------------------------------------------------------------------------


def half_widths(found: Estimate, seeds: int, resampled: float) -> dict[str, float]:
    """Half width of the interval by each rule; ``resampled``: variance over bootstrapped documents."""
    assert found.interval and found.stderr_seeds is not None
    of_seeds, of_documents = found.stderr_seeds**2, found.stderr_documents**2
    shared, many = max(of_documents - found.stderr_both**2, 0.0), sum(DOMAINS.values()) - len(DOMAINS)
    return {
        "this rule": (found.interval[1] - found.interval[0]) / 2,
        "seeds alone": _half(of_seeds, seeds - 1),
        "documents alone": _half(of_documents, many),
        "seeds + documents": _joined(of_seeds, seeds - 1, of_documents, many),
        "the same, bootstrap": _joined(of_seeds, seeds - 1, resampled, many),
        "seeds + documents - both": _joined(of_seeds, seeds - 1, shared, many),
    }


def _joined(first: float, degrees: float, second: float, more: float) -> float:
    return _half(first + second, (first + second) ** 2 / (first**2 / degrees + second**2 / more))


def _half(variance: float, degrees: float) -> float:
    return float(special.stdtrit(degrees, 0.975)) * math.sqrt(variance)


def resamples(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Domain -> how often each document is drawn, [documents, resamples]."""
    return {name: random.multinomial(n, np.ones(n) / n, RESAMPLES).T.astype(float) for name, n in DOMAINS.items()}


def bootstrapped(counts: Mapping[str, np.ndarray], trial: Trial, statistic: Statistic) -> float:
    """Variance of the mean over seeds where documents are drawn again within each domain, for all seeds and arms."""

    def loss(arm: str, domain: str) -> np.ndarray:
        inside = trial.documents.domain == [*DOMAINS].index(domain)
        return trial.nats[arm][:, inside] @ counts[domain] / (trial.documents.bytes[inside] @ counts[domain])

    return float(statistic(loss, [*DOMAINS]).mean(axis=0).var(ddof=1)) / math.log(2) ** 2


# --- what is counted -------------------------------------------------------------------------------------------------

Row = dict[str, Any]


def coverage(kind: str, noise: str, seeds: int, spread: str, trials: int = TRIALS) -> list[Row]:
    """The share of intervals that hold the truth, and their median half width, by each rule.

    Half widths are in standard deviations of the estimate; rules beside this one are tried on differences.
    """
    random, of = np.random.default_rng([SEED, seeds]), KINDS[kind]
    counts, errors, halves = resamples(random), [], []
    for _ in range(trials):
        trial = draw(random, of.arms, NOISE[noise], seeds, SPREADS[spread])
        found = trial.estimate(of.statistic)
        resampled = bootstrapped(counts, trial, of.statistic) if kind == "difference" else math.nan
        errors.append(found.estimate - of.truth)
        halves.append(half_widths(found, seeds, resampled))
    case = {"statistic": kind, "noise": noise, "seeds": seeds, "sizes": spread, "trials": trials}
    return [
        {
            **case,
            "rule": rule,
            "coverage": float(np.mean([abs(e) <= half[rule] for e, half in zip(errors, halves, strict=True)])),
            "half_width": float(np.median([half[rule] for half in halves]) / np.std(errors)),
        }
        for rule in halves[0]
        if kind == "difference" or rule == "this rule"
    ]


def false_positives(noise: str, seeds: int, apart: bool, trials: int = TRIALS) -> Row:
    """How often one claim, and any of seven, is found where all arms are alike.

    Args:
      noise: of NOISE.
      seeds: how many.
      apart: each claim has two arms of its own; else all are differences to one arm.
      trials: how many.
    """
    random = np.random.default_rng([SEED, seeds])
    pairs = [(f"arm {n}", f"base {n if apart else 0}") for n in range(CLAIMS)]
    arms = {arm: (0.0, 0.0) for pair in pairs for arm in pair}
    found = np.empty((trials, CLAIMS))
    for n in range(trials):
        trial = draw(random, arms, NOISE[noise], seeds, SPREADS["very different"])
        found[n] = [trial.estimate(difference(*pair)).p for pair in pairs]
    return {
        "noise": noise,
        "seeds": seeds,
        "arms": "two each" if apart else "one in common",
        "trials": trials,
        "one_claim": float(np.mean(found < statistics.LEVEL)),
        "uncorrected": float(np.mean((found < statistics.LEVEL).any(axis=1))),
        "holm": float(np.mean([min(statistics.holm(row)) < statistics.LEVEL for row in found.tolist()])),
    }


def simulate(trials: int) -> dict[str, Any]:
    """What coverage.json has; the frontier, which is slow, has fewer trials."""
    few = list(itertools.product(("seeds", "even"), (3, 5)))
    cases = [("difference", noise, seeds, sizes) for noise in NOISE for seeds in (3, 5) for sizes in SPREADS]
    cases += [(kind, *each, "very different") for kind in [*KINDS][1:] for each in few]
    alike = [(*each, False) for each in itertools.product(NOISE, (3, 5))] + [(*each, True) for each in few]
    with ProcessPoolExecutor() as pool:
        rows = [pool.submit(coverage, *case, trials // 5 if case[0] == "frontier" else trials) for case in cases]
        families = [pool.submit(false_positives, *case, trials // 2) for case in alike]
        for n, each in enumerate(as_completed([*rows, *families]), 1):
            print(f"[{n}/{len(cases) + len(alike)}]", each.result(), file=sys.stderr, flush=True)
    return {
        "command": " ".join(["python -m experiments.coverage", *sys.argv[1:]]),
        "seed": SEED,
        "trials": trials,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "domains": DOMAINS,
        "noise": {name: dataclasses.asdict(noise) for name, noise in NOISE.items()},
        "sizes": SPREADS,
        "coverage": [row for each in rows for row in each.result()],
        "false_positives": [each.result() for each in families],
    }


def page(found: dict[str, Any]) -> list[str]:
    """README.md of it."""
    rows, families = found["coverage"], found["false_positives"]
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    case = lambda row: (row["statistic"], row["noise"], row["seeds"], row["sizes"])  # noqa: E731
    cells = {(*case(row), row["rule"]): f"{row['coverage']:.1%} ({row['half_width']:.2f})" for row in rows}
    header = ["statistic", "noise", "seeds", "sizes of documents", *rules]
    table = [
        [*map(str, each), *(cells.get((*each, rule), "–") for rule in rules)] for each in dict.fromkeys(map(case, rows))
    ]
    figures = ("one_claim", "uncorrected", "holm")
    claims = [["noise", "seeds", "arms of the claims", "one claim", "any of seven", "any of seven, Holm"]]
    claims += [[r["noise"], str(r["seeds"]), r["arms"], *(f"{r[name]:.1%}" for name in figures)] for r in families]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return [
        "# Coverage of the intervals",
        "",
        f"`{found['command']}`, seed {found['seed']}, {found['trials']} trials of a case (fewer of the frontier and "
        "of seven claims), "
        f"{versions}. All data are made up; their noise is in coverage.json.",
        "",
        "## How often a 95% interval holds the truth",
        "",
        "In brackets its median half width, in standard deviations of the estimate (1.96 if all were known).",
        "",
        *markdown_table([header, *table]),
        "",
        *TRIED,
        "",
        "## How often a claim is found where all arms are alike",
        "",
        *markdown_table(claims),
    ]


TRIED = (
    "What was tried, from the right:",
    "",
    "- *seeds + documents - both*: without what depends on a seed and a document together, which the variance over "
    "seeds and that over documents both have. Too narrow where there are three seeds and documents matter little: the "
    "variance over seeds is small by chance, and Satterthwaite then has many degrees of freedom from the documents.",
    "- *bootstrap*: documents drawn again within each domain. Too narrow where sizes differ much.",
    "- *seeds + documents*: the jackknife's variance instead, which is not. Too wide where noise is of both together.",
    "- *documents alone*, *seeds alone*: each forgets the other; seeds alone hold the truth about these documents.",
    "- *this rule*: seeds + documents - both, by the jackknife, and never narrower than seeds alone.",
)


def main(trials: int) -> None:
    """Simulates all and writes it."""
    found = simulate(trials)
    RESULTS.mkdir(parents=True, exist_ok=True)
    files.write_json(RESULTS / "coverage.json", found)
    files.write_text(RESULTS / "README.md", "\n".join(page(found)) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS)
