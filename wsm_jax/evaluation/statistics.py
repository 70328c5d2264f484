"""Intervals, p values and verdicts for statistics of losses that were measured at some seeds on some documents.

Seeds and documents are crossed: every seed, and every arm, is measured on the same documents. Another draw of either
would have moved a statistic, so its variance has two parts. That of the seeds is the paired one: the variance of the
statistic over seeds, divided by their number. That of the documents is the jackknife's: the statistic is computed again
without each document in turn, for all seeds and arms at once, domain by domain (the document is the cluster). What
depends on the seed and the document together is in both parts, and is counted once:

    variance = seeds + max(documents - both, 0)

The interval is Student's, with Satterthwaite's degrees of freedom, and never narrower than t over the seeds alone:
where there are three, their variance can be small by chance, and Satterthwaite then believes the documents. A bootstrap
of the documents is too narrow where their sizes differ much. ``experiments/coverage.py`` simulates this rule and other
ones.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

LEVEL = 0.05  # intervals of 95%, and false positives of one claim, or of all primary claims together


@dataclasses.dataclass(frozen=True)
class Documents:
    """The documents of a test set.

    Attributes:
      domains: their names.
      domain: int [documents], which of them a document belongs to.
      bytes: int [documents], UTF-8 bytes.
    """

    domains: Sequence[str]
    domain: np.ndarray
    bytes: np.ndarray


def bits_per_byte(nats: np.ndarray, documents: Documents, domain: str) -> np.ndarray:
    """Loss on a domain, with all documents and without each in turn.

    Args:
      nats: [..., documents], of each document of the test set.
      documents: what they are.
      domain: one of ``documents.domains``.

    Returns:
      float64 [..., 1 + documents]: of all documents, then without the first, without the second, and so on. One of
      another domain makes no difference, and neither does the only one of its domain, without which there is no loss.
    """
    inside = documents.domain == documents.domains.index(domain)
    own, sizes = np.where(inside, nats, 0).astype(np.float64), np.where(inside, documents.bytes, 0)
    left_out = np.concatenate([[0], inside * int(inside.sum() > 1)])  # 1: without this document
    padded, padded_sizes = (np.concatenate([each[..., :1], each], axis=-1) * left_out for each in (own, sizes))
    left, bytes_left = own.sum(axis=-1, keepdims=True) - padded, sizes.sum() - padded_sizes
    return left / bytes_left / math.log(2)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A statistic with its uncertainty.

    Attributes:
      estimate: mean over seeds.
      interval: 95%; None where nothing is known of it (one seed, and no losses by document).
      p: two-sided, of the estimate being zero; None where there is one seed, for nobody knows what another would give.
      by_seed: at each seed.
      stderr_seeds: of the estimate, were other seeds drawn; None for one seed.
      stderr_documents: of the estimate, were other documents drawn; 0 where losses by document are not known.
      stderr_both: the part of either that depends on seed and document together; 0 for one seed.
      degrees: of freedom of the interval.
      over: what the interval is over: ``seeds and documents``, ``seeds``, ``documents`` or ``nothing``.
    """

    estimate: float
    interval: tuple[float, float] | None
    p: float | None
    by_seed: list[float]
    stderr_seeds: float | None
    stderr_documents: float
    stderr_both: float
    degrees: float
    over: str


def estimate(by_seed: ArrayLike, without: np.ndarray | None = None, domain: np.ndarray | None = None) -> Estimate:
    """The mean of a statistic over seeds, its 95% interval and its p value.

    Args:
      by_seed: [seeds], the statistic of all documents.
      without: [seeds, documents], without each document in turn; None: not known.
      domain: int [documents], the domain of each.
    """
    values = np.asarray(by_seed, np.float64)
    count, center = len(values), float(values.mean())
    over = " and ".join(["seeds"] * (count > 1) + ["documents"] * (without is not None)) or "nothing"
    seeds = float(values.var(ddof=1)) / count if count > 1 else 0.0
    documents, both, of_documents = 0.0, 0.0, 1.0
    if without is not None and domain is not None:
        documents, both, of_documents = _documents(without, domain)
    shared = max(documents - both, 0.0)
    degrees = _satterthwaite(np.array([seeds, shared]), np.array([max(count - 1, 1), of_documents]))
    half, p = _student(center, seeds + shared, degrees)
    half_alone, p_alone = _student(center, seeds, max(count - 1, 1))
    return Estimate(
        center,
        None if over == "nothing" else (center - max(half, half_alone), center + max(half, half_alone)),
        max(p, p_alone) if count > 1 else None,
        values.tolist(),
        math.sqrt(seeds) if count > 1 else None,
        math.sqrt(documents),
        math.sqrt(both),
        degrees if half >= half_alone else count - 1.0,
        over,
    )


def _documents(without: np.ndarray, domain: np.ndarray) -> tuple[float, float, float]:
    """Variance of the mean over seeds by documents, its part that differs between seeds, and degrees of freedom."""
    count, mean = len(without), without.mean(axis=0)
    sizes = np.bincount(domain)
    parts = _jackknife(mean, domain)
    both = sum(_jackknife(row - mean, domain).sum() for row in without) / max(count - 1, 1) / count
    return float(parts.sum()), float(both), _satterthwaite(parts, np.maximum(sizes - 1, 1))


def _jackknife(without: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """Variance by documents, for each domain, of a statistic that is known without each document: float64 [domains]."""
    sizes = np.bincount(domain)
    mean = np.bincount(domain, without) / np.maximum(sizes, 1)
    return np.bincount(domain, (without - mean[domain]) ** 2) * (1 - 1 / np.maximum(sizes, 1))


def _satterthwaite(variances: np.ndarray, degrees: np.ndarray) -> float:
    """Degrees of freedom of a sum of independent variances; those of the first where all are zero."""
    if not variances.any():
        return float(degrees[0])
    shares = variances / variances.sum()
    return float(1 / (shares**2 / degrees).sum())


def _student(center: float, variance: float, degrees: float) -> tuple[float, float]:
    """Half width of the 95% interval, and two-sided p value."""
    stderr = math.sqrt(variance)
    if not stderr:
        return 0.0, float(center == 0)
    quantile, below = special.stdtrit(degrees, 1 - LEVEL / 2), special.stdtr(degrees, -abs(center) / stderr)
    return stderr * float(quantile), 2 * float(below)


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number, so that of all that are below 0.05 one is false in 5% of cases at most."""
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, np.asarray(p)[order] * np.arange(len(order), 0, -1)))
    return corrected.tolist()


def verdict(interval: tuple[float, float] | None, p: float | None, smallest_effect: float = 0.0) -> str:
    """``better``, ``worse``, ``equal`` or ``open``: what is known of a statistic that is below zero if the claim holds.

    Args:
      interval: 95%.
      p: corrected, where it is to be; None: nothing is known of other seeds.
      smallest_effect: the largest size that does not matter; 0: any does.
    """
    if interval is None or p is None:
        return "open"
    low, high = interval
    if -smallest_effect <= low and high <= smallest_effect:
        return "equal"
    if p >= LEVEL or low <= 0 <= high:
        return "open"
    return "better" if high < 0 else "worse"
