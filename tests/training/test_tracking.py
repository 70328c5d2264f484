"""Averages of real training runs: what they hold, that they change nothing, that they survive kills and branches."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.runs import (
    BRANCH,
    RESUME,
    SIX_STEPS,
    STEPS,
    assert_same_bits,
    assert_same_checkpoints,
    assert_whole,
    recorded_step,
    records,
    stop_when,
)
from wsm_jax import Run, UsageError, cli, merge_checkpoints, merge_weights
from wsm_jax.checkpoints import orbax
from wsm_jax.core import coefficients
from wsm_jax.evaluation.evaluate import checkpoint_path, run_evaluator
from wsm_jax.io import disk
from wsm_jax.merging import selection, weighting
from wsm_jax.models import family
from wsm_jax.training import optimizer
from wsm_jax.training.loop import train

pytest_plugins = ["tests.runs"]
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("averages")]

# Full states, every 12 steps and at 18, fall inside these intervals, windows and cycles.
INTERVAL, WINDOW = 5, 15
ALL = {
    "checkpoint__merge_interval": f"{INTERVAL}steps",
    "checkpoint__snapshot": "both",
    "averaging__names": "ema,running_mean,swa,lawa,wsm,power_ema",
    "averaging__ema_decay": "0.9/step",
    "averaging__running_mean_start": "7steps",
    "averaging__swa_start": "8steps",
    "averaging__swa_every": "4steps",
    "averaging__lawa_count": 3,
    "averaging__lawa_every": "5steps",
    "averaging__wsm_window": f"{WINDOW}steps",
    "averaging__power_ema_widths": "0.1",
}
ITEMS = ["ema", "lawa", "mean", "params", "power_ema_0.1", "running_mean", "swa", "wsm"]


@pytest.fixture(scope="module")
def averaged(tiny):
    return tiny.run("averaged", **ALL)


@pytest.fixture(scope="module")
def after_each_step(tiny):
    """path -> parameters after 0 .. STEPS updates, float64; the first is not known and NaN."""
    run = tiny.run("each", checkpoint__merge_interval="1steps", evaluation__interval="")
    trees = [orbax.load_tree(run.merge_stream / str(step)) for step in range(1, STEPS + 1)]
    unknown = jax.tree.map(lambda x: np.full(x.shape, np.nan), trees[0])
    return jax.tree.map(lambda *x: np.asarray(x, np.float64), unknown, *trees)


def saved(run, step, item):
    return orbax.load_tree(run.merge_stream / str(step), item)


def close(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


# --- what they hold --------------------------------------------------------------------------------------------------


def test_a_run_with_averages_has_the_parameters_of_one_without_bit_for_bit(averaged, reference):
    for step in (BRANCH, STEPS):
        for item in ("params", "opt_state"):
            one, other = (orbax.load_tree(r.resume_stream / str(step), item) for r in (averaged, reference))
            assert_same_bits(one, other, (step, item))
    assert averaged.metrics("validation") == reference.metrics("validation")


def test_every_merge_checkpoint_holds_all_of_them(averaged):
    for step in averaged.plan.merge_steps():
        assert orbax.item_names(averaged.merge_stream / str(step)) == ITEMS
    assert orbax.item_names(averaged.resume_stream / str(STEPS)) == ["averages", "opt_state", "params"]


@pytest.mark.parametrize("step", [5, 20, 45])
def test_they_are_the_averages_of_the_parameters_after_each_step(averaged, after_each_step, step):
    def mean(steps):
        return jax.tree.map(lambda x: x[list(steps)].mean(axis=0), after_each_step)

    ages = np.arange(step)[::-1]
    ema = 0.9**ages / (0.9**ages).sum()
    close(saved(averaged, step, "ema"), jax.tree.map(lambda x: np.tensordot(ema, x[1 : step + 1], 1), after_each_step))
    close(saved(averaged, step, "mean"), mean(range(step - INTERVAL + 1, step + 1)))
    close(saved(averaged, step, "lawa"), mean(range(step, 0, -5)[:3]))
    close(saved(averaged, step, "running_mean"), mean(range(7, step + 1) if step >= 7 else [step]))
    close(saved(averaged, step, "swa"), mean(range(8, step + 1, 4) if step >= 8 else [step]))
    assert_same_bits(saved(averaged, step, "params"), jax.tree.map(lambda x: np.float32(x[step]), after_each_step))


def test_online_wsm_is_the_decay_with_the_weight_decay_of_the_run(averaged, after_each_step):
    w = np.append(1.0, coefficients.curve_update_weights("minus_sqrt", WINDOW))
    for end in (20, 45):
        start = end - WINDOW
        shrink = averaged.config.optimizer.peak_lr * averaged.config.optimizer.weight_decay  # after the warm-up

        def decayed(path, masked, start=start, shrink=shrink):
            dec = path[start]
            for i in range(WINDOW):
                old, new = path[start + i], path[start + i + 1]
                dec = dec + w[i] * (new - old) - w[i] * shrink * masked * (dec - old)
            return dec

        shape = averaged.config.model
        mask = optimizer.decay_mask(saved(averaged, end, "params"), family.of(shape).leaves(shape))
        close(saved(averaged, end, "wsm"), jax.tree.map(decayed, after_each_step, mask))


def test_merged_interval_means_are_the_merge_of_every_step(averaged, after_each_step):
    """Uniform: the true mean of all steps; any curve: its piecewise-linear interpolation over the steps."""
    count, last = 6, 45
    first = last - count * INTERVAL
    paths = [averaged.merge_stream / str(step) for step in range(first + INTERVAL, last + 1, INTERVAL)]
    for curve in ("linear", "minus_sqrt", "exponential"):
        weights = merge_weights(curve, count, snapshot="mean")
        merged = merge_checkpoints(paths, weights[:-1], item="mean")
        end = saved(averaged, last, "params")
        merged = jax.tree.map(lambda m, e, c=weights[-1]: m + c * e, merged, end)
        a = np.append(1.0, [coefficients.get_decay(curve)(j / count) for j in range(1, count + 1)])
        rates = np.interp(np.arange(count * INTERVAL + 1) / INTERVAL, np.arange(count + 1), a)
        each = -np.diff(rates)
        each[-1] += rates[-1]
        close(merged, jax.tree.map(lambda x, c=each: np.tensordot(c, x[first + 1 : last + 1], 1), after_each_step))
        if curve == "linear":
            close(merged, jax.tree.map(lambda x: x[first + 1 : last + 1].mean(axis=0), after_each_step))


@pytest.mark.integration
@pytest.mark.parametrize(
    "option", [pytest.param({"averaging__host": True}, marks=pytest.mark.slow), {"averaging__every": 5}]
)
def test_host_memory_changes_nothing_and_sparse_updates_little(tiny, averaged, option):
    run = tiny.run(f"option-{next(iter(option))}", **(ALL | option))
    if "averaging__host" in option:
        assert_same_checkpoints(averaged, run)
        return
    for item in ("ema", "mean", "wsm", "running_mean"):
        # Means of every fifth step: near the others, and not the parameters of the end.
        one, other, end = (saved(r, 45, i) for r, i in ((run, item), (averaged, item), (run, "params")))
        gap, size = (
            sum(
                float(np.square(np.asarray(a) - np.asarray(b)).sum())
                for a, b in zip(*map(jax.tree.leaves, pair), strict=True)
            )
            for pair in ((one, other), (end, other))
        )
        assert item == "mean" or 0 < gap < 0.25 * size, item
    assert_same_bits(saved(run, 45, "mean"), saved(run, 45, "params"))  # of five steps the last one


# --- killed, resumed, branched ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def averaged_8(tiny):
    return tiny.finish("averaged-8", devices=8, **ALL, preview__averages=True)


@pytest.mark.integration
@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_killed_inside_its_windows_and_resumed_is_uninterrupted_bit_for_bit(tiny, request, devices):
    uninterrupted = request.getfixturevalue("averaged" if devices == 1 else "averaged_8")
    fields = ALL if devices == 1 else ALL | {"preview__averages": True}
    name = f"averaged-killed-{devices}"
    directory = tiny.folder / name
    starts = []
    for goal in (15, 27):
        process = tiny.start(name, devices=devices, **fields)
        status, _ = stop_when(process, lambda goal=goal: recorded_step(directory) >= goal, signal.SIGKILL)
        assert status == -signal.SIGKILL
        starts.append(assert_whole(Run(directory)))
    run = tiny.finish(name, devices=devices, **fields)
    assert [record["step"] for record in run.metrics("start")][1:] == starts
    assert all(start % INTERVAL for start in starts if start), "no resumption inside an interval"
    assert any(starts)
    assert_same_checkpoints(uninterrupted, run)
    assert records(run) == records(uninterrupted)


@pytest.mark.integration
def test_a_run_from_before_there_were_averages_goes_on(tiny, reference):
    """Its configuration lacks the fields and its full states the item."""
    copy = shutil.copytree(reference.path, tiny.folder / "before")
    shutil.rmtree(copy / "checkpoints" / "resume" / str(STEPS))
    for step in (42, 45, 48):
        shutil.rmtree(copy / "checkpoints" / "merge" / str(step))
    config = json.loads((copy / "config.json").read_text())
    for group in ("averaging", "preview"):
        del config[group]
    for group, field in (("checkpoint", "snapshot"), ("schedule", "cycle"), ("schedule", "cycle_start")):
        del config[group][field]
    (copy / "config.json").write_text(json.dumps(config))
    run = tiny.run("before")
    assert run.metrics("start")[-1]["step"] == STEPS - RESUME
    assert_same_checkpoints(run, reference)


def test_averages_cannot_be_added_to_a_run_that_is_under_way(tiny, reference):
    with pytest.raises(UsageError, match=r"made with averaging\.names='', now it is 'ema'"):
        tiny.run("reference", averaging__names="ema")


def test_a_full_state_without_its_averages_is_an_error(tiny, averaged):
    copy = shutil.copytree(averaged.path, tiny.folder / "robbed")
    for step in (36, STEPS):
        shutil.rmtree(copy / "checkpoints" / "resume" / str(step) / "averages")
    with pytest.raises(UsageError, match=r"resume/48 has no averages: not a state of this run"):
        tiny.run("robbed", **ALL)


@pytest.mark.integration
def test_averages_of_a_branch_begin_there(tiny, averaged, after_each_step):
    """From a parent with averages or without; here the parent's own schedule, so the parameters are the same."""
    run = tiny.run("averaged-branch", branch_from=f"{averaged.path}@{BRANCH}", **ALL, evaluation__interval="")
    mean = jax.tree.map(lambda x: x[BRANCH + 1 : 26].mean(axis=0), after_each_step)
    close(saved(run, 25, "running_mean"), mean)
    close(saved(run, 20, "mean"), jax.tree.map(lambda x: x[19:21].mean(axis=0), after_each_step))
    close(saved(run, 25, "mean"), saved(averaged, 25, "mean"))
    assert_same_bits(saved(run, 25, "params"), saved(averaged, 25, "params"))


