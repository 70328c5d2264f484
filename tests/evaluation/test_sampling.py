"""The choice of a token: against exact probabilities, and where two settings mean the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from wsm_jax.errors import UsageError
from wsm_jax.evaluation.sampling import Sampling, choose, row_keys

LOGITS = np.log([0.3, 0.02, 0.25, 0.08, 0.15, 0.1, 0.06, 0.04]).astype(np.float32)
DRAWS = 20_000


def drawn(sampling: Sampling, logits: Any = LOGITS, rows: int = DRAWS) -> np.ndarray:
    keys = row_keys(jnp.uint32(sampling.seed), jnp.arange(rows))
    pick = jax.jit(lambda logits, values: choose(logits, keys, sampling.kind, values))
    return np.asarray(pick(jnp.broadcast_to(logits[None], (rows, len(logits))), sampling.values))


def exact(sampling: Sampling) -> np.ndarray:
    """Probabilities, computed one token at a time in float64."""
    weights = np.exp(LOGITS.astype(np.float64) / sampling.temperature)
    order = sorted(range(len(weights)), key=lambda token: -weights[token])[: sampling.top_k or None]
    total, kept, mass = sum(weights[order]), [], 0.0
    for token in order:
        if mass < sampling.top_p:
            kept.append(token)
        mass += weights[token] / total
    found = np.zeros(len(weights))
    found[kept] = weights[kept] / weights[kept].sum()
    return found


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.7, seed=3),
        Sampling(1.5, top_k=3),
        Sampling(1.0, top_p=0.6),
        Sampling(0.8, top_k=6, top_p=0.9),
    ],
)
def test_draws_are_as_frequent_as_they_should_be(sampling):
    expected, counts = exact(sampling), np.bincount(drawn(sampling), minlength=len(LOGITS))
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    assert scipy.stats.chisquare(counts[kept], expected[kept] * DRAWS).pvalue > 0.01


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(2.0, top_k=1), Sampling(2.0, top_p=1e-6)])
def test_the_likeliest_token_by_three_settings(sampling):
    logits = jax.random.normal(jax.random.key(0), (64, 100))
    keys = row_keys(jnp.uint32(0), jnp.arange(64))
    np.testing.assert_array_equal(choose(logits, keys, sampling.kind, sampling.values), logits.argmax(axis=1))


def test_a_seed_repeats_and_another_differs():
    first = drawn(Sampling(1.0, seed=1), rows=100)
    np.testing.assert_array_equal(first, drawn(Sampling(1.0, seed=1), rows=100))
    assert (first != drawn(Sampling(1.0, seed=2), rows=100)).any()
    assert len({*first}) > 3  # rows differ from one another


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1; it must be at least 0"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"seed": -1}, "seed is -1; it must be from 0"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Sampling(**values)
