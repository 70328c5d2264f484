"""The committed result of ``make test-interop`` covers every architecture, both ways, within its tolerance."""

import json
from pathlib import Path

from tests.interop import harness
from wsm_jax.interchange import architecture

RESULT = Path(__file__).parent.parent.parent / "results" / "interop" / "parity.json"

NOT_OF_TRANSFORMERS = {"nanoGPT", "BailingMoeV2ForCausalLM"}


def test_parity_was_measured_for_every_architecture_both_ways():
    found = json.loads(RESULT.read_text())
    assert found["peer"]["transformers"] and found["tolerance"] == 1e-4
    for direction in ("transformers to ours", "ours to transformers"):
        rows = [row for row in found["rows"] if row["direction"] == direction]
        assert {row["architecture"] for row in rows} == set(architecture.known()) - NOT_OF_TRANSFORMERS
        assert all(row["difference"] <= 1e-4 < 1 < row["largest_logit"] for row in rows)


def test_tasks_were_answered_as_the_harness_own_backend_answers_them():
    found = json.loads((RESULT.parent.parent / "harness" / "equality.json").read_text())
    assert found["peer"]["lm_eval"] and found["tolerance"] == 1e-3 and len(found["rows"]) == 7
    assert all(row["documents"] == 100 and harness.is_equal(row) for row in found["rows"])
    assert sum("texts_equal" in row for row in found["rows"]) == 1
    assert all(row["difference"] < 1e-3 < 1 < row["largest"] for row in found["rows"] if "difference" in row)
