"""A run that version 0.1.0 wrote (tests/fixtures/version_0_1): resumed, branched from, merged and evaluated today."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from wsm_jax import Run, cli
from wsm_jax.checkpoints import orbax

FIXTURE = Path("tests/fixtures/version_0_1")
MERGE = "minus_sqrt-4x2-at-12"
pytestmark = pytest.mark.xdist_group("version_0_1")


@pytest.fixture
def old_run(store, tmp_path, monkeypatch):
    """The run as it was written; its data are named relative to the root of the repository."""
    monkeypatch.chdir(Path(__file__).parent.parent)
    with tarfile.open(FIXTURE / "run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return Run(tmp_path / "run")


def assert_close(first, second):
    """Rounding differs between processors; an update of the run moves parameters by about 1e-3."""
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


@pytest.mark.integration
def test_it_goes_on_from_its_state_and_ends_where_it_ended(old_run):
    stream = old_run.merge_stream
    expected = {item: orbax.load_tree(stream / "12", item) for item in ("params", "ema", "mean")}
    records = old_run.metrics("train")
    shutil.rmtree(old_run.resume_stream / "12")
    assert cli.main(["train", f"--config={FIXTURE}/make.py", f"--run={old_run.path}", "--quiet"]) == 0
    assert old_run.metrics("start")[-1]["step"] == 8
    assert orbax.complete_steps(stream) == [2, 4, 6, 8, 10, 12]
    for item, tree in expected.items():
        assert_close(tree, orbax.load_tree(stream / "12", item))
    assert [r["step"] for r in old_run.metrics("train")] == [r["step"] for r in records]
    np.testing.assert_allclose(
        [r["loss"] for r in old_run.metrics("train")], [r["loss"] for r in records], rtol=0, atol=1e-5
    )


@pytest.mark.integration
def test_a_branch_starts_from_it(old_run, tmp_path):
    fields = ["--config.schedule.name=cooldown", "--config.schedule.curve=minus_sqrt", "--config.averaging.names="]
    fields += ["--config.checkpoint.snapshot=point"]
    branch = ["train", f"--config={FIXTURE}/make.py", f"--run={tmp_path / 'branch'}", f"--branch_from={old_run.path}@8"]
    assert cli.main([*branch, "--quiet", *fields]) == 0
    rates = {r["step"]: r["learning_rate"] for r in Run(tmp_path / "branch").metrics("train")}
    assert list(rates) == [10, 12]
    assert rates[12] < rates[10] < 1e-3
    assert old_run.format == Run(tmp_path / "branch").format == 0  # a given vocabulary is padded there, as it was


def test_it_is_merged_as_it_was_and_its_records_are_read(old_run, tmp_path, capsys):
    output = tmp_path / "again"
    assert cli.main(["merge", f"--run={old_run.path}", "--curve=minus_sqrt", "--count=4", f"--output={output}"]) == 0
    assert_close(orbax.load_tree(old_run.merged(MERGE)), orbax.load_tree(output))
    before, now = (orbax.user_metadata(path) for path in (old_run.merged(MERGE), output))
    for name in ("weights", "steps", "curve", "count", "interval", "config_hash", "data_hash", "leaf_policies"):
        assert now[name] == before[name], name
    capsys.readouterr()
    assert cli.main(["inspect", str(old_run.path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["merge_steps"], facts["merged"]) == ([2, 4, 6, 8, 10, 12], [MERGE])


@pytest.mark.integration
@pytest.mark.parametrize(("which", "loss"), [(f"--merged={MERGE}", 5.930310541183544), ("--step=12", 5.90943875956172)])
def test_it_is_evaluated_as_it_was(old_run, which, loss, capsys):
    assert cli.main(["eval", f"--run={old_run.path}", which, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(loss, abs=1e-5)
    assert (found["tokens"], found["documents"]) == (12533, 4)


def test_its_damaged_state_is_named_and_the_next_older_one(old_run, capsys):
    for file in (old_run.resume_stream / "12" / "params").rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)
    before = sorted(path for path in old_run.path.rglob("*"))
    assert cli.main(["train", f"--config={FIXTURE}/make.py", f"--run={old_run.path}", "--quiet"]) == 2
    state = old_run.resume_stream / "12"
    assert capsys.readouterr().err.strip().endswith(f"; the next older state is 8: remove {state} to go on from there")
    assert sorted(path for path in old_run.path.rglob("*")) == before
