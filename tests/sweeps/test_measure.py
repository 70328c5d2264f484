"""One piece for real: runs, a branch, a run that starts with a merge; merges that reach back; what is not redone."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.runs import BRANCH, STEPS
from wsm_jax import Run
from wsm_jax.checkpoints import orbax
from wsm_jax.cli import config_flags
from wsm_jax.io.files import read_jsonl
from wsm_jax.sweeps import Arm, Experiment, Measure, RunSpec, measure, plan, records, windows
from wsm_jax.sweeps.declared import Declared
from wsm_jax.sweeps.estimate import Estimator

pytestmark = pytest.mark.integration
pytest_plugins = ["tests.runs"]
MERGE = {"curve": "minus_sqrt", "count": 8}


@pytest.fixture(scope="module")
def done(tiny):
    """The plan of a piece that is done, and what makes it with other arms."""
    experiment = Experiment(
        "reach",
        "Windows through a branch",
        str(tiny.file("reach")),
        runs={
            "straight": RunSpec(),
            "on": RunSpec(branch_from=f"straight@{BRANCH}steps"),
            "again": RunSpec({"duration": "24steps"}, branch_from=f"straight@{BRANCH}steps", params_from="early"),
        },
        arms={
            "last": Arm("straight"),
            "merge": Arm("straight", MERGE, at="30steps"),
            "reached": Arm("on", MERGE, at="30steps"),
            "early": Arm("straight", {"count": 3}, at=f"{BRANCH}steps"),
            "again": Arm("again"),
        },
        seeds=[5],
        measure=Measure(validation_tokens=2000, test_tokens=3000),
    )

    def made(**fields):
        declared = Declared(dataclasses.replace(experiment, **fields), "file.py", "")
        return plan.make(declared, config_flags.load, output=tiny.folder / "reach")

    first = made()
    before = Estimator(first.runs)(first.pieces[0])
    measure.do(first, first.pieces[0])
    return first, made, before


def by_arm(made):
    return {record["arm"]: record for record in read_jsonl(made.pieces[0].folder / records.RECORDS)}


def test_a_window_through_a_branch_is_the_window_of_the_run_that_went_straight_on(done):
    found = by_arm(done[0])
    for split in ("validation", "test"):  # to rounding: what else is merged in the pass decides the order of sums
        assert found["reached"][split] == pytest.approx(found["merge"][split], rel=1e-7)
        assert found["last"][split] != pytest.approx(found["merge"][split], rel=1e-4)
    assert found["merge"]["merge"] == {"curve": "minus_sqrt", "count": 8, "interval": 3, "snapshot": "point"}
    assert (found["merge"]["step"], found["merge"]["tokens"]) == (30, 30 * 8 * 16)
    inputs = windows.spec(done[0].pieces[0].readings["reached"]).inputs
    assert [one.path.parents[2].name for one in inputs] == ["straight"] * 4 + ["on"] * 4
    assert [one.step for one in inputs] == list(range(9, 31, 3))


def test_a_run_starts_with_the_arm_that_it_names(done):
    runs = {run.name: Run(run.path) for run in done[0].runs}
    start = orbax.load_tree(runs["again"].facts["params_from"])
    trees = [orbax.load_tree(runs["straight"].merge_stream / str(step)) for step in (12, 15, 18)]
    for leaf, *others in zip(*map(jax.tree.leaves, (start, *trees)), strict=True):
        np.testing.assert_allclose(leaf, np.mean(others, axis=0), rtol=1e-6, atol=1e-7)
    assert runs["again"].facts["branch_step"] == BRANCH


def test_what_was_estimated_is_what_it_took(done):
    made, _, before = done
    assert (before.runs, before.steps) == (3, STEPS + (STEPS - BRANCH) + (24 - BRANCH))
    tree = 4 * Run(made.runs[0].path).facts["parameters"]
    merges, states = 16 + 10 + 2, 12  # states, of three trees each: kept, for branches, and one being written
    assert merges * tree < before.disk < (merges + 3.1 * states) * tree
    after = Estimator(made.runs)(made.pieces[0])
    assert (after.runs, after.steps, after.seconds) == (0, 0, 0.0)


def test_an_arm_that_comes_later_is_measured_without_training(done):
    first, made, _ = done
    file = first.pieces[0].folder / records.RECORDS
    before, written = by_arm(first), file.stat().st_mtime_ns
    measure.do(first, first.pieces[0])
    assert file.stat().st_mtime_ns == written
    metrics = [(run.path / "metrics.jsonl").stat().st_mtime_ns for run in first.runs]
    more = made(arms={**first.experiment.arms, "two": Arm("on", {"count": 2})})
    assert not records.is_done(more, more.pieces[0])
    measure.do(more, more.pieces[0])
    assert [(run.path / "metrics.jsonl").stat().st_mtime_ns for run in first.runs] == metrics
    after = by_arm(more)
    assert set(after) == {*before, "two"}
    assert all(after[name]["domains"] == record["domains"] for name, record in before.items())
    assert np.isfinite(after["two"]["test"])
