"""Documents from every kind of source, and the one-line error of every way to get it wrong."""

import gzip
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import sysconfig
import textwrap

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from wsm_jax.data import hub
from wsm_jax.data.sources import Document, documents, find, fingerprint, parse_mixture
from wsm_jax.errors import UsageError

_specs = st.lists(
    st.sampled_from(
        ["stdlib", "text:/a/*.md", "text:/a/{b,c}/**/*.py", "text:x=y/z", "hf:a/b:train#t", "tfds:x/y:1.0.0@/d"]
    ),
    min_size=1,
    unique=True,
)
_weights = st.floats(min_value=1e-300, max_value=1e300) | st.integers(min_value=1, max_value=10**9)


@given(_specs, st.data())
def test_mixture_keeps_order_specs_and_proportions(specs, data):
    weights = [data.draw(_weights) for _ in specs]
    parsed = parse_mixture(", ".join(f"{spec}={weight!r}" for spec, weight in zip(specs, weights, strict=True)))
    assert [spec for spec, _ in parsed] == specs
    assert math.fsum(weight for _, weight in parsed) == pytest.approx(1)
    largest = max(weights)
    for (_, got), weight in zip(parsed, weights, strict=True):
        assert got == pytest.approx(weight / largest / math.fsum(w / largest for w in weights))


def test_mixture_forms():
    assert parse_mixture("stdlib") == [("stdlib", 1.0)]
    assert parse_mixture("text:/a/{x,y}.md=3,stdlib") == [("text:/a/{x,y}.md", 0.75), ("stdlib", 0.25)]
    assert parse_mixture("text:/run=5/a.md") == [("text:/run=5/a.md", 1.0)]
    assert parse_mixture("text:/run=5=2,stdlib=2") == [("text:/run=5", 0.5), ("stdlib", 0.5)]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no source"),
        (" , ", "names no source"),
        ("stdlib=0", "weight in 'stdlib=0' must be a positive"),
        ("stdlib=-1", "must be a positive"),
        ("stdlib=nan", "must be a positive"),
        ("stdlib=inf", "must be a positive"),
        ("stdlib,stdlib=2", "named twice"),
        ("standard", "'standard' is unknown; write stdlib | text:PATH"),
        ("text:", "is unknown"),
        ("ftp:x", "is unknown"),
        ("text:/a/{b,c", "not closed"),
    ],
)
def test_mixture_errors(text, message):
    with pytest.raises(UsageError, match=r"data\.switch_source") as caught:
        parse_mixture(text, "data.switch_source")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_path_without_its_kind_is_told_what_to_write(tmp_path):
    with pytest.raises(UsageError, match=rf"is unknown; write .*; did you mean text:{tmp_path}\?$"):
        parse_mixture(str(tmp_path), "data.source")


