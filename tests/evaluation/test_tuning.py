"""Weights fitted to held-out data of a real run: never worse than the start, what is recorded, what is refused."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.runs import assert_same_bits
from wsm_jax import Run, UsageError, cli, merge, merge_checkpoints, merge_weights
from wsm_jax.checkpoints import inspection, orbax
from wsm_jax.core.decay import DECAYS
from wsm_jax.evaluation import learned, tuning
from wsm_jax.evaluation.evaluate import model_and_data, run_evaluator
from wsm_jax.merging import weighting
from wsm_jax.merging.selection import select
from wsm_jax.parallel import sharding

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.xdist_group("train")

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def validate(reference):
    """The evaluator that `wsm merge` fits by."""
    return run_evaluator(reference, "validation", limit_tokens=reference.config.evaluation.tokens)


@pytest.fixture(scope="module")
def searched(reference, validate):
    return tuning.search(reference, select(reference, 8), [2, 8], validate)


def test_a_run_of_a_gpu_is_evaluated_elsewhere(reference):
    """cuDNN computes the same attention as any other implementation, and only GPUs have it."""
    elsewhere = Run(reference.path)
    elsewhere.config.model = dataclasses.replace(elsewhere.config.model, attention="cudnn", compute_dtype="bfloat16")
    model, _ = model_and_data(elsewhere)
    assert model.config.attention == "xla" and model.config.compute_dtype == "bfloat16"


def test_a_search_finds_the_losses_of_the_merges_one_by_one(reference, validate, searched):
    assert set(searched) == {(curve, count) for curve in DECAYS for count in (2, 8)}
    for curve, count in [("linear", 8), ("minus_sqrt", 2), ("ema", 8)]:
        window = select(reference, count)
        merged = merge_checkpoints(window.paths, merge_weights(curve, count))
        assert searched[curve, count] == pytest.approx(validate(merged).loss, rel=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize("monotone", [False, True])
def test_learned_weights_beat_the_best_fixed_curve_on_the_data_they_were_fitted_to(
    reference, validate, searched, monotone
):
    allowed = ("linear", "square") if monotone else tuple(DECAYS)
    start = min(allowed, key=lambda curve: searched[curve, 8])
    window = select(reference, 8)
    said = []
    found = tuning.learn(reference, window, start=start, steps=20, monotone=monotone, say=said.append)
    assert found.before == pytest.approx(searched[start, 8], rel=1e-5)
    assert found.after < found.before  # the constant rate is high: there is something to gain
    # The loss of the fit is the loss of the merge, as it is evaluated.
    assert validate(merge_checkpoints(window.paths, found.weights)).loss == pytest.approx(found.after, rel=1e-5)
    assert not monotone or np.diff(found.weights).min() >= 0
    assert len(said) == len(found.losses) == 11


@pytest.mark.integration
def test_the_checkpoints_are_held_as_one_tree(reference):
    window = select(reference, 3)
    stacked = learned.load(window.paths, sharding.make_mesh())
    for place, path in enumerate(window.paths):
        assert_same_bits(jax.tree.map(lambda leaf, j=place: leaf[j], stacked), orbax.load_tree(path))


def test_too_little_memory_is_told_before_anything_is_read(reference):
    window = select(reference, 3)
    one = sum(leaf.nbytes for leaf in jax.tree.leaves(orbax.load_tree(window.paths[0])))
    with pytest.raises(UsageError, match=r"3 checkpoints of 0.000 GB takes .* are free; take fewer"):
        learned.load(window.paths, sharding.make_mesh(), room=6 * one - 1)
    learned.load(window.paths, sharding.make_mesh(), room=6 * one)


# --- the command line ------------------------------------------------------------------------------------------------


def wsm(capsys, *arguments):
    """Exit status, what was printed, what was complained about."""
    status = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def own(reference, tmp_path):
    """A run of its own to write merges into: the reference, its checkpoints shared."""
    folder = tmp_path / "own"
    folder.mkdir()
    for path in reference.path.iterdir():
        if path.name != "merged":
            (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.integration
def test_a_learned_merge_from_the_command_line_to_the_test_split(own, capsys):
    options = ["merge", f"--run={own}", "--curve=learned", "--count=8", "--fit_steps=20", "--fit_seed=3", "--json"]
    status, out, err = wsm(capsys, *options, "--monotone", "--fit_start=square", "--name=mine", "--verify")
    assert (status, err) == (0, "")
    record = json.loads(out)
    fit = record["fit"]
    assert record["curve"] == "learned"
    assert [fit[name] for name in ("split", "steps", "seed", "start", "monotone")] == [
        "validation",
        20,
        3,
        "square",
        True,
    ]
    assert fit["loss"] == min(loss for _, loss in fit["losses"]) <= fit["before"] == fit["losses"][0][1]
    assert math.fsum(record["weights"]) == pytest.approx(1.0, abs=1e-14)
    assert np.diff(record["weights"]).min() >= 0
    assert inspection.inspect(own / "merged" / "mine")["record"]["fit"] == fit
    trees = [orbax.load_tree(own / "checkpoints" / "merge" / str(step)) for step in record["steps"]]
    expected = merge(trees, record["weights"])
    assert_same_bits(orbax.load_tree(own / "merged" / "mine"), expected)
    status, out, err = wsm(capsys, "eval", f"--run={own}", "--merged=mine", "--split=test", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["split"] == "test"
    # The name is taken now, which is told at once.
    assert (
        wsm(capsys, *options, "--name=mine")[2] == f"wsm: {own}/merged/mine exists; choose another name or remove it\n"
    )


@pytest.mark.integration
def test_a_searched_merge_is_that_of_the_best_curve_and_window(own, capsys):
    status, out, err = wsm(capsys, "merge", f"--run={own}", "--curve=search", "--count=8")
    assert status == 0
    assert "merging 7 curves x 5 windows in one pass over 8 checkpoints" in err
    assert f"{own}/merged/search-8x3-at-48" in out.replace("\n", "")
    record = inspection.inspect(own / "merged" / "search-8x3-at-48")["record"]
    fit = record["fit"]
    assert sorted({entry["count"] for entry in fit["tried"]}) == [2, 3, 4, 6, 8]
    best = min(fit["tried"], key=lambda entry: entry["loss"])
    assert fit["loss"] == best["loss"]
    assert fit["chosen"] == {"curve": record["curve"], "count": record["count"]}
    assert (best["curve"], best["count"]) == (record["curve"], record["count"])
    np.testing.assert_array_equal(record["weights"], merge_weights(record["curve"], record["count"]))
    newest = validate_newest(own)
    assert fit["last_checkpoint"] == pytest.approx(newest, abs=1e-6)
    whole = next(t["loss"] for t in fit["tried"] if (t["curve"], t["count"]) == ("linear", 8))
    assert (
        f"{record['curve']} x {record['count']}: loss on validation {fit['loss']:.4f}; mean of the whole window "
        f"{whole:.4f}, last checkpoint {newest:.4f}" in out
    )
    assert ("the last checkpoint alone is better" in err) == (fit["loss"] > newest)


def validate_newest(folder):
    """Loss of the last checkpoint on the tokens that the search takes."""
    run = Run(folder)
    evaluator = run_evaluator(run, "validation", limit_tokens=run.config.evaluation.tokens)
    return evaluator(orbax.load_tree(folder / "checkpoints" / "merge" / "48")).loss


@pytest.mark.integration
def test_a_search_that_finds_nothing_better_than_the_last_checkpoint_says_so(own, capsys):
    """The window begins in the first steps, where every checkpoint is far better than the one before."""
    status, _, err = wsm(capsys, "merge", f"--run={own}", "--curve=search", "--count=2", "--last_step=6")
    assert status == 0
    assert "wsm: warning: step 3 lies in the warm-up" in err
    assert "wsm: warning: the last checkpoint alone is better than this merge" in err


@pytest.mark.integration
def test_a_searched_merge_takes_the_weight_decay_aware_form(own, capsys):
    asked = ["merge", f"--run={own}", "--curve=search", "--count=4", "--weight_decay_aware", "--json"]
    status, out, _ = wsm(capsys, *asked, "--fit_split=train")
    record = json.loads(out)
    assert status == 0
    assert record["weight_decay_aware"]
    assert record["fit"]["split"] == "train"
    assert set(record["weights"]) == set(json.loads((own / "run.json").read_text())["decay_mask"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--curve=learned", "--count=4", "--fit_split=test"], "fit_split=test: weights fitted to the test split"),
        (["--curve=search", "--count=4", "--fit_split=test"], "fit_split=test: weights fitted to the test split"),
        (["--curve=learned", "--count=4", "--fit_split=dev"], "fit_split='dev': choose validation or train"),
        (["--curve=linear", "--count=4", "--fit_split=validation"], "--fit_split goes with --curve=learned"),
        (["--curve=linear", "--count=4", "--monotone"], "--monotone goes with --curve=learned"),
        (["--curve=search", "--count=4", "--fit_steps=3"], "--fit_steps does not go with --curve=search"),
        (["--curve=search", "--count=4", "--leaves=norm=skip"], "--leaves=norm=skip does not go with --curve=search"),
        (["--curve=search", "--count=4", "--fit_seed=0"], "--fit_seed does not go with --curve=search"),
        (["--curve=learned", "--count=4", "--weight_decay_aware"], "--weight_decay_aware does not go with"),
        (["--curve=learned", "--count=4", "--leaves=.*=last"], "--leaves does not go with --curve=learned: all"),
        (["--curve=learned", "--count=4", "--fit_steps=0"], "fit_steps=0 must be at least 1"),
        (["--curve=learned", "--count=4", "--fit_seed=-1"], "fit_seed=-1 must be at least 0"),
        (["--curve=learned", "--count=4", "--fit_start=best:2"], "best:2 needs a run"),
        (["--curve=learned", "--count=4", "--fit_start=cosine", "--monotone"], "which monotone does not allow"),
        (["--curve=learned", "--count=4", "--explain"], "--explain reads no array"),
        (["--curve=learned", "--count=4", "--every=12"], "--every goes with rules that need no data"),
        (["--curve=learned", "--count=40"], "before there are any"),
        (["--curve=learned"], "--count=N or --window=W"),
    ],
)
def test_bad_options_are_refused_in_one_line(reference, capsys, arguments, words):
    status, _, err = wsm(capsys, "merge", f"--run={reference.path}", *arguments)
    assert status == 2
    assert words in err
    assert err.startswith("wsm: ")
    assert err.count("\n") == 1
    assert not (reference.path / "merged").exists()


def test_the_names_mean_nothing_without_a_run(capsys, tmp_path):
    for curve in weighting.FITTED:
        words = f"curve '{curve}' needs the held-out data of a run: wsm merge --run=DIR --curve={curve}"
        assert words in wsm(capsys, "weights", f"--curve={curve}", "--count=3")[2]
        assert words in wsm(capsys, "merge", "a", "b", f"--curve={curve}", f"--output={tmp_path / 'x'}")[2]


# --- several devices -------------------------------------------------------------------------------------------------


EIGHT = """
import json, sys
import jax
from wsm_jax import Run
from wsm_jax.evaluation import learned, tuning
from wsm_jax.merging.selection import select
from wsm_jax.parallel import sharding

