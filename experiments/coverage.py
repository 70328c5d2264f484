"""How often the 95% intervals of claims hold the truth, and how often a claim is found where there is nothing.

    python -m experiments.coverage [TRIALS]

Made-up losses of the shape that experiments have: 3 or 5 seeds, 5 domains of 20 to 30 documents of very different sizes,
and noise of seeds, of documents, and of both together. Beside the rule of ``wsm_jax.evaluation.statistics`` other rules
that were tried. Written to results/coverage: coverage.json, and README.md made of it.
"""

import dataclasses
import itertools
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from scipy import special

from wsm_jax.evaluation import statistics
from wsm_jax.evaluation.statistics import Documents, Estimate
from wsm_jax.io import files
from wsm_jax.reporting.tables import markdown_table
from wsm_jax.sweeps import difference
from wsm_jax.sweeps.contrasts import exponent, frontier, slope
from wsm_jax.sweeps.experiment import Loss, Statistic

RESULTS = Path("results/coverage")
TRIALS, SEED, RESAMPLES = 2000, 0, 300
DOMAINS = {"novels": 20, "proposals": 22, "textbooks": 25, "mathematics": 28, "solutions": 30}
OLD = ["novels", "proposals"]
BYTES, LONGEST = 4000, 16_000  # median of a document; of each the first so many count
CLAIMS = 7


@dataclasses.dataclass(frozen=True)
class Noise:
    """Standard deviations of one arm's loss, bits per byte.

    Attributes:
      seed: of a seed, the same on all documents.
      domain: of a seed on one domain.
      document: of a document, the same at all seeds.
      both: of a document at one seed, were it of median length; it shrinks with the root of the length.
    """

    seed: float
    domain: float
    document: float
    both: float


NOISE = {
    "seeds": Noise(0.004, 0.002, 0.004, 0.008),
    "even": Noise(0.003, 0.002, 0.015, 0.02),
    "documents": Noise(0.001, 0.001, 0.025, 0.02),
    "documents alone": Noise(0, 0, 0.025, 0),
    "both together": Noise(0.001, 0.001, 0.005, 0.04),
}
SPREADS = {"alike": 0.3, "very different": 1.2}  # of the logarithm of the documents' sizes


@dataclasses.dataclass(frozen=True)
class Kind:
    """A statistic of made-up arms whose truth is known.

    Attributes:
      arms: name -> what is added to its loss on OLD and on the other domains.
      statistic: of their losses.
      truth: what it would be without noise.
    """

    arms: Mapping[str, tuple[float, float]]
    statistic: Statistic
    truth: float


def _kinds() -> dict[str, Kind]:
    ends = {1.0: 0.10, 0.5: 0.07, 0.25: 0.055, 0.0: 0.04}  # what a merge still gains, by the rate at the end
    merged = {f"merge {end}": (-gain, -gain) for end, gain in ends.items()} | {f"end {end}": (0, 0) for end in ends}
    ways = {"merge": 0.0, "decay": 0.01}  # how far each frontier lies above new = -2 × old
    points = {f"{way} {x}": (x, up - 2 * x) for way, up in ways.items() for x in (-0.09, -0.05, -0.02, 0.01)}
    gains = (0.05, 0.08, 0.12, 0.18, 0.25, 0.32, 0.39, 0.46)
    cells = {f"decay {gain}": (-gain, -gain) for gain in gains} | {f"base {gain}": (0, 0) for gain in gains}
    cells |= {f"merge {gain}": (-0.6 * gain**0.7, -0.6 * gain**0.7) for gain in gains}
    lines = [[name for name in points if name.startswith(way)] for way in ways]
    triples = [(f"merge {gain}", f"decay {gain}", f"base {gain}") for gain in gains]
    pairs = {end: (f"merge {end}", f"end {end}") for end in ends}
    return {
        "difference": Kind({"merge": (0, 0), "decay": (0, 0)}, difference("merge", "decay"), 0.0),
        "slope": Kind(merged, slope(pairs), float(np.polyfit([*ends], [-gain for gain in ends.values()], 1)[0])),
        "frontier": Kind(points, frontier(*lines, across=OLD), -0.01),
        "exponent": Kind(cells, exponent(triples), -0.3),
    }


