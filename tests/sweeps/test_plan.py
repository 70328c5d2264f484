"""What a sweep is going to do: which runs are together, what each arm reads, what is refused before anything starts."""

import dataclasses
from pathlib import Path

import pytest

from tests.sweeps.examples import GOOD, MEAN, made
from wsm_jax.errors import UsageError
from wsm_jax.sweeps import Arm, RunSpec, windows


def changed(**fields):
    return dataclasses.replace(GOOD, **fields)


def test_a_piece_is_one_seed_of_a_run_with_all_that_branches_from_it():
    pieces = made().pieces
    assert [piece.name for piece in pieces] == ["seed3-constant", "seed3-other", "seed4-constant", "seed4-other"]
    assert list(pieces[0].runs) == ["constant", "decay", "again"]  # parents first
    assert list(pieces[2].readings) == ["last", "mean", "decay"] and list(pieces[3].readings) == ["other"]
    runs = pieces[2].runs
    assert {run.config.seed for run in runs.values()} == {4}
    assert runs["decay"].branch_from == "nowhere/out/seed4/constant@64"
    assert runs["again"].branch_from == "nowhere/out/seed4/decay@100"
    assert not Path("nowhere").exists()


def test_a_run_keeps_its_state_where_others_are_branched_from_it():
    runs = made().pieces[0].runs
    assert {name: run.plan.branch_points for name, run in runs.items()} == {
        "constant": (96, 64),  # 96: of the configuration itself
        "decay": (96, 100),
        "again": (96,),
    }


def test_a_run_that_starts_with_an_arm_is_in_the_piece_of_that_arm():
    runs = {**GOOD.runs, "other": dataclasses.replace(GOOD.runs["other"], params_from="mean")}
    pieces = made(changed(runs=runs)).pieces
    assert [piece.name for piece in pieces] == ["seed3-constant", "seed4-constant"]
    assert list(pieces[0].runs) == ["constant", "decay", "other", "again"]


def test_settings_reach_every_run_and_those_of_a_run_come_last():
    experiment = changed(settings={"batch_size": 2, "optimizer.b1": 0.5}, claims={})
    runs = made(experiment, settings=["--config.optimizer.b1=0.6"]).pieces[0].runs
    assert {(run.config.batch_size, run.config.optimizer.b1) for run in runs.values()} == {(2, 0.6)}
    assert made(experiment).pieces[1].runs["other"].config.optimizer.peak_lr == 1e-2


@pytest.mark.parametrize(
    ("merge", "steps"),
    [
        ({"count": 3}, (124, 126, 128)),
        ({"count": 2, "interval": 30}, (98, 128)),
        ({"window": "8steps"}, (122, 124, 126, 128)),
        ({"window": "0.25run", "interval": "0.125run"}, (112, 128)),
        ({"count": 2, "interval": 64, "snapshot": "mean"}, (64, 128)),
    ],
)
def test_a_merge_says_its_window_as_the_command_does(merge, steps):
    run = made().pieces[0].runs["constant"]
    found = windows.reading(run, Arm("constant", merge))
    assert found.window is not None and found.window.steps == steps
    assert found.record["curve"] == "linear" and found.record["count"] == len(steps)


def test_a_window_reaches_back_into_the_runs_that_a_run_was_branched_from():
    runs = made().pieces[0].runs
    found = windows.reading(runs["again"], Arm("again", {"count": 4, "interval": 20}, at="120steps"))
    assert found.window is not None and found.window.steps == (60, 80, 100, 120)
    owners = windows.paths(runs["again"])
    assert [owners[step].name for step in found.window.steps] == ["constant", "decay", "decay", "again"]
    assert list(owners) == list(range(2, 129, 2))


def test_parameters_from_elsewhere_begin_a_new_path():
    runs = {**GOOD.runs, "again": RunSpec(branch_from="decay@100steps", params_from="mean")}
    with pytest.raises(UsageError, match=r"arm 'x': there are no 20 checkpoints .* there are 14, from 102"):
        made(changed(runs=runs, arms={**GOOD.arms, "x": Arm("again", {"count": 20})}))


