"""Batches: a pure function of the step, whoever asks, and evaluation that counts each token once."""

import itertools
import pathlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsm_jax.config import DataConfig
from wsm_jax.data.pipeline import batch_at, batches, evaluation_batches, training_set
from wsm_jax.data.sources import Document
from wsm_jax.data.store import TokenStore, write_store
from wsm_jax.data.tokenizer import train_bpe
from wsm_jax.data.tokens import Corpus
from wsm_jax.errors import UsageError

_SHAPE: dict[str, Any] = {"context": 32, "batch_size": 8, "seed": 3, "switch_step": 40}


def _first(iterator, count: int) -> list[dict[str, np.ndarray]]:
    with_end = list(itertools.islice(iterator, count))
    iterator.close()
    return with_end


def _equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def _without_switch(corpus: Corpus, which: int | None = None) -> Corpus:
    stable = corpus.stable if which is None else [(corpus.stable[which][0], 1.0)]
    return Corpus(stable, [], corpus.tokenizer)


def _windows(store: TokenStore, context: int) -> dict[bytes, int]:
    tokens = store.tokens("train").astype(np.int32)
    count = (len(tokens) - 1) // context
    return {tokens[i * context : (i + 1) * context + 1].tobytes(): i for i in range(count)}


def _rows(batch: dict[str, np.ndarray]) -> list[bytes]:
    return [
        np.append(i, t[-1]).astype(np.int32).tobytes() for i, t in zip(batch["inputs"], batch["targets"], strict=True)
    ]


@pytest.fixture(scope="module")
def counted(tmp_path_factory) -> Corpus:
    """Two stores that count, in bytes, so that no two windows of 32 tokens or more are equal."""
    folder: pathlib.Path = tmp_path_factory.mktemp("counted")
    tokenizer = train_bpe([], 257)
    stores = []
    for name in "ab":
        document = Document(name, " ".join(f"{name}{number:05}" for number in range(2000)))
        about = {"hash": name, "source": name}
        stores.append(write_store(folder / name, [document], tokenizer, (0.0, 0.0), about))
    return Corpus([(stores[0], 0.75), (stores[1], 0.25)], [(stores[1], 0.8), (stores[0], 0.2)], tokenizer)


def test_shapes_types_and_shift(corpus):
    batch = batch_at(corpus, 0, **_SHAPE)
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "inputs": ((8, 32), np.dtype(np.int32)),
        "targets": ((8, 32), np.dtype(np.int32)),
    }
    assert (batch["inputs"][:, 1:] == batch["targets"][:, :-1]).all()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_iterator_is_the_function_of_the_step_wherever_it_starts(corpus, workers):
    expected = [batch_at(corpus, step, **_SHAPE) for step in range(60)]
    for start in (0, 7, 39, 40, 41):
        got = _first(batches(corpus, start_step=start, workers=workers, **_SHAPE), 60 - start)
        assert all(_equal(a, b) for a, b in zip(got, expected[start:], strict=True))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_read_the_batch_of_one(corpus, hosts):
    parts = [
        _first(batches(corpus, process_index=p, process_count=hosts, start_step=35, **_SHAPE), 10) for p in range(hosts)
    ]
    for step, pieces in enumerate(zip(*parts, strict=True), start=35):
        assert all(piece["inputs"].shape == (8 // hosts, 32) for piece in pieces)
        whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        assert _equal(whole, batch_at(corpus, step, **_SHAPE))


@settings(max_examples=30)
@given(st.integers(0, 10**9), st.integers(0, 2**63), st.sampled_from([1, 2, 4]))
def test_any_step_and_seed(corpus, step, seed, hosts):
    shape = _SHAPE | {"seed": seed}
    whole = batch_at(corpus, step, **shape)
    part = batch_at(corpus, step, process_index=hosts - 1, process_count=hosts, **shape)
    assert (whole["inputs"][8 - 8 // hosts :] == part["inputs"]).all()


def test_epochs_hold_every_window_once_and_reshuffle(counted):
    alone = _without_switch(counted, 1)
    windows = _windows(alone.stable[0][0], 512)
    steps = training_set(alone, context=512, batch_size=1, seed=0)
    orders = [[windows[_rows(steps[epoch * len(windows) + i])[0]] for i in range(len(windows))] for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(len(windows)))
    assert orders[0] != orders[1] != orders[2] != orders[0] and orders[0] != sorted(orders[0])


def test_neighbouring_seeds_share_no_order(counted):
    # Grain alone would give epoch 1 of seed 0 the order of epoch 0 of seed 1.
    alone = _without_switch(counted, 1)
    windows = _windows(alone.stable[0][0], 512)
    orders = set()
    for seed in range(3):
        steps = training_set(alone, context=512, batch_size=1, seed=seed)
        orders |= {tuple(windows[_rows(steps[e * len(windows) + i])[0]] for i in range(20)) for e in range(3)}
    assert len(orders) == 9


def _sources(corpus: Corpus, steps: range) -> list[list[tuple[int, int]]]:
    """(store, window) of every row of the steps."""
    known = [_windows(store, 32) for store, _ in corpus.stable]
    assert not known[0].keys() & known[1].keys()
    found = training_set(corpus, **_SHAPE)
    rows = [_rows(found[step]) for step in steps]  # pyrefly: ignore
    return [[next((w, k[row]) for w, k in enumerate(known) if row in k) for row in batch] for batch in rows]


def test_mixture_proportions_before_and_after_the_switch(counted):
    before = Counter(store for batch in _sources(counted, range(40)) for store, _ in batch)
    assert before == {0: 240, 1: 80}  # 0.75 and 0.25 of 320 rows
    after = Counter(store for batch in _sources(counted, range(40, 80)) for store, _ in batch)
    assert after == {1: 256, 0: 64}  # 0.8 and 0.2


def test_switch_is_exact_and_goes_on_where_each_source_stopped(counted):
    assert all(
        _equal(
            batch_at(counted, step, **_SHAPE),
            batch_at(_without_switch(counted), step, **_SHAPE | {"switch_step": None}),
        )
        for step in range(40)
    )
    stores = [store for batch in _sources(counted, range(38, 42)) for store, _ in batch]
    assert stores[:16].count(0) == 12 and stores[16:].count(1) in (12, 13)
    seen = [row for batch in _sources(counted, range(80)) for row in batch]
    assert len(set(seen)) == len(seen)  # both sources hold more windows than were read


def test_switch_at_the_start_reads_the_second_mixture_only(corpus):
    second = Corpus(corpus.switch, [], corpus.tokenizer)
    for step in range(3):
        one = batch_at(corpus, step, **_SHAPE | {"switch_step": 0})
        assert _equal(one, batch_at(second, step, **_SHAPE | {"switch_step": None}))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"process_count": 3}, "batch_size=8 must be a multiple of the number of hosts, 3"),
        ({"process_index": 1}, "process_index=1 must be between 0 and 0"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"context": 0}, "model.context=0"),
        ({"switch_step": None}, "data.switch_source and data.switch_at go together"),
        ({"switch_step": -1}, "data.switch_at must not be before the start"),
        ({"context": 10**9}, "train tokens, too few for one window of model.context=1000000000"),
        ({"start_step": -1}, "start_step=-1 must be at least 0"),
        ({"workers": -1}, "data.workers=-1 must be at least 0"),
    ],
)
def test_errors(corpus, change, message):
    with pytest.raises(UsageError) as caught:
        batches(corpus, **_SHAPE | change)
    assert message in str(caught.value)


