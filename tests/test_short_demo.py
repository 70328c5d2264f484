"""The demo with one decay, very short and in this process; ``test_demo.py`` runs all of it, as processes."""

import json

import pytest

from experiments import demo
from wsm_jax import DECAYS, Run, UsageError, cli

pytestmark = pytest.mark.xdist_group("short_demo")  # a group of two begins before the single tests, for it is long

SHORTER = [
    "--config.duration=16steps",
    "--config.schedule.warmup=2steps",
    "--config.evaluation.interval=8steps",
    "--config.data.validation_fraction=0.03",
    "--config.data.test_fraction=0.03",
]


def test_the_demo_ends_with_its_table(store, short_demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "CURVES", ("linear",))
    for command in demo.commands(tmp_path, 0, [*short_demo, *SHORTER]):
        assert cli.main(command) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "report" / "table.json").read_text())["rows"]
    assert [row["group"] for row in rows] == ["raw", *["merge"] * len(DECAYS), "chosen", "decay"]
    assert all(f"{row['test']['loss']:.4f}" in printed for row in rows)
    assert (tmp_path / "report" / "report.html").is_file()
    branch = Run(tmp_path / "decay-linear")
    assert branch.facts["branch_step"] == 12 and branch.metrics("train")[-1]["step"] == 16


def test_the_demo_needs_a_branch_point(tmp_path):
    with pytest.raises(UsageError, match=r"checkpoint\.branch_points is empty"):
        demo.commands(tmp_path, 0, ["--config.checkpoint.branch_points="])