def with_arm(**fields):
    return changed(arms={**GOOD.arms, "x": Arm(**{"run": "constant", **fields})})


def with_run(settings=None, **fields):
    return changed(runs={**GOOD.runs, "x": RunSpec(settings or {}, **fields)})


@pytest.mark.parametrize(
    ("experiment", "says"),
    [
        (with_run({"optimizer.naem": "lion"}), "run 'x': unknown option --config.optimizer.naem; did you mean"),
        (with_run({"optimizer.peak_lr": 0.0}), "run 'x': optimizer.peak_lr is 0.0"),
        (with_run({"batch_size": "many"}), "run 'x': .*batch_size"),
        (with_run({"schedule.name": "cooldown"}), "run 'x': schedule.name=cooldown starts where a run is branched"),
        (with_run({"data.source": "text:/nowhere"}), "run 'x': .*/nowhere"),
        (with_run({"data.test_fraction": 0.0}), "run 'x': data.test_fraction=0 leaves nothing to measure"),
        (with_run({"seed": 1}), "run 'x': seed is no setting of a run"),
        (with_run(branch_from="constant@2run"), "run 'x': branch_from='constant@2run' is step 256"),
        (with_run(branch_from="constant@late"), "run 'x': branch_from='late' is not a duration"),
        (with_run({"optimizer.name": "lion"}, branch_from="constant@64steps"), "optimizer.name differs"),
        (with_run(branch_from="x@0.5run"), "runs need each other's checkpoints: x → x"),
        (changed(runs={**GOOD.runs, "..": RunSpec()}), "run '..' cannot be the name of a folder"),
        (with_run(), "run 'x': nothing of it is measured; add an arm"),
        (changed(config="nowhere.py"), "run 'constant': --config: no file nowhere.py"),
        (with_arm(merge={"cuont": 4}), "arm 'x': 'cuont' is no field of a merge; did you mean count?"),
        (with_arm(merge={"count": "4"}), "arm 'x': merge.count is '4'; it must be a whole number"),
        (with_arm(merge={"count": True}), "arm 'x': merge.count is True"),
        (with_arm(merge={"curve": "linaer", "count": 4}), "arm 'x': unknown curve 'linaer'"),
        (with_arm(merge={"curve": "linear"}), "arm 'x': a window needs its count or its length"),
        (with_arm(merge={"count": 65}), "arm 'x': there are no 65 checkpoints every 2 steps up to step 128"),
        (with_arm(merge=MEAN, at="1steps"), "arm 'x': there are no 4 checkpoints every 2 steps up to step 1"),
        (with_arm(at="129steps"), "arm 'x': at='129steps' is step 129, but run 'constant' goes from step 0 to 128"),
        (with_arm(at="13steps"), "arm 'x': run 'constant' saves no params at step 13"),
        (with_arm(item="ema"), "arm 'x': item='ema' is not kept by run 'constant'; it keeps params, mean"),
        (with_arm(run="decay", at="64steps"), "arm 'x': at='64steps' is step 64, but run 'decay' goes from step 64"),
        (with_arm(run="decay", merge={**MEAN, "weight_decay_aware": True}), "arm 'x': these weights need a constant"),
        (with_arm(run="decay", merge={"curve": "best:2", "count": 50}), "arm 'x': best:2 reaches into run 'constant'"),
    ],
)
def test_what_no_run_or_merge_could_be_is_refused_by_name(experiment, says):
    with pytest.raises(UsageError, match=says):
        made(experiment)


@pytest.mark.parametrize("field", ["seed", "optimizer.peak_lr"])
def test_what_the_sweep_sets_is_no_flag(field):
    with pytest.raises(UsageError, match=f"--config.{field} is set by the sweep itself"):
        made(settings=[f"--config.{field}=1"])
