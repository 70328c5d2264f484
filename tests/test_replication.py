"""Two folders of results side by side."""

import json
import sys

import pytest

from experiments import protocol, replication
from wsm_jax.io.files import read_jsonl


def folder(root, claims, machine, name="wsd_vs_wsm", scale="tiny"):
    """A page of those claims (text -> difference and verdict)."""
    place = root / name / scale
    place.mkdir(parents=True)
    rows = "".join(f"| {text} | {difference} | {verdict} | – |\n" for text, (difference, verdict) in claims.items())
    header = "| claim | difference |  | the paper |\n| :-- | --: | --: | --: |\n"
    (place / "README.md").write_text(f"# Title\n\n{header}{rows}")
    record = {"machine": machine, "python": "3.11.7", "versions": {"jax": "0.10.2"}, "parameters": 1}
    (place / "records.jsonl").write_text(json.dumps(record) + "\n")
    return root


FIRST = {
    "a (12) is better": ("-0.0100 ± 0.0010", "holds"),
    "b is better": ("+0.0010 ± 0.0020", "undecided"),
    "c is better": ("+0.0300 ± 0.0020", "does not hold"),
    "d is better": ("-0.00500 ± 0.00499", "holds"),
    "e was measured once": ("+0.1 ± 0.01", "does not hold"),
}
SECOND = {
    "d is better": ("-0.00500 ± 0.00499", "holds"),
    "a (16) is better": ("-0.0105 ± 0.0050", "holds"),
    "b is better": ("+0.0031 ± 0.0030", "does not hold"),
    "c is better": ("-0.0100 ± 0.0090", "holds"),
}


def test_claims_of_two_folders_are_counted_by_verdict(tmp_path, monkeypatch, capsys):
    first, second = folder(tmp_path / "one", FIRST, "mine"), folder(tmp_path / "two", SECOND, "theirs")
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["replication", str(first), str(second), "--scale=tiny", f"--output={out}"])
    assert replication.main() == 0
    page = (out / "README.md").read_text()
    assert capsys.readouterr().out == page
    assert "The first: mine, Python 3.11.7, jax 0.10.2. The second: theirs, Python 3.11.7, jax 0.10.2." in page
    assert f"`python -m experiments.replication {first} {second} --scale=tiny`" in page
    assert "* 4 claims are in both; 1 has the same figures.\n" in page
    assert "* 2 have the same verdict; 1 is decided in one and undecided in the other; 1 is reversed.\n" in page
    assert "* The second's mean is within the first's interval for 2 of 4.\n" in page
    other, same = page.split("With the same verdict:")
    assert "| b is better | +0.0010 ± 0.0020 | undecided | +0.0031 ± 0.0030 | does not hold | wsd_vs_wsm |" in other
    assert "c is better" in other and "b is better" not in same
    assert "| a is better |" in same and "| d is better |" in same  # what was chosen differs for the one
    records = read_jsonl(out / "records.jsonl")
    assert records[0]["first"]["claim"] == "a (12) is better" and records[0]["second"]["claim"] == "a (16) is better"
    assert protocol.Page(page.splitlines(), {}) == replication.present(records)


def test_a_folder_beside_itself_has_the_same_figures(tmp_path):
    first = folder(tmp_path, FIRST, "mine")
    lines = replication.present(replication.measure((first, first), "tiny")).lines
    assert "* 5 claims are in both; 5 have the same figures." in lines
    assert "* 5 have the same verdict; 0 are decided in one and undecided in the other; 0 are reversed." in lines
    assert "With another verdict:" not in lines


@pytest.mark.parametrize(
    "second, scale, said",
    [
        ({}, "tiny", "two has no claims at --scale=tiny"),
        ({"f is better": ("0 ± 1", "undecided")}, "tiny", "have no claim in common at --scale=tiny"),
        (FIRST, "small", "one has no claims at --scale=small: no pages such as wsd_vs_wsm/small/README.md"),
    ],
)
def test_nothing_to_compare_is_one_line(tmp_path, monkeypatch, capsys, second, scale, said):
    one, two = folder(tmp_path / "one", FIRST, "mine"), folder(tmp_path / "two", second, "theirs")
    monkeypatch.setattr(sys, "argv", ["replication", str(one), str(two), f"--scale={scale}"])
    assert replication.ended("replication", replication.main) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
