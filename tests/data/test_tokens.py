"""The token store: what is in it, that it is made once, and that nothing half-made is ever taken for whole."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsm_jax.config import DataConfig
from wsm_jax.data import sources, tokens
from wsm_jax.data.store import TokenStore
from wsm_jax.data.tokenizer import train_bpe
from wsm_jax.data.tokens import SPLITS, prepare, split_of
from wsm_jax.errors import UsageError
from wsm_jax.evaluation.evaluate import held_out_stores
from wsm_jax.io.publish import published


def test_store_holds_every_document_in_its_split(config, corpus):
    for (store, _), (spec, _) in zip(corpus.stable, sources.parse_mixture(config.source), strict=True):
        documents = list(sources.documents(spec, config.store))
        assert store.manifest["source"] == spec and store.manifest["source_hash"] == sources.fingerprint(documents)
        for split in SPLITS:
            texts = [d.text for d in documents if split_of(d.text, 0.2, 0.2) == split]
            tokens, offsets = store.tokens(split), store.offsets(split)
            assert tokens.dtype == np.uint16 and offsets.dtype == store.document_bytes(split).dtype == np.int64
            ends = itertools.pairwise(offsets)
            assert [corpus.tokenizer.decode(tokens[a : b - 1]) for a, b in ends] == texts
            assert (tokens[offsets[1:] - 1] == corpus.tokenizer.eot).all()
            assert (tokens == corpus.tokenizer.eot).sum() == len(texts)
            assert store.document_bytes(split).tolist() == [len(text.encode()) for text in texts]
            assert store.manifest["splits"][split] == {
                "documents": len(texts),
                "tokens": len(tokens),
                "bytes": sum(len(text.encode()) for text in texts),
            }


def test_vocabulary_is_trained_on_the_train_split_of_the_stable_sources(config, corpus):
    texts = [
        document.text
        for spec, _ in sources.parse_mixture(config.source)
        for document in sources.documents(spec, config.store)
        if split_of(document.text, 0.2, 0.2) == "train"
    ]
    assert train_bpe(texts, 512).hash == corpus.tokenizer.hash == corpus.manifest()["tokenizer_hash"]


def test_the_second_time_no_document_is_read(config, corpus, monkeypatch):
    before = sorted(str(path) for path in pathlib.Path(config.store).rglob("*"))
    monkeypatch.setattr(tokens, "_survey", lambda *_: pytest.fail("documents were read"))
    again = prepare(config)
    assert sorted(str(path) for path in pathlib.Path(config.store).rglob("*")) == before
    assert again.hash == corpus.hash and json.loads(json.dumps(again.manifest())) == corpus.manifest()
    assert again.stable[0][0].hash == again.switch[1][0].hash
    other_weights = dataclasses.replace(config, source=config.source.replace("0.75", "0.5"))
    assert prepare(other_weights).hash != corpus.hash


def test_hash_is_of_content_not_of_place(config, corpus, tmp_path):
    moved = prepare(dataclasses.replace(config, store=str(tmp_path)))
    assert moved.hash == corpus.hash
    for store, twin in zip(moved.stable, corpus.stable, strict=True):
        assert store[0].path.name == twin[0].path.name
        assert (store[0].tokens("train") == twin[0].tokens("train")).all()


@given(st.text(), st.floats(0, 0.5), st.floats(0, 0.49))
def test_split_depends_on_the_text_and_shares_are_independent(text, validation, test):
    split = split_of(text, validation, test)
    assert split_of(text, validation, test) == split
    assert (split == "validation") == (split_of(text, validation, 0.0) == "validation")
    assert (split == "test") == (split_of(text, 0.0, test) == "test")
    if split != "train":  # a larger share keeps what it had
        assert split_of(text, 0.5, 0.5) == split


def test_split_shares():
    drawn = [split_of(str(i), 0.1, 0.3) for i in range(20_000)]
    assert drawn.count("validation") / 20_000 == pytest.approx(0.1, abs=0.01)
    assert drawn.count("test") / 20_000 == pytest.approx(0.3, abs=0.015)


def _texts(folder: pathlib.Path, count: int) -> str:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04}.txt").write_text(f"document number {number} of some\n" * 20)
    return f"text:{folder}"


def _small(spec: str, store: pathlib.Path, **fields: Any) -> DataConfig:
    usual: dict[str, Any] = {"tokenizer": "bpe:300", "validation_fraction": 0.2, "test_fraction": 0.2}
    return DataConfig(source=spec, store=str(store), **usual | fields)


def test_a_changed_file_makes_another_store_and_moves_no_document(tmp_path):
    spec = _texts(tmp_path / "in", 60)
    first = prepare(_small(spec, tmp_path / "store")).stable[0][0]
    (tmp_path / "in" / "new.txt").write_text("one more document\n" * 5)
    second = prepare(_small(spec, tmp_path / "store")).stable[0][0]
    assert second.hash != first.hash and second.path != first.path and first.path.is_dir()
    (changed,) = (
        s for s in SPLITS if first.manifest["splits"][s]["documents"] != second.manifest["splits"][s]["documents"]
    )
    assert changed == split_of("one more document\n" * 5, 0.2, 0.2)


def test_store_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WSM_DATA", str(tmp_path / "there"))
    spec = _texts(tmp_path / "in", 60)
    store = prepare(dataclasses.replace(_small(spec, tmp_path), store="")).stable[0][0]
    assert store.path.parent == tmp_path / "there" / "tokens"


def test_tokenizer_from_a_file(config, corpus, tmp_path):
    corpus.tokenizer.save(tmp_path / "tokenizer.json")
    spec = _texts(tmp_path / "in", 60)
    made = prepare(_small(spec, tmp_path / "store", tokenizer=str(tmp_path)))
    assert made.tokenizer.hash == corpus.tokenizer.hash
    assert prepare(_small(spec, tmp_path / "store", tokenizer=str(tmp_path))).hash == made.hash


@pytest.mark.integration
def test_large_vocabulary_takes_four_bytes_a_token(tmp_path):
    tokenizer = train_bpe(["words"], 300)
    content = json.loads(tokenizer._json())
    content["model"]["vocab"] |= {f"unused{number}": number for number in range(tokenizer.vocab_size, 70_000)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    made = prepare(_small(_texts(tmp_path / "in", 60), tmp_path / "store", tokenizer=str(tmp_path / "tokenizer.json")))
    assert made.vocab_size == 70_000 and made.stable[0][0].tokens("train").dtype == np.uint32


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"validation_fraction": -0.1}, "data.validation_fraction=-0.1 must be"),
        ({"test_fraction": 1.0}, "data.test_fraction=1.0 must be"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leaves nothing to train on"),
        ({"tokenizer": "bpe:256"}, "data.tokenizer='bpe:256': bpe: takes a vocabulary size of at least 257"),
        ({"tokenizer": "bpe:many"}, "data.tokenizer='bpe:many'"),
        ({"tokenizer": "bpe:1e20"}, "data.tokenizer='bpe:1e20': bpe: takes a vocabulary size"),
        ({"tokenizer": "bpe:1000001"}, "at most 1000000, e.g. bpe:4096"),
        ({"tokenizer": f"bpe:{10**20}"}, "at most 1000000, e.g. bpe:4096"),
        ({"tokenizer": 4096}, "data.tokenizer is 4096; it must be a text"),
        ({"validation_fraction": "0.1"}, "data.validation_fraction is '0.1'; it must be a number"),
        ({"switch_source": "text:{a,b"}, "data.switch_source='text:{a,b': a brace or bracket is not closed"),
        ({"tokenizer": "/no/such/file"}, "tokenizer /no/such/file is neither"),
        ({"switch_source": "nowhere"}, "data.switch_source: source 'nowhere' is unknown"),
        ({"switch_source": "text:/no/such/file"}, "text:/no/such/file matches nothing"),
        ({"validation_fraction": 1e-9}, "documents falls in the validation split with data.validation_fraction=1e-09"),
        ({"test_fraction": 1e-9}, "documents falls in the test split"),
    ],
)
def test_errors_come_before_any_tokens(tmp_path, fields, message):
    spec = _texts(tmp_path / "in", 60)
    with pytest.raises(UsageError) as caught:
        prepare(_small(spec, tmp_path / "store", **fields))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("store/tokens/*"))


@pytest.mark.parametrize("content", ["{}", "[" * 100_000, None])
def test_a_tokenizer_that_cannot_be_read_is_noticed_before_the_documents_are(tmp_path, content):
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")  # what reading would complain of
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UsageError, match=f"{tmp_path}.* (is not a tokenizer that can be read|is neither a tokenizer)"):
        prepare(_small(f"text:{tmp_path}/bad.txt", tmp_path / "store", tokenizer=str(tmp_path)))
    assert not (tmp_path / "store").exists()


def test_equal_sources_are_refused(tmp_path):
    spec = _texts(tmp_path / "in", 60)
    shutil.copytree(tmp_path / "in", tmp_path / "copy")
    with pytest.raises(UsageError, match="hold the same documents"):
        prepare(_small(f"{spec},text:{tmp_path}/copy", tmp_path / "store"))


def test_switch_source_needs_no_held_out_documents_but_a_stable_one_does(tmp_path):
    spec = _texts(tmp_path / "in", 60)
    (tmp_path / "one.txt").write_text(next(t for i in range(99) if split_of(t := f"single {i}", 0.2, 0.2) == "train"))
    one = f"text:{tmp_path}/one.txt"
    made = prepare(_small(spec, tmp_path / "store", switch_source=one))
    assert made.switch[0][0].manifest["splits"]["test"] == {"documents": 0, "tokens": 0, "bytes": 0}
    assert len(made.switch[0][0].tokens("test")) == 0
    assert [store.hash for store in held_out_stores(made, "test")] == [made.stable[0][0].hash]
    assert len(held_out_stores(made, "train")) == 2
    with pytest.raises(UsageError, match=r"one\.txt': none of its 1 documents falls in the validation split"):
        prepare(_small(one, tmp_path / "store"))


def test_damaged_store_is_named(tmp_path):
    spec = _texts(tmp_path / "in", 60)
    store = prepare(_small(spec, tmp_path / "store")).stable[0][0]
    with (store.path / "train" / "tokens.bin").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(UsageError, match=r"train/tokens\.bin is damaged: it should hold \d+ bytes; delete"):
        prepare(_small(spec, tmp_path / "store"))
    with pytest.raises(UsageError, match="is not a token store"):
        TokenStore(tmp_path)


def _cut(file):
    file.write_bytes(file.read_bytes()[:-8])


def _saved(change):
    return lambda file: np.save(file, change(np.load(file)))


@pytest.mark.parametrize("name", ["offsets.npy", "bytes.npy"])
@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'"),
        _saved(lambda array: array[:-1]),
        _saved(lambda array: array.astype(np.int32)),
        _saved(lambda array: array[None]),
        lambda file: np.save(file, np.asarray([{}]), allow_pickle=True),
    ],
)
def test_a_damaged_index_of_documents_is_named_before_work_starts(tmp_path, name, damage):
    spec = _texts(tmp_path / "in", 60)
    store = prepare(_small(spec, tmp_path / "store")).stable[0][0]
    damage(store.path / "validation" / name)
    with pytest.raises(UsageError, match=rf"validation/{name} is damaged: .*; delete {store.path} and run wsm prepare"):
        prepare(_small(spec, tmp_path / "store"))


@pytest.mark.parametrize("change", [lambda a: a[::-1], lambda a: a + 1, lambda a: a * 0, lambda a: -a])
def test_an_index_of_other_documents_is_named_when_it_is_read(tmp_path, change):
    store = prepare(_small(_texts(tmp_path / "in", 60), tmp_path / "store")).stable[0][0]
    for name, read in (("offsets.npy", store.offsets), ("bytes.npy", store.document_bytes)):
        _saved(change)(store.path / "train" / name)
        if name == "bytes.npy" and (read_sum := np.load(store.path / "train" / name)).min() > 0:
            if read_sum.sum() == store.manifest["splits"]["train"]["bytes"]:
                continue  # the same lengths in another order are not noticed
        with pytest.raises(UsageError, match=rf"train/{name} is damaged: its (documents|lengths) are not those of"):
            read("train")


@pytest.mark.parametrize("entry", ["hash", "splits", "dtype", "eot", "source"])
def test_a_manifest_without_an_entry_is_named(tmp_path, entry):
    store = prepare(_small(_texts(tmp_path / "in", 60), tmp_path / "store")).stable[0][0]
    file = store.path / "manifest.json"
    file.write_text(json.dumps({name: value for name, value in store.manifest.items() if name != entry}))
    with pytest.raises(UsageError, match=r"manifest\.json is damaged: it lacks"):
        TokenStore(store.path)


def test_published_folder_is_whole_or_absent_and_the_first_stays(tmp_path):
    with pytest.raises(RuntimeError), published(tmp_path / "a") as folder:
        (folder / "part").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with published(tmp_path / "a") as slow:
        with published(tmp_path / "a") as fast:
            (fast / "x").write_text("fast")
        (slow / "x").write_text("slow")
    assert (tmp_path / "a" / "x").read_text() == "fast" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_old_remains_of_killed_writers_are_swept(tmp_path):
    (tmp_path / ".tmp-old").mkdir()
    (tmp_path / ".tmp-new").mkdir()
    os.utime(tmp_path / ".tmp-old", (0, 0))
    with published(tmp_path / "a"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-new", "a"]
