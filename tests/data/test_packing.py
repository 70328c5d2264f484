"""Packed rows: every conversation once an epoch, in one row, and a row is a function of its number alone."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsm_jax.config import DataConfig
from wsm_jax.data import packing, pipeline
from wsm_jax.data.packing import PackedRows, pack
from wsm_jax.data.tokenizer import train_bpe
from wsm_jax.data.tokens import prepare
from wsm_jax.errors import UsageError

CONTEXT = 24


@given(st.lists(st.integers(0, 16), max_size=200), st.integers(0, 9))
def test_all_items_are_packed_once_and_fit(lengths, seed):
    sizes = np.asarray(lengths, np.int64)
    rows = pack(sizes, 16, np.random.default_rng(seed).permutation(len(sizes)))
    assert sorted(item for row in rows for item in row) == np.flatnonzero(sizes).tolist()
    assert all(0 < sizes[row].sum() <= 16 for row in rows)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packing")
    train_bpe(["abc 0123456789 ?"] * 9, 270).save(folder / "tokenizer.json")
    long = [
        {"prompt": "a" * (CONTEXT + n) if n % 2 else f"{n}?", "response": "c" * (CONTEXT + 9 - n)} for n in range(20)
    ]
    talks = [{"prompt": f"{n}?", "response": "b" * (n % 11 + 1)} for n in range(80)]
    (folder / "talk.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in [*talks, *long]))
    source = f"chat:{folder / 'talk.jsonl'}"
    here = str(folder)
    return prepare(DataConfig(source, tokenizer=here, store=here, validation_fraction=0.1, test_fraction=0.1))


def conversations(store, split="train"):
    tokens, learnt, offsets = store.tokens(split), store.learnt(split), store.offsets(split)
    return [(tokens[a:b].tolist(), learnt[a:b].tolist()) for a, b in itertools.pairwise(offsets)]


def test_an_epoch_holds_every_conversation_once(corpus):
    store = corpus.stable[0][0]
    rows = PackedRows(store, CONTEXT, seed=1)
    expected = []
    for ids, learnt in conversations(store):
        if any(learnt[1 : CONTEXT + 1]):
            expected.append((ids[:-1][:CONTEXT], ids[1:][:CONTEXT], learnt[1:][:CONTEXT]))
    assert rows.left_out and rows.cut and len(expected) == len(conversations(store)) - rows.left_out
    orders = []
    for epoch in range(3):
        found = []
        for number in range(rows.rows(epoch), rows.rows(epoch + 1)):
            row = rows[number]
            for segment in range(1, row["segments"].max() + 1):
                here = row["segments"] == segment
                assert row["positions"][here].tolist() == list(range(here.sum()))
                found.append(tuple(row[name][here].tolist() for name in ("inputs", "targets", "weights")))
            padding = row["segments"] == 0
            assert not any(row[name][padding].any() for name in ("inputs", "targets", "weights"))
        assert sorted(found) == sorted(expected)
        orders.append(found)
    assert orders[0] != orders[1] != orders[2]


def test_a_row_depends_on_nothing_but_its_number(corpus):
    store = corpus.stable[0][0]
    straight = PackedRows(store, CONTEXT, seed=1)
    many = [straight[number] for number in range(2 * straight.rows(1))]
    again = PackedRows(store, CONTEXT, seed=1)
    for number in (len(many) - 1, 0, straight.rows(1)):
        assert all((again[number][name] == many[number][name]).all() for name in many[number])
    other = PackedRows(store, CONTEXT, seed=2)
    assert any((other[n]["inputs"] != many[n]["inputs"]).any() for n in range(4))


def test_batches_are_rows_in_order_whatever_the_number_of_hosts(corpus):
    rows = PackedRows(corpus.stable[0][0], CONTEXT, seed=3)
    shape = {"context": CONTEXT, "batch_size": 4, "seed": 3}
    for step in (0, 5):
        whole = pipeline.batch_at(corpus, step, **shape)
        assert {name: value.dtype.name for name, value in whole.items()} == {
            **dict.fromkeys(("inputs", "targets", "segments", "positions"), "int32"), "weights": "float32"
        }  # fmt: skip
        halves = [pipeline.batch_at(corpus, step, **shape, process_index=i, process_count=2) for i in (0, 1)]
        for name, value in whole.items():
            assert (value == np.stack([rows[4 * step + i][name] for i in range(4)])).all()
            assert (value == np.concatenate([half[name] for half in halves])).all()


def test_an_evaluation_reads_each_conversation_that_fits_once(corpus):
    store = corpus.stable[0][0]
    chosen = packing.fitting(store, "train", CONTEXT)
    talks = conversations(store)
    assert chosen.tolist() == [n for n, (ids, _) in enumerate(talks) if len(ids) <= CONTEXT + 1]
    found = {}
    for batch in packing.evaluation_batches(store, "train", chosen, CONTEXT, 4):
        assert batch["inputs"].shape == (4, CONTEXT)
        for row in range(4):
            for place in set(batch["document"][row].tolist()) - {-1}:
                found[place] = batch["targets"][row][batch["document"][row] == place].tolist()
    assert found == {
        place: [i for i, one in list(zip(*talks[number], strict=True))[1:] if one]
        for place, number in enumerate(chosen)
    }
    few = packing.fitting(store, "train", CONTEXT, limit_tokens=30)
    assert 0 < len(few) < len(chosen) and few.tolist() == chosen[: len(few)].tolist()


def test_a_context_without_a_response_is_refused(corpus):
    with pytest.raises(UsageError, match=r"no response begins within model\.context=2 tokens"):
        PackedRows(corpus.stable[0][0], 2, seed=0)
    with pytest.raises(UsageError, match=r"none fits model\.context=2"):
        packing.fitting(corpus.stable[0][0], "train", 2)