def test_standard_library_is_whole_and_without_tests(tmp_path):
    found = list(documents("stdlib", str(tmp_path)))
    ids = [document.id for document in found]
    assert ids == sorted(ids) and {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= set(ids)
    assert not [i for i in ids if {"test", "tests", "idle_test", "site-packages"} & set(i.split("/"))]
    assert 8e6 < sum(len(document.text.encode()) for document in found) < 20e6
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    by_id = {document.id: document.text for document in found}
    assert by_id["json/decoder.py"].encode() == (library / "json" / "decoder.py").read_bytes()
    assert fingerprint(found) == fingerprint(documents("stdlib", str(tmp_path)))


def _every_kind(folder: pathlib.Path) -> list[Document]:
    (folder / "sub").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "no.txt").write_text("not read")
    (folder / "other.rst").write_text("not read")
    (folder / "empty.txt").write_text("")
    (folder / "a.md").write_bytes("# é\r\nüber\n".encode())
    (folder / "sub" / "b.txt").write_text("plain <|endoftext|>\n")
    (folder / "sub" / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nname = '\xe9'\n")
    (folder / "c.jsonl").write_text('{"text": "one"}\n\n{"id": 7, "text": "two\\u2028"}\n{"text": ""}\n')
    with gzip.open(folder / "d.jsonl.gz", "wt") as file:
        file.write('{"id": "x", "text": "packed"}\n')
    table = pyarrow.table({"text": ["p", "q"], "id": ["first", None], "other": [1, 2]})
    pyarrow.parquet.write_table(table, folder / "e.parquet")
    return [
        Document("a.md", "# é\r\nüber\n"),
        Document("c.jsonl:1", "one"),
        Document("7", "two\u2028"),
        Document("x", "packed"),
        Document("first", "p"),
        Document("e.parquet:2", "q"),
        Document("sub/b.txt", "plain <|endoftext|>\n"),
        Document("sub/latin.py", "# -*- coding: latin-1 -*-\nname = 'é'\n"),
    ]


def test_every_kind_of_file_through_array_record(tmp_path):
    expected = _every_kind(tmp_path / "in")
    store = tmp_path / "store"
    assert list(documents(f"text:{tmp_path}/in", str(store))) == expected
    assert list(documents(f"text:{tmp_path}/in/**/*", str(store))) == expected
    assert [d.id for d in documents(f"text:{tmp_path}/in/{{a.md,sub/*.{{txt,rst}}}}", str(store))] == [
        "a.md",
        "sub/b.txt",
    ]
    assert list(documents(f"text:{tmp_path}/in/a.md", str(store))) == expected[:1]
    assert list((store / "arrayrecord").glob("*/data/*.array_record-00000-of-00001"))


def test_array_record_is_built_once_for_equal_content(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("first")
    spec, store = f"text:{tmp_path}/in", tmp_path / "store"
    list(documents(spec, str(store)))
    (built,) = (store / "arrayrecord").iterdir()
    before = built.stat().st_mtime_ns
    os.utime(tmp_path / "in" / "a.txt", (1, 1))
    list(documents(spec, str(store)))
    assert [p.stat().st_mtime_ns for p in (store / "arrayrecord").iterdir()] == [before]
    (tmp_path / "in" / "a.txt").write_text("second")
    assert [d.text for d in documents(spec, str(store))] == ["second"]
    assert len(list((store / "arrayrecord").iterdir())) == 2


def test_tensorflow_is_never_imported(tmp_path):
    code = f"""
        import sys
        import wsm_jax.data.sources
        heavy = {{"grain", "tensorflow_datasets", "tokenizers", "pyarrow", "jax", "numpy"}} & set(sys.modules)
        assert not heavy, heavy
        (document,) = wsm_jax.data.sources.documents("text:{tmp_path}/a.txt", "{tmp_path}/store")
        assert document.text == "words" and "tensorflow_datasets" in sys.modules
        assert "tensorflow" not in sys.modules
    """
    (tmp_path / "a.txt").write_text("words")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def _bad_files(folder: pathlib.Path) -> None:
    (folder / "bad.txt").write_bytes(b"abc\xff")
    (folder / "bad.py").write_bytes(b"# coding: no-such\n")
    (folder / "bad.jsonl").write_text('{"text": "fine"}\n{"words": 1, "n": 2}\n')
    (folder / "list.jsonl").write_text("[1]\n")
    (folder / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (folder / "bytes.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "\xff"}\n')
    (folder / "deep.jsonl").write_text('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    (folder / "half.jsonl").write_text('{"id": "h", "text": "\\ud800"}\n')
    packed = gzip.compress(json.dumps({"text": "word " * 1000}).encode())
    (folder / "cut.jsonl.gz").write_bytes(packed[:-20])
    (folder / "no.jsonl.gz").write_bytes(b"not gzip")
    (folder / "damaged.jsonl.gz").write_bytes(packed[:12] + b"\xff\xff\xff\xff" + packed[16:])
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), folder / "column.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x", None]}), folder / "null.parquet")
    (folder / "no.parquet").write_bytes(b"not parquet")
    (folder / "empty.md").write_text("")
    (folder / "x.rst").write_text("x")
    (folder / "none").mkdir()


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing.txt", "missing.txt matches nothing: no such file or folder"),
        ("none", "none matches nothing of the kinds .txt .md"),
        ("*.rst", "*.rst matches nothing of the kinds"),
        ("x.rst", "x.rst is not one of .txt .md"),
        ("bad.txt", "bad.txt is not utf-8 text (byte 3)"),
        ("bad.py", "bad.py is not Python source that can be decoded: unknown encoding"),
        ("bad.jsonl", "bad.jsonl line 2 has no string field `text` (it has: words, n)"),
        ("list.jsonl", "list.jsonl line 1 has no string field `text` (it has: list)"),
        ("broken.jsonl", "broken.jsonl line 2 is not JSON"),
        ("bytes.jsonl", "bytes.jsonl line 2 is not JSON"),
        ("deep.jsonl", "deep.jsonl line 1 is not JSON: it is nested too deeply"),
        ("half.jsonl", "half.jsonl: document h is not Unicode text"),
        ("cut.jsonl.gz", "cut.jsonl.gz cannot be read: Compressed file ended"),
        ("no.jsonl.gz", "no.jsonl.gz cannot be read: Not a gzipped file"),
        ("damaged.jsonl.gz", "damaged.jsonl.gz cannot be read"),
        ("column.parquet", "column.parquet has no column `text` (it has: body)"),
        ("null.parquet", "null.parquet row 2 has no string in the column `text`"),
        ("no.parquet", "no.parquet is not a Parquet file that can be read"),
        ("empty.md", "empty.md: no document with any text"),
    ],
)
def test_file_errors_name_the_file_and_leave_nothing(tmp_path, name, message):
    (tmp_path / "in").mkdir()
    _bad_files(tmp_path / "in")
    with pytest.raises(UsageError) as caught:
        list(documents(f"text:{tmp_path}/in/{name}", str(tmp_path / "store")))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("store/arrayrecord/*"))