assert jax.device_count() == 8
run = Run(sys.argv[1])
held = {}
for count in (3, 8):  # the one on each of the devices, the other spread over them
    stacked = learned.load(select(run, count).paths, sharding.make_mesh())
    held[count] = sorted({leaf.sharding.shard_shape(leaf.shape)[0] for leaf in jax.tree.leaves(stacked)})
fit = tuning.learn(run, select(run, 8), steps=20)
print(json.dumps({"held": held, "weights": fit.weights.tolist(), "losses": fit.losses}))
"""


@pytest.mark.integration
def test_eight_devices_learn_what_one_learns(tiny, reference):
    environment = {**tiny.environment, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, str(reference.path)],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    eight = json.loads(done.stdout)
    assert eight["held"] == {"3": [3], "8": [1]}
    one = tuning.learn(reference, select(reference, 8), steps=20)
    np.testing.assert_allclose(eight["weights"], one.weights, atol=1e-4)
    np.testing.assert_allclose(eight["losses"], one.losses, rtol=1e-5)


@pytest.mark.integration
def test_a_search_over_interval_means_alone(tiny, capsys):
    """Nothing but means is in the merge stream; the end of the run is there as a full state."""
    fields = {"duration": "12steps", "checkpoint__snapshot": "mean", "checkpoint__branch_points": ""}
    run = tiny.run("means-only", evaluation__interval="", **fields)
    status, out, err = wsm(capsys, "merge", f"--run={run.path}", "--curve=search", "--count=2")
    assert status == 0, err
    params = orbax.load_tree(run.resume_stream / "12", "params")
    loss = run_evaluator(run, "validation", limit_tokens=run.config.evaluation.tokens)(params).loss
    assert f"last checkpoint {loss:.4f}" in out
