"""Made-up experiments whose truth is known: noise of seeds, of documents, and of both together."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from wsm_jax.evaluation import statistics
from wsm_jax.evaluation.statistics import Documents, Estimate
from wsm_jax.sweeps import difference
from wsm_jax.sweeps.contrasts import exponent, frontier, slope
from wsm_jax.sweeps.experiment import Statistic

DOMAINS = {"novels": 20, "proposals": 22, "textbooks": 25, "mathematics": 28, "solutions": 30}
OLD = ["novels", "proposals"]
BYTES, LONGEST = 4000, 16_000  # median of a document; of each the first so many count


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
        every = np.stack([*nats.values()])
        losses = {domain: statistics.bits_per_byte(every, documents, domain) for domain in DOMAINS}
        self.losses = {(arm, domain): losses[domain][n] for n, arm in enumerate(nats) for domain in DOMAINS}
        self.seeds = every.shape[1]

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
