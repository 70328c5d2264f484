"""Intervals over seeds and documents: closed forms, limits, Holm's correction, verdicts."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from wsm_jax.evaluation import statistics
from wsm_jax.evaluation.statistics import Documents, bits_per_byte, estimate, holm, verdict

TEXTS = Documents(["a", "b"], np.array([0, 0, 0, 1, 1]), np.array([10, 20, 30, 5, 15]))
ONE = np.zeros(12, int)  # all documents of one domain


def test_losses_with_all_documents_and_without_each():
    """Those of another domain make no difference."""
    nats = np.array([7.0, 8.0, 9.0, 2.0, 1.0], np.float32)
    expected = np.array([24 / 60, 17 / 50, 16 / 40, 15 / 30, 24 / 60, 24 / 60]) / math.log(2)
    np.testing.assert_allclose(bits_per_byte(nats, TEXTS, "a"), expected)


def test_the_only_document_of_a_domain_stays():
    """There is no loss without it."""
    texts = Documents(["a", "b"], np.array([0, 1, 1]), np.array([10, 20, 30]))
    np.testing.assert_allclose(bits_per_byte(np.array([5.0, 1, 1]), texts, "a"), 0.5 / math.log(2))


def t_test(values: np.ndarray) -> Any:
    """SciPy's, of a mean of zero."""
    return stats.ttest_1samp(values, 0)


def test_seeds_alone_are_the_paired_t_test():
    """No losses by document."""
    values = np.array([-0.03, -0.01, -0.04, -0.02])
    found, known = estimate(values), t_test(values)
    assert found.interval == pytest.approx(tuple(known.confidence_interval(0.95)))
    assert found.p == pytest.approx(known.pvalue)
    assert (found.degrees, found.over) == (3, "seeds")


def means_without_each(values: np.ndarray) -> np.ndarray:
    """[seeds, documents] -> the mean at each seed without each document."""
    return (values.sum(axis=1, keepdims=True) - values) / (values.shape[1] - 1)


def test_documents_alone_are_the_t_test_over_documents():
    """Seeds that agree on each document: documents of one size are as many values."""
    values = np.random.default_rng(0).normal(-1, 1, 12)
    found = estimate(np.full(3, values.mean()), means_without_each(np.tile(values, (3, 1))), ONE)
    known = t_test(values)
    assert found.interval == pytest.approx(tuple(known.confidence_interval(0.95)))
    assert found.p == pytest.approx(known.pvalue)
    assert found.degrees == pytest.approx(11)
    assert found.stderr_seeds == pytest.approx(0, abs=1e-12)


def test_what_depends_on_seed_and_document_together_counts_once():
    """Independent values at each seed and document: the variance is that of their mean, not twice as much."""
    values = np.random.default_rng(1).normal(size=(40, 60))
    found = estimate(values.mean(axis=1), means_without_each(values), np.zeros(60, int))
    half = (found.interval[1] - found.interval[0]) / 2 if found.interval else math.nan
    assert half == pytest.approx(2 / math.sqrt(values.size), rel=0.2)  # sqrt(2) times as much if it counted twice
    assert found.stderr_both == pytest.approx(found.stderr_documents, rel=0.2)


def test_never_narrower_than_over_the_seeds():
    """Satterthwaite trusts the documents' many degrees of freedom where the seeds agree by chance."""
    seeds, documents = np.array([-1.0, 0.0, 1.0]), np.tile(np.random.default_rng(2).normal(0, 2, 12), (3, 1))
    values = seeds[:, None] + documents - documents.mean()
    found, alone = estimate(seeds, means_without_each(values), ONE), estimate(seeds)
    assert found.interval == alone.interval
    assert (found.p, found.degrees) == (alone.p, 2)
    more = estimate(seeds, means_without_each(seeds[:, None] + 5 * (documents - documents.mean())), ONE)
    assert more.interval and alone.interval and more.interval[1] > alone.interval[1]


def test_one_seed_has_an_interval_over_documents_and_no_verdict():
    """What another seed would give is not known."""
    values = np.random.default_rng(0).normal(-1, 0.1, 12)
    found = estimate(values.mean(keepdims=True), means_without_each(values[None]), ONE)
    assert found.interval == pytest.approx(tuple(t_test(values).confidence_interval(0.95)))
    assert (found.p, found.stderr_seeds, found.over) == (None, None, "documents")
    assert verdict(found.interval, found.p) == "open"
    assert estimate(np.array([1.0])).interval is None


def test_an_arm_is_equal_to_itself():
    """No variance at all."""
    found = estimate(np.zeros(3), np.zeros((3, 12)), ONE)
    assert (found.interval, found.p) == ((0, 0), 1)
    assert verdict(found.interval, found.p, 0.002) == "equal"


def test_domains_have_their_own_variance():
    """A statistic of one domain has that domain's degrees of freedom, whatever other documents there are."""
    values = np.random.default_rng(0).normal(size=12)
    without = np.concatenate([means_without_each(values[None])[0], np.full(30, values.mean())])
    found = estimate(np.full(2, values.mean()), np.stack([without, without]), np.repeat([0, 1], [12, 30]))
    assert found.degrees == pytest.approx(11)


def test_holm():
    """By hand: 0.01 × 4, 0.02 × 3, then no less than before it."""
    assert holm([0.02, 0.01, 0.9, 0.025]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("interval", "p", "expected"),
    [
        ((-0.003, -0.001), 0.01, "better"),
        ((0.001, 0.003), 0.01, "worse"),
        ((-0.0019, -0.0001), 0.01, "equal"),
        ((-0.003, 0.001), 0.2, "open"),
        ((-0.003, -0.001), 0.06, "open"),  # corrected for the number of claims
        (None, 0.01, "open"),
    ],
)
def test_verdicts(interval: tuple[float, float] | None, p: float, expected: str):
    """Equal comes first; a corrected p value can take a verdict away."""
    assert verdict(interval, p, statistics.LEVEL * 0.04) == expected