KINDS = _kinds()


class Trial:
    """A made-up experiment.

    Args:
      nats: arm -> [seeds, documents].
      documents: what was drawn.
    """

    def __init__(self, nats: Mapping[str, np.ndarray], documents: Documents):
        self.nats, self.documents = nats, documents
        self.seeds = len(next(iter(nats.values())))
        self.losses = {
            (arm, domain): statistics.bits_per_byte(own, documents, domain)
            for arm, own in nats.items()
            for domain in DOMAINS
        }

    def estimate(self, statistic: Statistic) -> Estimate:
        """As claims.json has it."""
        rows = [statistic(lambda arm, domain, n=n: self.losses[arm, domain][n], [*DOMAINS]) for n in range(self.seeds)]
        found = np.stack(rows)
        return statistics.estimate(found[:, 0], found[:, 1:], self.documents.domain)


def draw(
    random: np.random.Generator, arms: Mapping[str, tuple[float, float]], noise: Noise, seeds: int, spread: float
) -> Trial:
    """One experiment."""
    domain = np.repeat(range(len(DOMAINS)), [*DOMAINS.values()])
    sizes = np.minimum(BYTES * np.exp(spread * random.normal(size=len(domain))), LONGEST).astype(int)
    old = np.isin(domain, [[*DOMAINS].index(name) for name in OLD])
    base = random.normal(2.5, 0.3, len(domain)) + random.normal(0, 0.02, (seeds, 1))  # cancels between arms
    nats = {}
    for arm, (on_old, on_new) in arms.items():
        bits = base + np.where(old, on_old, on_new)
        bits = bits + noise.seed * random.normal(size=(seeds, 1)) + noise.document * random.normal(size=len(domain))
        bits = bits + noise.domain * random.normal(size=(seeds, len(DOMAINS)))[:, domain]
        bits = bits + noise.both * random.normal(size=bits.shape) * np.sqrt(BYTES / sizes)
        nats[arm] = bits * sizes * math.log(2)
    return Trial(nats, Documents([*DOMAINS], domain, sizes))


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
    return {name: random.multinomial(size, np.ones(size) / size, RESAMPLES).T for name, size in DOMAINS.items()}


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
        "holm": float(np.mean([min(statistics.holm(row)) < statistics.LEVEL for row in found])),
    }


def simulate(trials: int) -> dict[str, Any]:
    """What coverage.json has; the frontier, which is slow, has a quarter of the trials."""
    few, sizes = ("seeds", "even"), "very different"
    cases = [("difference", *each, trials) for each in itertools.product(NOISE, (3, 5), SPREADS)]
    for kind, count in {"slope": trials, "exponent": trials, "frontier": trials // 4}.items():
        cases += [(kind, noise, seeds, sizes, count) for noise in few for seeds in (3, 5)]
    found = [row for case in cases for row in _said(coverage(*case))]
    alike = [
        (noise, seeds, apart) for apart in (False, True) for noise in (few if apart else NOISE) for seeds in (3, 5)
    ]
    families = [row for case in alike for row in _said([false_positives(*case, trials)])]
    return {
        "command": " ".join(["python -m experiments.coverage", *sys.argv[1:]]),
        "seed": SEED,
        "trials": trials,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "domains": DOMAINS,
        "noise": {name: dataclasses.asdict(noise) for name, noise in NOISE.items()},
        "sizes": SPREADS,
        "coverage": found,
        "false_positives": families,
    }


def _said(rows: list[Row]) -> list[Row]:
    print(rows[0], file=sys.stderr, flush=True)
    return rows


def page(found: dict[str, Any]) -> list[str]:
    """README.md of it."""
    return [*markdown_table([["a"]])]


def main(trials: int) -> None:
    """Simulates all and writes it."""
    found = simulate(trials)
    RESULTS.mkdir(parents=True, exist_ok=True)
    files.write_json(RESULTS / "coverage.json", found)
    files.write_text(RESULTS / "README.md", "\n".join(page(found)) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS)