def test_switch_step_without_a_second_mixture(corpus):
    with pytest.raises(UsageError, match="go together"):
        batches(_without_switch(corpus), **_SHAPE)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TokenStore:
    """Documents of 1 to 12 tokens, all of them in the train split."""
    documents = [Document(str(i), "x" * (i * 5 % 12) or "y") for i in range(40)]
    tokenizer = train_bpe(["x"], 257)
    path: pathlib.Path = tmp_path_factory.mktemp("tiny") / "store"
    return write_store(path, documents, tokenizer, (0.0, 0.0), {"hash": "tiny", "source": "tiny"})


@settings(max_examples=60)
@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 400))
def test_evaluation_reads_each_token_once_in_order(tiny, context, batch_size, limit):
    tokens, offsets, eot = tiny.tokens("train"), tiny.offsets("train"), tiny.manifest["eot"]
    end = len(tokens)
    if limit:
        whole = [int(offset) for offset in offsets[1:] if offset <= limit]
        end = whole[-1] if whole else int(offsets[1])
    made = list(evaluation_batches(tiny, "train", context=context, batch_size=batch_size, limit_tokens=limit))
    assert all(value.shape == (batch_size, context) and value.dtype == np.int32 for b in made for value in b.values())
    flat = {name: np.concatenate([batch[name].ravel() for batch in made]) for name in made[0]}
    real = flat["document"] >= 0
    assert real[:end].all() and not real[end:].any() and len(real) - end < context * batch_size
    assert (flat["targets"][:end] == tokens[:end]).all() and not flat["targets"][end:].any()
    assert (flat["inputs"][:end] == np.concatenate([[eot], tokens[: end - 1]])).all()
    expected = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[:end]
    assert (flat["document"][:end] == expected).all()


@settings(max_examples=60)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 200), st.integers(1, 14))
def test_of_each_document_the_first_tokens_count(tiny, context, batch_size, limit, first):
    shape = {"context": context, "batch_size": batch_size}
    made = list(evaluation_batches(tiny, "train", **shape, limit_tokens=limit, document_tokens=first))
    flat = {name: np.concatenate([batch[name].ravel() for batch in made]) for name in made[0]}
    tokens, offsets, eot = tiny.tokens("train"), tiny.offsets("train"), tiny.manifest["eot"]
    counts = np.minimum(np.diff(offsets), first)
    documents = max(1, int((np.cumsum(counts) <= limit).sum())) if limit else len(counts)
    for document in range(documents):
        place = np.flatnonzero(flat["document"] == document)
        start = offsets[document]
        assert flat["targets"][place].tolist() == tokens[start : start + counts[document]].tolist()
        assert flat["inputs"][place].tolist() == [eot, *tokens[start : start + counts[document] - 1]]
    assert (flat["document"] >= 0).sum() == counts[:documents].sum()
    if first >= np.diff(offsets).max() and not limit:
        for batch, whole in zip(made, evaluation_batches(tiny, "train", **shape), strict=True):
            assert all((batch[name] == whole[name]).all() for name in whole)


def test_evaluation_errors(tiny):
    with pytest.raises(UsageError, match="document_tokens=-1 must be at least 1, or 0"):
        evaluation_batches(tiny, "train", context=4, batch_size=2, document_tokens=-1)
    with pytest.raises(UsageError, match=r"'tiny' has no validation documents; raise data\.validation_fraction"):
        evaluation_batches(tiny, "validation", context=4, batch_size=2)
    with pytest.raises(UsageError, match=r"evaluation\.batch_size=0"):
        evaluation_batches(tiny, "train", context=4, batch_size=0)


def test_default_config_field_names_exist():
    # The errors above name fields; they must be those of the configuration.
    assert {"source", "switch_source", "switch_at", "workers", "validation_fraction"} <= set(vars(DataConfig()))
