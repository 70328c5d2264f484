"""Log-probabilities by hand, rows that are shared, batches that change nothing, values that are not finite."""

import jax
import numpy as np
import pytest

from tests.parameters import drawn
from wsm_jax.errors import NonFiniteError
from wsm_jax.evaluation import scorer
from wsm_jax.evaluation.scorer import Pair
from wsm_jax.models import model as model_lib
from wsm_jax.models.llama import LlamaFields
from wsm_jax.parallel import sharding

CONTEXT, VOCABULARY = 150, 64
MODEL = model_lib.build(LlamaFields(layers=1, d_model=32, heads=2, context=CONTEXT, vocab_size=VOCABULARY))
MESH = sharding.make_mesh()
RANDOM = np.random.default_rng(0)


def tokens(count: int) -> tuple[int, ...]:
    return tuple(RANDOM.integers(0, VOCABULARY, count).tolist())


QUESTION = tokens(20)
PAIRS = [
    *(Pair(QUESTION, (letter,)) for letter in (3, 4, 5, 6)),
    Pair(tokens(7), tokens(3)),
    Pair(tokens(1), tokens(CONTEXT)),
    Pair(tokens(40), tokens(30)),
    Pair(tokens(1), tokens(1)),
]


@pytest.fixture(scope="module")
def params():
    return drawn(MODEL)


def found(params, pairs, **options):
    return {number: one for part in scorer.score(MODEL, params, MESH, pairs, **options) for number, one in part.items()}


def test_they_are_the_sums_of_log_softmax_at_the_answers(params):
    scores = found(params, PAIRS)
    assert sorted(scores) == list(range(len(PAIRS)))
    apply = jax.jit(MODEL.apply)
    for number, (given, answer) in enumerate(PAIRS):
        row = np.zeros((1, CONTEXT), np.int32)
        row[0, : len(given + answer) - 1] = (given + answer)[:-1]
        logits = np.asarray(apply(params, row)[0], np.float64)[len(given) - 1 : len(given) - 1 + len(answer)]
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        expected = logs[np.arange(len(answer)), list(answer)].sum()
        assert scores[number].logprob == pytest.approx(expected, abs=1e-4)
        assert scores[number].greedy == (logits.argmax(axis=-1) == answer).all()
    letters = [scores[number].greedy for number in range(4)]
    assert sum(letters) <= 1
    likeliest = int(np.argmax([found(params, [Pair(QUESTION, (t,))])[0].logprob for t in range(VOCABULARY)]))
    assert found(params, [Pair(QUESTION, (likeliest,))])[0].greedy


@pytest.mark.integration
def test_batches_of_another_size_change_no_score_by_more_than_rounding(params):
    one, other = (found(params, PAIRS, batch_tokens=size) for size in (1, 1024))
    assert max(abs(one[number].logprob - other[number].logprob) for number in one) < 1e-4


def test_letters_of_a_question_share_a_row_and_shapes_are_few():
    batches = list(scorer._batches(PAIRS, CONTEXT, 4096, 1))
    assert sum(len(rows) for rows, _, _ in batches) == len(PAIRS) - 3
    assert [(length, places) for _, length, places in batches] == [(150, 192), (128, 64), (32, 4), (32, 1)]
    many = [Pair(tokens(int(n)), tokens(int(m))) for n, m in RANDOM.integers(1, 70, (300, 2))]
    assert len({(length, places) for _, length, places in scorer._batches(many, CONTEXT, 4096, 1)}) <= 16


def test_rows_are_a_multiple_of_what_the_devices_cut_them_into():
    assert [scorer._rows(128, 4096, parts) for parts in (1, 8, 3, 64)] == [32, 32, 30, 64]
    assert [scorer._padded(count, 32, 1) for count in (1, 4, 5, 32)] == [4, 4, 32, 32]
    assert [scorer._padded(count, 30, 3) for count in (3, 4)] == [3, 30] and scorer._padded(1, 64, 64) == 64


@pytest.mark.integration
def test_logits_that_are_not_finite_name_the_leaf(params):
    bad = jax.tree.map(lambda leaf: leaf, params)
    bad["final_norm"]["scale"] = bad["final_norm"]["scale"].at[3].set(np.nan)
    with pytest.raises(NonFiniteError, match="leaf final_norm/scale has 1 of"):
        found(bad, PAIRS[:1])
