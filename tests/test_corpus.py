"""The corpus of the experiments: passages, what is chosen, what is refused."""

import gzip
import json
import shutil

import pytest

from experiments import corpus
from wsm_jax import UsageError
from wsm_jax.data.store import split_of


def test_passages_are_the_text_in_order():
    text = "".join(f"line {i}\n" for i in range(5000)) + "the end"
    parts = list(corpus.passages(text))
    assert "".join(parts) == text and len(parts) > 3
    assert all(corpus.PASSAGE <= len(part) < corpus.PASSAGE + 100 for part in parts[:-1])


def test_the_corpus_is_the_same_every_time_and_its_splits_are_all_there(experiment_text, tmp_path):
    first, second = (corpus.build(experiment_text, tmp_path / name, 0.1) for name in ("a", "b"))
    counts = json.loads((first / "corpus.json").read_text())["counts"]
    assert set(counts) == {f"{phase}/{domain}" for phase, domains in corpus.PHASES.items() for domain in domains}
    for name, count in counts.items():
        assert 0 < count["characters"] <= 100_000
        files = [folder / f"{name}.jsonl.gz" for folder in (first, second)]
        assert files[0].read_bytes() == files[1].read_bytes()
    texts = [json.loads(line)["text"] for line in gzip.open(first / "stable" / "peps.jsonl.gz", "rt", encoding="utf-8")]
    # Were the first ones taken in the order that decides the split, they would all be of one.
    assert {split_of(text, 0.3, 0.3) for text in texts} == {"train", "validation", "test"}


def test_a_corpus_of_another_size_is_not_taken_for_this_one(experiment_text, tmp_path):
    corpus.build(experiment_text, tmp_path / "a", 0.1)
    with pytest.raises(UsageError, match="another --output"):
        corpus.build(experiment_text, tmp_path / "a", 0.2)


def test_a_folder_of_something_else_is_no_place_for_a_corpus(experiment_text, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="a holds other files and no corpus"):
        corpus.build(experiment_text, tmp_path / "a", 0.1)
    assert [path.name for path in tmp_path.glob("*")] == ["a"]


def test_a_missing_file_is_named_before_anything_is_written(experiment_text, tmp_path):
    copy = shutil.copytree(experiment_text, tmp_path / "data")
    (copy / "eval" / "math500.jsonl.gz").unlink()
    with pytest.raises(UsageError, match="math500"):
        corpus.build(copy, tmp_path / "a", 0.1)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"text": "a"}\n{"texts": "b"}\n', "line 2: KeyError: 'text'"),
        (b'{"text": "a"}\n{"text": null}\n', "line 2: AttributeError"),
        (b'{"text": "a"}\n{"text"\n', "line 2: JSONDecodeError: Expecting"),
        (None, "Compressed file ended"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line(experiment_text, tmp_path, content, named):
    copy = shutil.copytree(experiment_text, tmp_path / "data")
    file = copy / "text" / "stable" / "peps.jsonl.gz"
    file.write_bytes(gzip.compress(content) if content else file.read_bytes()[:200])
    with pytest.raises(UsageError, match=rf"peps\.jsonl\.gz[,:] {named}"):
        corpus.build(copy, tmp_path / "corpus", 0)
    assert not (tmp_path / "corpus").exists()


def test_a_question_comes_with_its_solution():
    record = {"question": "Which?", "options": ["this", "that"], "answer": "B"}
    assert list(corpus._choice(record)) == ["Which?\nA. this\nB. that\nAnswer: B"]
