"""experiments/recompute.py finds the interval of claims.json by its own arithmetic, with nothing of ours imported."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.sweeps import made_up
from wsm_jax.sweeps import Choice, Claim, claims, difference

SCRIPT = Path("experiments/recompute.py")


def test_the_script_agrees(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """To eight decimals, for a choice and one domain of two as for an arm of the table."""
    made_up.write(tmp_path, {"last": 0.0, "merge": -0.02, "decay": -0.019})
    claim = Claim("", difference("chosen", "last", ["novels"]))
    choices = {"chosen": Choice(["merge", "decay"])}
    experiment = made_up.experiment(["last", "merge", "decay"], choices=choices, claims={"gain": claim})
    claims.write(experiment, tmp_path)
    for name in ("gain", "decay"):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path), name])
        runpy.run_path(str(SCRIPT))
        recomputed, written = capsys.readouterr().out.splitlines()
        assert re.findall(r"[+-]\d\.\d{8}", recomputed) == re.findall(r"[+-]\d\.\d{8}", written)
        assert recomputed.count(".") == 3
    assert "wsm_jax" not in SCRIPT.read_text() and "experiments." not in SCRIPT.read_text()
