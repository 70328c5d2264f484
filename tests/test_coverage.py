"""Intervals hold the truth as often as they say, on made-up data: a few trials, and the committed simulation."""

import json

import pytest

from experiments import coverage

RULE = "this rule"


def shares(kind: str, noise: str, trials: int) -> dict[str, float]:
    """Rule -> coverage at three seeds."""
    return {row["rule"]: row["coverage"] for row in coverage.coverage(kind, noise, 3, "very different", trials)}


@pytest.mark.parametrize(("noise", "too_little"), [("seeds", "documents alone"), ("documents", "seeds alone")])
def test_coverage_of_a_difference(noise: str, too_little: str):
    """Of either kind of noise; a rule that forgets it is found out."""
    found = shares("difference", noise, 400)
    assert 0.92 < found[RULE] < 0.98
    assert found[too_little] < 0.85


def test_what_is_in_both_counts_once():
    """Added up, the interval would nearly always hold the truth."""
    found = shares("difference", "both together", 300)
    assert 0.92 < found[RULE] < 0.98 < found["seeds + documents"]


def test_false_positives():
    """Seven claims about nothing: more than one in six experiments has a false one, corrected one in twenty."""
    found = coverage.false_positives("even", 5, apart=False, trials=120)
    assert 0.02 < found["one_claim"] < 0.08
    assert found["holm"] < 0.1 < found["uncorrected"]


def test_the_committed_simulation():
    """All cases between 93% and 97%; false positives at their rate; the page is made of the figures."""
    found = json.loads((coverage.RESULTS / "coverage.json").read_text())
    rows = [row for row in found["coverage"] if row["rule"] == RULE]
    assert {row["statistic"] for row in rows} == {*coverage.KINDS}
    assert [row for row in rows if not 0.93 <= row["coverage"] <= 0.97] == []
    assert [row for row in found["false_positives"] if row["one_claim"] > 0.07 or row["holm"] > 0.07] == []
    assert (coverage.RESULTS / "README.md").read_text() == "\n".join(coverage.page(found)) + "\n"
