"""The corpus of the experiments: documents that share nothing, what is chosen, what is refused."""

import gzip
import json
import shutil

import numpy as np
import pytest

from experiments import corpus, corpus_counts, overlap
from wsm_jax import UsageError
from wsm_jax.data.store import split_of
from wsm_jax.data.tokenizer import train_bpe
from wsm_jax.evaluation.answers import Item, encode


def write(folder, file, records):
    with gzip.open(folder / f"{file}.jsonl.gz", "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(record) + "\n" for record in records)


def read(file):
    return [json.loads(line) for line in gzip.open(file, "rt", encoding="utf-8")]


def words(seed, count=400):
    random = np.random.default_rng(seed)
    return " ".join(f"w{number}" for number in random.integers(0, 5000, count))


def test_overlaps_are_shares_of_the_shorter_text():
    whole, other = words(0, 4000), words(1, 4000)
    part = " ".join(whole.split()[:1000])
    mixed = " ".join([*other.split()[:3000], *whole.split()[-1000:]])
    found = overlap.overlaps([whole, other, part.upper().replace(" ", ", "), mixed, "short", ""])
    assert {pair for pair, share in found.items() if share > 0.05} == {(0, 2), (0, 3), (1, 3)}
    assert found[0, 2] == 1.0  # case and punctuation aside
    assert found[0, 3] == pytest.approx(0.25, abs=0.05) and found[1, 3] == pytest.approx(0.75, abs=0.05)
    assert overlap.overlaps([words(0)] * (overlap.COMMON + 1)) == {}  # a formula, not a copy
    assert overlap.joined(5, [(1, 3), (3, 4)]) == [[0], [1, 3, 4], [2]]


def test_nothing_is_on_two_sides(experiment_text, tmp_path):
    data = shutil.copytree(experiment_text, tmp_path / "data")
    texts = [words(seed) for seed in range(40)]
    edited = texts[0].replace(texts[0].split()[7], "edited")
    sharing = words(99, 300) + " " + " ".join(texts[1].split()[:100])
    records = [{"id": f"t{n}", "text": text} for n, text in enumerate([*texts, texts[2], edited, sharing])]
    write(data, "text/stable/peps", records)
    question = {"problem": texts[3], "solution": "seven"}
    write(data, "eval/math500", [question])
    folder = corpus.build(data, tmp_path / "out")
    found = {document["id"]: document["text"] for document in read(folder / "stable" / "peps.jsonl.gz")}
    assert len(texts[0]) < len(edited)  # so it is the copy
    assert set(found) == {f"t{n}" for n in range(40)} - {"t0", "t1", "t3"} | {"t41", "t1+t42"}
    assert found["t1+t42"] == f"{texts[1]}\n\n{sharing}"
    counts = json.loads((folder / "corpus.json").read_text())["counts"]["stable/peps"]
    assert {name: counts[name] for name in ("texts", "copies", "measured", "joined", "documents")} == {
        "texts": 42, "copies": 1, "measured": 1, "joined": 2, "documents": 39,
    }  # fmt: skip
    there = [split_of(text, corpus.VALIDATION, corpus.TEST) for text in found.values()]
    splits = corpus_counts.splits(folder)["stable/peps"]
    assert splits == {name: there.count(name) for name in ("train", "validation", "test")}
    (answer,) = read(folder / "eval" / "math500.jsonl.gz")
    assert answer == {"id": "math500:1", "prompt": f"{texts[3]}\n\n", "answer": "seven"}


def test_a_document_is_a_whole_text_or_its_beginning(experiment_text, tmp_path):
    data = shutil.copytree(experiment_text, tmp_path / "data")
    text = "".join(f"{words(seed, 20)}\n" for seed in range(100))
    write(data, "text/stable/peps", [{"text": text}, {"text": words(200, 2000)}])
    whole, begun = (corpus.build(data, tmp_path / f"{kilobytes}", kilobytes=kilobytes) for kilobytes in (0, 1.5))
    texts = [{document["text"] for document in read(folder / "stable" / "peps.jsonl.gz")} for folder in (whole, begun)]
    assert texts[0] == {text, words(200, 2000)}
    cut = text[: text.rfind("\n", 0, 1500) + 1]
    assert texts[1] == {cut, words(200, 2000)[:1500]} and 1300 < len(cut) <= 1500


def test_the_corpus_is_the_same_every_time_and_its_splits_are_all_there(experiment_text, tmp_path):
    first, second = (corpus.build(experiment_text, tmp_path / name, 0.1) for name in ("a", "b"))
    counts = json.loads((first / "corpus.json").read_text())["counts"]
    assert set(counts) == {f"{phase}/{domain}" for phase, domains in corpus.PHASES.items() for domain in domains}
    for name, count in counts.items():
        assert 0 < count.get("characters", count.get("answers")) <= 100_000
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
        (b'{"text": "a"}\n{"text": null}\n', "line 2: TypeError"),
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


def test_of_a_choice_the_text_of_the_right_option_is_the_answer():
    record = {"question": "Which?", "options": ["this", "that"], "answer": "B"}
    assert corpus._option(record) == ("Which?\n\n", "that")


def test_the_record_counts_answers_that_do_not_fit(experiment_text, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_counts, "VOCABULARIES", (300,))
    monkeypatch.setattr(corpus_counts, "CONTEXTS", (15, 10**6))
    folder = corpus.build(experiment_text, tmp_path / "a", 0.1)
    record = {"command": "mine", **json.loads((folder / "corpus.json").read_text())}
    for domain, found in corpus_counts.splits(folder).items():
        record["counts"][domain] |= found
    record["left_out"] = corpus_counts.left_out(folder)
    few, none = record["left_out"].values()
    assert set(none.values()) == {0}
    texts = [
        document["text"]
        for domain in corpus.STABLE
        for document in read(folder / "stable" / f"{domain}.jsonl.gz")
        if split_of(document["text"], corpus.VALIDATION, corpus.TEST) == "train"
    ]
    tokenizer = train_bpe(texts, 300)
    asked = read(folder / "eval" / "gsm8k.jsonl.gz")
    tokens = encode(tokenizer, [Item(item["prompt"], item["answer"]) for item in asked])
    longer = [one for one in tokens if len(one.ids) > 15]
    assert few["gsm8k"] == len(longer) > 0
    row = next(line for line in corpus_counts.page(record).splitlines() if line.startswith("| gsm8k"))
    assert f" {len(asked)} " in row and f" {len(longer)} " in row
