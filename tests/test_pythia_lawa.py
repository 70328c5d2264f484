"""LAWA along a series of small NeoX folders that are trained here and exported first."""

import json

import numpy as np
import pytest

from experiments import pythia_lawa
from wsm_jax import Run
from wsm_jax.checkpoints import orbax
from wsm_jax.core.trees import named_leaves
from wsm_jax.evaluation import evaluate
from wsm_jax.interchange import outgoing
from wsm_jax.models.neox import NeoxFields

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.integration


def test_merges_along_a_series_are_those_of_its_checkpoints(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WSM_DATA", str(tmp_path / "data"))
    shape = NeoxFields(layers=2, d_model=16, heads=2, context=16, rotary_pct=0.5)
    run = tiny.run(
        "pythia", model=shape, duration="24steps", checkpoint__branch_points="", evaluation__interval="24steps",
        checkpoint__resume_interval="24steps",
    )  # fmt: skip
    fields = evaluate.fields_of(run)
    steps = orbax.complete_steps(run.merge_stream)
    for step in steps:
        outgoing.take_out(run, run.merge_stream / str(step), fields, tmp_path / "series" / f"step{step}")
    text = tmp_path / "text"
    text.mkdir()
    for i in range(4):
        (text / f"{i}.py").write_text(f"def function_{i}(value):\n    return value + {i}\n" * 5)
    asked = ["--count=3", "--spacings=1,2", f"--text=text:{text}", f"--output={tmp_path / 'out'}"]
    assert pythia_lawa.main([str(tmp_path / "series"), *asked]) == 0

    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert [(r["step"], r["interval"]) for r in records] == [
        (step, interval) for step in steps for interval in (3, 6) if step - 2 * interval >= steps[0]
    ]
    last, imported = records[-1], Run(tmp_path / "out" / "run")
    parts = [named_leaves(orbax.load_tree(imported.merge_stream / str(step))) for step in (12, 18, 24)]
    mean = orbax.load_tree(imported.merge_stream / "24")
    leaves = named_leaves(mean)
    for path in leaves:
        *groups, name = path.split("/")
        node = mean
        for group in groups:
            node = node[group]
        node[name] = np.mean([part[path] for part in parts], axis=0, dtype=np.float64).astype(np.float32)
    evaluator = evaluate.run_evaluator(imported, "train", source=f"text:{text}")
    assert last["loss"] == pytest.approx(evaluator(mean).loss, abs=1e-5)
    assert last["difference"] == pytest.approx(last["loss"] - last["raw"], abs=1e-9)
    assert records[0]["raw"] > records[-1]["raw"]  # it learns
    shown = capsys.readouterr().out
    assert "| step | as it is | every 3 (minus raw) | every 6 (minus raw) |" in shown

    assert pythia_lawa.main([str(tmp_path / "series"), "--count=30", *asked[1:]]) == 2
    assert "no 30 of them are 1 x 3 apart" in capsys.readouterr().err
