"""Held-out loss: sums and errors against closed forms and against a plain loop over documents."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parameters import drawn
from wsm_jax import NonFiniteError, UsageError
from wsm_jax.config import DataConfig, ModelConfig
from wsm_jax.data import tokens
from wsm_jax.evaluation import evaluate
from wsm_jax.evaluation.evaluate import Evaluation, held_out_stores, make_evaluator, paired_difference
from wsm_jax.models import model as model_lib
from wsm_jax.parallel import sharding


def evaluation(nats, counts, sizes=None, data_hash="x"):
    counts = np.asarray(counts)
    return Evaluation(np.asarray(nats, float), counts, np.asarray(counts * 4 if sizes is None else sizes), data_hash)


@pytest.mark.parametrize(
    ("context", "loss_blocks", "tokens", "row"),
    [
        (1024, 1, 100, 128),
        (1024, 1, 128, 128),
        (1024, 1, 129, 256),
        (1024, 1, 5000, 1024),
        (1000, 1, 9, 1000),
        (8192, 64, 900, 1024),
        (2048, 256, 9, 256),
    ],
)
def test_a_short_text_is_not_padded_to_a_long_context(context, loss_blocks, tokens, row):
    config = ModelConfig(layers=1, d_model=8, heads=1, context=context, vocab_size=8, loss_blocks=loss_blocks)
    assert evaluate._row(model_lib.build(config), tokens) == row


def test_figures_of_known_sums():
    result = evaluation([6.0, 3.0], [2, 1], sizes=[10, 5])
    assert result.loss == 3.0
    assert result.perplexity == pytest.approx(math.e**3)
    assert result.bits_per_byte == pytest.approx(9.0 / math.log(2) / 15)
    assert result.summary()["tokens"] == 3


def test_stderr_is_that_of_the_mean_for_equal_documents():
    losses = np.random.default_rng(0).normal(3, 1, 200)
    result = evaluation(losses * 50, np.full(200, 50))
    assert result.loss_stderr == pytest.approx(losses.std(ddof=1) / math.sqrt(200))


def test_stderr_covers_the_truth_for_documents_of_unequal_length():
    random, inside = np.random.default_rng(1), 0
    for _ in range(400):
        counts = random.integers(10, 1000, 60)
        nats = counts * (3.0 + random.normal(0, 0.5, 60))
        result = evaluation(nats, counts)
        inside += abs(result.loss - 3.0) < 1.96 * result.loss_stderr
    assert 0.90 < inside / 400 < 0.98


def test_pairing_removes_what_documents_share():
    random = np.random.default_rng(2)
    counts = random.integers(50, 500, 80)
    hardness = counts * random.normal(3, 1, 80)
    first, second = evaluation(hardness - 0.01 * counts, counts), evaluation(hardness, counts)
    difference = paired_difference(first, second)
    assert difference.loss == pytest.approx(-0.01)
    assert difference.stderr < 1e-12 < first.loss_stderr
    low, high = difference.interval
    assert low <= difference.loss <= high


def test_different_data_cannot_be_compared():
    with pytest.raises(UsageError, match="different data"):
        paired_difference(evaluation([1.0], [1]), evaluation([1.0], [1], data_hash="y"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(40):
        words = [f"word{(i * j) % 17}" for j in range(30 + 5 * i)]
        (folder / f"{i:02d}.txt").write_text(f"Document {i}: é " + " ".join(words))
    config = DataConfig(
        source=f"text:{folder}",
        tokenizer="bpe:300",
        store=str(tmp_path_factory.mktemp("store")),
        validation_fraction=0.25,
        test_fraction=0.25,
    )
    return tokens.prepare(config)


@pytest.mark.parametrize("document_tokens", [0, 20])
def test_equals_a_plain_loop_over_the_token_stream(corpus, document_tokens):
    context = 16
    model = model_lib.build(ModelConfig(layers=1, d_model=16, heads=2, context=context, vocab_size=corpus.vocab_size))
    params = drawn(model)
    store = corpus.stable[0][0]
    result = make_evaluator(
        model, sharding.make_mesh(), [store], "validation", batch_size=3, document_tokens=document_tokens
    )(params)

    eot, tokens = store.manifest["eot"], np.asarray(store.tokens("validation"), np.int64)
    documents = [tokens[a:b] for a, b in itertools.pairwise(store.offsets("validation"))]
    counts = [min(len(document), document_tokens or len(document)) for document in documents]
    assert (sum(counts) < len(tokens)) == bool(document_tokens)
    # A document that is cut has an end-of-text behind it all the same, from which the next one starts.
    parts = [[*d[:n], *([] if n == len(d) else [eot])] for d, n in zip(documents, counts, strict=True)]
    stream = np.concatenate(parts).astype(np.int64)
    previous = np.concatenate([[eot], stream[:-1]])
    nats = []
    apply = jax.jit(model.apply)  # compiled for a whole window and for the last one
    for start in range(0, len(stream), context):
        window = jnp.asarray(previous[start : start + context])[None]
        logits = np.asarray(apply(params, window), np.float64)[0]
        logits -= logits.max(axis=-1, keepdims=True)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        nats.extend(-np.log(probabilities[np.arange(len(logits)), stream[start : start + context]]))
    starts = np.cumsum([0, *map(len, parts)])
    expected = [sum(nats[start : start + count]) for start, count in zip(starts[:-1], counts, strict=True)]
    np.testing.assert_allclose(result.nats, expected, rtol=1e-5)
    assert result.tokens.tolist() == counts
    texts = [corpus.tokenizer.decode(d[:n][d[:n] != eot]) for d, n in zip(documents, counts, strict=True)]
    assert result.bytes.tolist() == [len(text.encode()) for text in texts]


def test_a_limit_keeps_whole_documents(corpus):
    model = model_lib.build(ModelConfig(layers=1, d_model=16, heads=2, context=16, vocab_size=corpus.vocab_size))
    params, mesh = drawn(model), sharding.make_mesh()
    stores = held_out_stores(corpus, "test")
    whole = make_evaluator(model, mesh, stores, "validation", batch_size=4)(params)
    limit = int(whole.tokens[:3].sum()) + 1
    part = make_evaluator(model, mesh, stores, "validation", batch_size=4, limit_tokens=limit)(params)
    assert part.tokens.tolist() == whole.tokens[:3].tolist()
    np.testing.assert_allclose(part.nats, whole.nats[:3], rtol=1e-5)
    with pytest.raises(UsageError, match="different data"):
        paired_difference(part, whole)


@pytest.mark.integration
def test_a_loss_that_is_not_finite_names_the_leaf(corpus):
    model = model_lib.build(ModelConfig(layers=1, d_model=16, heads=2, context=16, vocab_size=corpus.vocab_size))
    params = drawn(model)
    evaluate = make_evaluator(model, sharding.make_mesh(), held_out_stores(corpus, "test"), "test", batch_size=4)
    for bad in (jnp.nan, jnp.inf):
        damaged = {**params, "final_norm": {"scale": params["final_norm"]["scale"].at[3].set(bad)}}
        with pytest.raises(NonFiniteError, match=r"^leaf final_norm/scale has 1 of 16 values that are NaN or infinite"):
            evaluate(damaged)
    huge = {**params, "token_embedding": params["token_embedding"] * 1e10, "final_norm": {"scale": jnp.full(16, 1e30)}}
    with pytest.raises(NonFiniteError, match="the loss is not finite, though every parameter is"):
        evaluate(huge)


def test_parameters_near_zero_are_near_uniform(corpus):
    model = model_lib.build(ModelConfig(layers=1, d_model=16, heads=2, context=16, vocab_size=corpus.vocab_size))
    result = make_evaluator(model, sharding.make_mesh(), held_out_stores(corpus, "test"), "test", batch_size=4)(
        drawn(model)
    )
    assert result.loss == pytest.approx(math.log(corpus.vocab_size), abs=0.1)