def test_signature_changes_with_the_file_and_not_otherwise(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    before = find(f"text:{tmp_path}", tmp_path / "store").signature
    assert find(f"text:{tmp_path}", tmp_path / "store").signature == before
    (tmp_path / "a.txt").write_text("xy")
    assert find(f"text:{tmp_path}", tmp_path / "store").signature != before


class WsmPrepared(tfds.core.GeneratorBasedBuilder):
    """A data set that needs no TensorFlow: two splits and a text feature that is not called `text`."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"body": tfds.features.Text(), "stars": tfds.features.Scalar(np.int32)})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._examples(["a", "", "b"]), "test": self._examples(["held out"])}

    def _generate_examples(self):
        yield from ()

    def _examples(self, texts):
        for number, text in enumerate(texts):
            yield number, {"body": text, "stars": number}


class WsmUnclear(WsmPrepared):
    """Two string features, neither called `text`."""

    def _info(self):
        features = tfds.features.FeaturesDict({"q": tfds.features.Text(), "a": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _examples(self, texts):
        for number, text in enumerate(texts):
            yield number, {"q": text, "a": text}


class WsmNeedsTensorflow(WsmPrepared):
    """One whose preparation imports TensorFlow, as many of the catalogue do."""

    def _examples(self, texts):
        import tensorflow

        yield 0, {"body": str(tensorflow.constant(1)), "stars": 0}


def test_tfds_prepared_here_or_before(tmp_path):
    expected = [Document("train:0", "a"), Document("train:2", "b")]
    for spec in (f"tfds:wsm_prepared@{tmp_path}", f"tfds:wsm_prepared:1.2.0@{tmp_path}"):
        assert list(documents(spec, str(tmp_path / "store"))) == expected
    assert list(documents(f"tfds:{tmp_path}/wsm_prepared/1.2.0", str(tmp_path / "store"))) == expected
    # Prepared data is read without the code that made it.
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from wsm_jax.data.sources import documents; print([d.text for d in documents(sys.argv[1])])",
            f"tfds:wsm_prepared@{tmp_path}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "['a', 'b']", done.stderr


def test_tfds_errors(tmp_path):
    with pytest.raises(UsageError, match="there is no `wsm_unheard_of`, neither in TFDS's catalogue"):
        list(documents(f"tfds:wsm_unheard_of@{tmp_path}"))
    with pytest.raises(UsageError, match="no string feature `text`, nor exactly one; its features: q, a"):
        list(documents(f"tfds:wsm_unclear@{tmp_path}"))


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="needs a machine without TensorFlow")
def test_tfds_that_needs_tensorflow_says_so(tmp_path):
    with pytest.raises(UsageError, match="needs TensorFlow to be; prepare it where that is") as caught:
        list(documents(f"tfds:wsm_needs_tensorflow@{tmp_path}"))
    assert "\n" not in str(caught.value)


def test_tfds_record_format_that_needs_tensorflow_says_so(tmp_path):
    list(documents(f"tfds:wsm_prepared@{tmp_path}"))
    info = tmp_path / "wsm_prepared" / "1.2.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UsageError, match="cannot be read without TensorFlow"):
        list(documents(f"tfds:{info.parent}"))


def test_hf_names():
    assert hub.parse_hf("owner/name") == ("owner/name", None, "train", None)
    assert hub.parse_hf("name:validation") == ("name", None, "validation", None)
    assert hub.parse_hf("owner/name/config:train[:10%]#body") == ("owner/name", "config", "train[:10%]", "body")
    for bad in ("", "a/b/c/d", "/a", "a:", "#x"):
        with pytest.raises(UsageError, match="is not of the form hf:"):
            hub.parse_hf(bad)


def test_hf_without_the_extra_names_it():
    # An interpreter that cannot see `datasets`, whether or not it is installed here.
    code = """
        import sys
        sys.modules["datasets"] = None
        from wsm_jax.data.sources import documents
        from wsm_jax.errors import UsageError
        try:
            next(documents("hf:owner/name"))
        except UsageError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == 'hf:owner/name needs the extra `hf`: pip install "wsm-jax[hf]"', done.stderr