# --- interval means instead of points --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def means(tiny):
    return tiny.run("means", checkpoint__merge_interval="5steps", checkpoint__snapshot="mean", averaging__names="ema")


def test_means_take_the_place_of_the_points(means, averaged):
    for step in (5, 25):
        assert orbax.item_names(means.merge_stream / str(step)) == ["ema", "mean"]
        assert_same_bits(saved(means, step, "mean"), saved(averaged, step, "mean"))
    with pytest.raises(UsageError, match=r"keeps interval means \(checkpoint\.snapshot=mean\)"):
        weighting.window_weights(weighting.parse("linear"), means, selection.select(means, 3))


def test_the_forecast_counts_what_is_stored_and_held(tiny, means, reference, capsys):
    train(means.config, means.path)
    printed = capsys.readouterr().err
    size = disk.tree_bytes(orbax.abstract_tree(means.merge_stream / "5", "mean"))
    assert f"merge stream 9 x {2 * size / 1e6:.1f} MB" in printed
    assert f"averages take {2 * size / 1e6:.1f} MB of memory" in printed
    train(tiny.config(), reference.path)
    assert "averages" not in capsys.readouterr().err


def test_evaluating_an_average(means, capsys, monkeypatch):
    def run_cli(*arguments):
        status = cli.main(["eval", f"--run={means.path}", "--json", *arguments])
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if not status else captured.err

    evaluate = run_evaluator(means, "validation")
    for average, step in (("mean", 45), ("ema", 25)):
        status, figures = run_cli(f"--average={average}", f"--step={step}")
        assert (status, figures["item"]) == (0, average)
        assert figures["checkpoint"] == str(means.merge_stream / str(step))
        assert figures["loss"] == evaluate(saved(means, step, average)).loss
    assert checkpoint_path(means, item="ema") == means.merge_stream / "45"
    # The parameters are in the full states only.
    status, figures = run_cli()
    assert figures["checkpoint"] == str(means.resume_stream / str(STEPS))
    assert run_cli("--step=45")[1].strip().endswith("no checkpoint of params at step 45; it has 18, 36, 48")
    assert "has an item 'swa'; they have ema, mean, params" in run_cli("--average=swa")[1]
    assert "has an item 'opt_state'; they have ema, mean, params" in run_cli("--average=opt_state")[1]
    assert "--average goes with a step" in run_cli("--average=ema", "--merged=x")[1]
    assert not os.listdir(means.path / "merged") if (means.path / "merged").exists() else True


