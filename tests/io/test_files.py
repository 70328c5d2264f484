"""Files of text and JSON that survive a crash."""

import json
import os
import threading

import pytest

from wsm_jax.errors import UsageError
from wsm_jax.io.files import read_json, read_jsonl, write_json, write_jsonl


def test_json_survives_the_round_trip_and_leaves_nothing_beside_it(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, 2.5, None, "é"]})
    write_json(tmp_path / "a.json", {"x": 2})
    assert read_json(tmp_path / "a.json") == {"x": 2}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": 2, "y": object()})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_writer_that_dies_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"x": 1})

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "a.json", {"x": 2})
    assert read_json(tmp_path / "a.json") == {"x": 1}


def test_a_reader_never_sees_a_part(tmp_path):
    """A megabyte written a hundred times while another thread reads: every read is one whole value."""
    path = tmp_path / "a.json"
    write_json(path, {"n": 0})
    done = threading.Event()

    def writer():
        for n in range(100):
            write_json(path, {"n": n, "filling": "x" * 1_000_000})
        done.set()

    thread = threading.Thread(target=writer)
    thread.start()
    seen = set()
    while not done.is_set():
        seen.add(read_json(path)["n"])
    thread.join()
    assert len(seen) > 3


@pytest.mark.parametrize("text", [None, "", "{", "not json", "[" * 100_000, '{"a":' * 100_000])
def test_json_that_is_missing_or_malformed_names_the_file(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(UsageError, match=r"run\.json: cannot be read as JSON"):
        read_json(tmp_path / "run.json")


@pytest.mark.parametrize("line", ["[1]", "null", "3", '"text"'])
def test_a_line_that_is_no_record_is_named_wherever_it_stands(tmp_path, line):
    for text in (f"{line}\n{{}}\n", f"{{}}\n{line}\n"):
        (tmp_path / "metrics.jsonl").write_text(text)
        with pytest.raises(UsageError, match=r"metrics\.jsonl:[12]: not a JSON record, which begins with a brace"):
            read_jsonl(tmp_path / "metrics.jsonl")


def test_a_line_that_is_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("[" * 100_000 + "\n{}\n")
    with pytest.raises(UsageError, match=r"metrics\.jsonl:1: not a JSON record \(it is nested too deeply\)"):
        read_jsonl(tmp_path / "metrics.jsonl")


RECORDS = [{"kind": "train", "step": 1, "loss": 2.5}, {"kind": "validation", "step": 1, "loss": 2.0}]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)


def test_records_come_back_in_order(tmp_path):
    write_jsonl(tmp_path / "metrics.jsonl", RECORDS)
    assert read_jsonl(tmp_path / "metrics.jsonl") == RECORDS
    assert (tmp_path / "metrics.jsonl").read_text() == LINES


def test_records_that_cannot_be_read_name_the_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"metrics\.jsonl: cannot be read"):
        read_jsonl(tmp_path / "metrics.jsonl")


def test_a_write_that_fails_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError):
        write_json(tmp_path / "a.json", 1)
    assert os.listdir(tmp_path) == ["a.json"]


def test_no_file_has_no_records(tmp_path):
    assert read_jsonl(tmp_path / "metrics.jsonl") == []


def test_a_last_line_cut_anywhere_is_left_out(tmp_path):
    """A crash may stop a write after any byte; only the newline alone may be missing from a whole record."""
    path, last = tmp_path / "metrics.jsonl", json.dumps(RECORDS[1])
    for length in range(len(last) + 1):
        path.write_text(json.dumps(RECORDS[0]) + "\n" + last[:length])
        assert read_jsonl(path) == (RECORDS if length == len(last) else RECORDS[:1])


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES[:60].replace("\n", "", 1) + "\n" + LINES)
    with pytest.raises(UsageError, match=r"metrics\.jsonl:1: not a JSON record"):
        read_jsonl(path)
