"""The experiment on fine-tuning, at its smallest: bases, tunings of each, merges of those, choices and claims."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE = """
import dataclasses
from experiments import sft

sft.RATES = (1e-3, 3e-3)


def get_sweep():
    return dataclasses.replace(sft.get_sweep("tiny"), seeds=(0, 1))
"""


@pytest.mark.integration
def test_every_base_is_tuned_measured_and_compared(experiment_text, tmp_path):
    (tmp_path / "tuning.py").write_text(FILE)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WSM_EXPERIMENT_DATA": str(experiment_text)}
    environment["WSM_DATA"] = str(tmp_path / "tokens")
    command = [
        sys.executable,
        "-m",
        "wsm_jax",
        "sweep",
        "tuning.py",
        "--output=out",
        "--results=results",
        "--parallel=2",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "results" / "records.jsonl").read_text().splitlines()]
    assert len(records) == 2 * (3 + 3 * 2 * 2 * 2)
    assert {"novels", "peps", "instructions"} < set(records[0]["domains"])  # and gold answers
    losses = {record["arm"]: record["domains"]["instructions"] for record in records if record["seed"] == 0}
    assert all(losses[f"{base}, constant 0.003"] < losses[base] for base in ("last", "merge", "decay"))
    found = json.loads((tmp_path / "results" / "claims.json").read_text())
    choice = next(choice for choice in found["choices"] if choice["choice"] == "merge, decayed")
    assert choice["domains"] == ["instructions"]
    validation = {(record["arm"], record["seed"]): record["validation_domains"]["instructions"] for record in records}
    for seed, arm in choice["chosen"].items():
        assert validation[arm, int(seed)] == min(validation[other, int(seed)] for other in choice["of"])
    assert {claim["claim"] for claim in found["claims"] if claim["primary"]} == {
        "merge over decay, decayed", "last over decay, decayed"
    }  # fmt: skip