def test_an_average_is_merged_in_another_dtype_and_format(averaged, tmp_path):
    """--item, --dtype and --format reach the merge."""
    options = ["--curve=linear", "--count=2", "--item=ema", "--dtype=bfloat16", "--format=safetensors"]
    assert cli.main(["merge", f"--run={averaged.path}", *options, f"--output={tmp_path / 'out'}"]) == 0
    last = STEPS // INTERVAL * INTERVAL
    paths = [averaged.merge_stream / str(step) for step in (last - INTERVAL, last)]
    wanted = merge_checkpoints(paths, [0.5, 0.5], item="ema", dtype="bfloat16")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found["final_norm.scale"].dtype == wanted["final_norm"]["scale"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["final_norm.scale"], wanted["final_norm"]["scale"])


@pytest.mark.integration
def test_a_schedule_free_run_saves_and_evaluates_its_average(tiny):
    run = tiny.run("schedule-free", **SIX_STEPS, optimizer__name="schedule_free", preview__averages=True)
    averages, params = (saved(run, 6, item) for item in ("schedule_free", "params"))
    state = orbax.load_tree(run.resume_stream / "6", "opt_state")
    z = state[1]["z"] if isinstance(state[1], dict) else state[1].z
    b1 = run.config.optimizer.b1
    close(averages, jax.tree.map(lambda y, z: (y - (1 - b1) * z) / b1, params, z))
    validate = run_evaluator(run, "validation", limit_tokens=run.config.evaluation.tokens)
    assert run.metrics("averages")[-1]["schedule_free"] == validate(averages).loss
    assert validate(averages).loss != run.metrics("validation")[-1]["loss"]
