"""Differences of the archived pages come out of their records again: t over seeds, by what computes today's claims."""

from pathlib import Path
from typing import Any

import pytest

from wsm_jax.evaluation import statistics
from wsm_jax.io import files

ARCHIVE = Path(__file__).parents[2] / "results" / "archive" / "2026-11"
RAW_POINT = {"size": "1.3M", "curve": "linear", "count": 2, "weight_decay_aware": False}
LAWA = {"peak_lr": 0.002, "share": 0.5}

# Folder, two arms, and the figure as the page has it, with what stands before it.
PRINTED = [
    (
        "wsd_vs_wsm/small",
        {"arm": "merge", "count": 12, "since": 16, "switch": True},
        {"arm": "wsd", "since": 16, "switch": True},
        "| WSM is better than WSD at equal tokens | -0.0381 ± 0.0079 |",
    ),
    (
        "merge_duration/small",
        {"arm": "merge", "curve": "linear", "count": 16},
        {"arm": "merge", "curve": "linear", "count": 4},
        "| linear: 16 checkpoints are better than 4 | -0.0136 ± 0.0047 |",
    ),
    (
        "interval_means/small",
        {"arm": "mean", **RAW_POINT},
        {"arm": "point", **RAW_POINT},
        "| linear | -0.0246 ± 0.0165 |",
    ),
    (
        "merge_algorithm/small",
        {"arm": "merge", "curve": "linear", "count": 12, "optimizer": "adamw"},
        {"arm": "merge", "curve": "ema", "count": 12, "optimizer": "adamw"},
        "| merge, mean (linear) is better than merge, EMA | +0.0092 ± 0.0024 |",
    ),
    (
        "lawa/small",
        {"arm": "LAWA, spacing 1", **LAWA},
        {"arm": "SWA", **LAWA},
        "| it is better than SWA | 0.002 | 0.5 | -0.4153 ± 0.0640 |",
    ),
]


def by_seed(records: list[dict[str, Any]], arm: dict[str, Any]) -> dict[int, float]:
    """Seed -> test loss of the one arm that has these fields."""
    found = [record for record in records if arm.items() <= record.items()]
    assert len({record["seed"] for record in found}) == len(found) > 1, arm
    return {record["seed"]: record["test"] for record in found}


@pytest.mark.parametrize(("folder", "first", "second", "printed"), PRINTED, ids=[each[0] for each in PRINTED])
def test_a_printed_difference(folder: str, first: dict[str, Any], second: dict[str, Any], printed: str):
    """The mean and the half width, to the digits of the page."""
    assert printed in (ARCHIVE / folder / "README.md").read_text(encoding="utf-8")
    records = files.read_jsonl(ARCHIVE / folder / "records.jsonl")
    one, other = by_seed(records, first), by_seed(records, second)
    found = statistics.estimate([one[seed] - other[seed] for seed in one])
    assert found.interval
    half = (found.interval[1] - found.interval[0]) / 2
    assert f"{found.estimate:+.4f} ± {half:.4f}" in printed
