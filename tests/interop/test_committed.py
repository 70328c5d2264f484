"""The committed result of ``make test-interop`` covers every architecture, both ways, within its tolerance."""

import json
from pathlib import Path

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
