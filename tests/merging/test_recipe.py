"""Merges of interval means: what they read of a real run, with which weights, what comes of it, what is refused."""

import json

import jax
import numpy as np
import pytest

from wsm_jax import DECAYS, Run, UsageError, cli, merge_checkpoints, merge_weights
from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints.inspection import inspect
from wsm_jax.cli import merge_run
from wsm_jax.core.weight_decay import decayed_mean_weights
from wsm_jax.evaluation import tuning
from wsm_jax.evaluation.evaluate import run_evaluator
from wsm_jax.merging import weighting
from wsm_jax.merging.offline import in_memory
from wsm_jax.merging.recipe import make_recipe
from wsm_jax.merging.selection import default_name, select, series
from wsm_jax.merging.spec import union

pytest_plugins = ["tests.runs"]
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("averages")]

OWN = 3  # steps of a mean of the run that keeps both


@pytest.fixture(scope="module")
def both(tiny):
    return tiny.run("recipe-both", checkpoint__snapshot="both")


@pytest.fixture(scope="module")
def only(tiny):
    """The same parameters; it keeps means twice as long and, at steps 18, 36 and 48, full states."""
    fields = {"checkpoint__snapshot": "mean", "checkpoint__merge_interval": f"{2 * OWN}steps"}
    return tiny.run("recipe-only", **fields, evaluation__interval="")


def asked(run, *arguments):
    """The parsed options of ``wsm merge --run``."""
    return cli._parser().parse_args(["merge", f"--run={run.path}", *map(str, arguments)])


def saved(path, item):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), orbax.load_tree(path, item))


def mix(trees, weights):
    """The sum in float64."""
    return jax.tree.map(lambda *leaves: sum(c * x for c, x in zip(weights, leaves, strict=True)), *trees)


def close(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def refused(capsys, run, *arguments):
    """The line that ``wsm merge`` ends with."""
    assert cli.main(["merge", f"--run={run.path}", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("wsm: ") and message.count("\n") == 1
    assert not (run.path / "merged").exists()
    return message


# --- one window ------------------------------------------------------------------------------------------------------


ROOTS = np.sqrt(np.arange(5) / 4)
POWERS = 0.1 ** (np.arange(5) / 4)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("curve", "weights", "words"),
    [
        ("minus_sqrt", np.diff(ROOTS), "merged 4 interval means into"),
        ("exponential", np.append(-np.diff(POWERS), 0.1), "merged 4 interval means and the end point into"),
        ("lawa", np.full(4, 0.25), "merged 4 interval means into"),
    ],
)
def test_the_command_writes_the_weighted_sum_of_the_means(both, tmp_path, capsys, curve, weights, words):
    output = tmp_path / "out"
    arguments = [f"--run={both.path}", f"--curve={curve}", "--count=4", "--snapshot=mean", f"--output={output}"]
    assert cli.main(["merge", *arguments, "--verify"]) == 0
    assert words in capsys.readouterr().out
    steps, items = [39, 42, 45, 48, 48][: len(weights)], (["mean"] * 4 + ["params"])[: len(weights)]
    trees = [saved(both.merge_stream / str(step), item) for step, item in zip(steps, items, strict=True)]
    close(orbax.load_tree(output), mix(trees, weights))
    record = inspect(output)["record"]
    assert record["name"] == f"{curve}-mean-4x3-at-48"
    assert [record[name] for name in ("curve", "snapshot", "count", "interval")] == [curve, "mean", 4, 3]
    assert (record["steps"], record["items"]) == (steps, items)
    np.testing.assert_allclose(record["weights"], weights, rtol=0, atol=1e-15)
    assert [(entry["step"], entry["item"]) for entry in record["inputs"]] == list(zip(steps, items, strict=True))


@pytest.mark.parametrize(
    ("arguments", "name", "steps"),
    [
        (["--count=4"], "cosine-mean-4x3-at-48", range(39, 49, 3)),
        (["--count=3", "--interval=6", "--last_step=45"], "cosine-mean-3x6-at-45", range(30, 46, 3)),
        (["--window=0.5run", "--interval=12"], "cosine-mean-2x12-at-48", range(27, 49, 3)),
        (["--window=12steps", "--count=2", "--name=mine"], "mine", range(39, 49, 3)),
        (["--count=16"], "cosine-mean-16x3-at-48", range(3, 49, 3)),  # from the first update on
    ],
)
def test_a_window_of_means_is_as_long_as_its_intervals(both, arguments, name, steps):
    specs = merge_run.make_specs(asked(both, "--curve=cosine", "--snapshot=mean", *arguments))
    (merge,) = specs.values()
    assert list(specs) == [merge.record["name"]] == [name]
    assert merge.paths == tuple(both.merge_stream / str(step) for step in steps)
    assert merge.items == ("mean",) * len(steps)
    assert merge.output == both.merged(name)
    count, parts = merge.record["count"], len(steps) // merge.record["count"]
    expected = np.repeat(merge_weights("cosine", count, snapshot="mean")[:-1] / parts, parts)
    np.testing.assert_array_equal(merge.weights, expected)
    assert merge.record["weights"] == expected.tolist()
    json.dumps(merge.record)


@pytest.mark.parametrize("curve", ["linear", "minus_sqrt", "inverse_sqrt"])
def test_long_intervals_are_those_of_a_run_that_keeps_longer_means(both, only, curve):
    fine = make_recipe(both, curve, 3, snapshot="mean", interval=2 * OWN)
    coarse = make_recipe(only, curve, 3)
    assert fine.steps[:6] == (33, 36, 39, 42, 45, 48) and coarse.steps[:3] == (36, 42, 48)
    assert len(fine.paths) - 6 == len(coarse.paths) - 3 == (curve == "inverse_sqrt")
    one, other = (merge_checkpoints(r.paths, r.weights, item=r.items) for r in (fine, coarse))
    close(one, jax.tree.map(np.asarray, other))
    parts = [saved(both.merge_stream / step, "mean") for step in ("45", "48")]
    close(saved(only.merge_stream / "48", "mean"), mix(parts, [0.5, 0.5]))


def test_what_a_run_keeps_is_what_is_merged_unless_asked(both, only):
    assert set(make_recipe(only, "linear", 2).items) == {"mean"}
    points = make_recipe(both, "linear", 2)
    assert points.items == ("params",) * 2
    assert points.paths == make_recipe(both, "linear", 2, snapshot="point").paths
    assert default_name("wma", select(both, 2)) == "wma-2x3-at-48"
    (merge,) = merge_run.make_specs(asked(both, "--curve=linear", "--count=2")).values()
    assert merge.record["snapshot"] == "point" and "items" not in merge.record


def test_explain_tells_which_weights_the_leaves_take(both, capsys):
    arguments = [f"--run={both.path}", "--curve=exponential", "--count=4", "--snapshot=mean", "--explain", "--json"]
    for more, decayed_apart in (([], False), (["--weight_decay_aware"], True)):
        assert cli.main(["merge", *arguments, *more]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert {row["leaf"] for row in rows} == set(both.facts["decay_mask"])
        like = {row["leaf"]: row["weights of"] for row in rows}
        mask = both.facts["decay_mask"]
        assert len(set(like.values())) == 1 + decayed_apart
        if decayed_apart:  # a leaf is like the first that is decayed as it is
            assert all(mask[leaf] == mask[first] for leaf, first in like.items())


# --- the end point ---------------------------------------------------------------------------------------------------


def test_the_end_point_comes_from_the_full_states_where_only_means_are_kept(only, tmp_path):
    output = tmp_path / "out"
    arguments = ["--curve=exponential", "--count=2", "--last_step=36", f"--output={output}", "--verify"]
    assert cli.main(["merge", f"--run={only.path}", *arguments]) == 0
    end = only.resume_stream / "36"
    trees = [*(saved(only.merge_stream / step, "mean") for step in ("30", "36")), saved(end, "params")]
    close(orbax.load_tree(output), mix(trees, [1 - 0.1**0.5, 0.1**0.5 - 0.1, 0.1]))
    inputs = inspect(output)["record"]["inputs"]
    assert [entry["path"] for entry in inputs[1:]] == [str(only.merge_stream / "36"), str(end)]
    # Where the curve ends at 0 it is not looked for.
    assert make_recipe(only, "linear", 2, last_step=42).items == ("mean", "mean")


def test_an_end_point_that_is_nowhere_is_named(only, capsys):
    for more in (["--last_step=42"], ["--every=42"], ["--last_step=42", "--weight_decay_aware"]):
        message = refused(capsys, only, "--curve=inverse_sqrt", "--count=2", *more)
        assert "inverse_sqrt gives the parameters at step 42 a weight of 0.1, but" in message
        assert "(full states: 18, 36, 48)" in message
        assert "a curve that ends at 0 (linear, cosine, minus_sqrt, square, ema)" in message
        assert "checkpoint.snapshot=both" in message


def test_an_end_point_that_comes_after_the_means_is_not_waited_for(only, capsys):
    message = refused(capsys, only, "--curve=exponential", "--count=2", "--every=18", "--follow")
    assert "exponential needs the parameters at the end of each window, and" in message


# --- along the run, and many at once ---------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("curve", ["linear", "exponential"])
def test_every_is_one_merge_after_the_other(both, tmp_path, capsys, curve):
    folder = tmp_path / "series"
    arguments = [f"--run={both.path}", "--snapshot=mean", f"--curve={curve}", "--count=2", "--interval=6"]
    assert cli.main(["merge", *arguments, "--every=12", f"--output={folder}", "--json", "--verify"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["name"] for record in records] == [f"{curve}-mean-2x6-at-{end}" for end in (12, 24, 36, 48)]
    for record, end in zip(records, (12, 24, 36, 48), strict=True):
        alone = make_recipe(both, curve, 2, interval=6, last_step=end, snapshot="mean")
        assert (record["steps"], record["items"]) == (list(alone.steps), list(alone.items))
        np.testing.assert_array_equal(record["weights"], alone.weights)
        trees = [saved(path, item) for path, item in zip(alone.paths, alone.items, strict=True)]
        close(orbax.load_tree(record["output"]), mix(trees, alone.weights))


def test_the_end_points_of_a_series_are_full_states(only):
    specs = merge_run.make_specs(asked(only, "--curve=exponential", "--count=2", "--every=18"))
    assert list(specs) == ["exponential-mean-2x6-at-18", "exponential-mean-2x6-at-36"]
    ends = [one.path for merge in specs.values() for one in merge.inputs if one.item == "params"]
    assert ends == [only.resume_stream / "18", only.resume_stream / "36"]


def test_points_and_means_are_merged_in_one_pass(both):
    recipes = {
        "points": make_recipe(both, "wma", 4),
        "means": make_recipe(both, "exponential", 3, snapshot="mean"),
        "earlier": make_recipe(both, "linear", 2, snapshot="mean", interval=6, last_step=42),
        "aware": make_recipe(both, "minus_sqrt", 3, snapshot="mean", weight_decay_aware=True),
    }
    inputs = [(one.step, one.item) for one in union(list(recipes.values()))]
    means = [(step, "mean") for step in range(33, 49, 3)]
    assert sorted(inputs) == sorted(means + [(step, "params") for step in (39, 42, 45, 48)])
    assert inputs == sorted(inputs)
    assert inputs[-2:] == [(48, "mean"), (48, "params")]
    for name, merged in in_memory(recipes):
        alone = recipes[name]
        close(merged, jax.tree.map(np.asarray, merge_checkpoints(alone.paths, alone.weights, item=alone.items)))


# --- weight decay ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "curve"), [(3, "cosine"), (6, "cosine"), (6, "exponential")])
def test_the_aware_form_takes_the_length_of_the_whole_interval(both, interval, curve):
    found = make_recipe(both, curve, 3, snapshot="mean", interval=interval, weight_decay_aware=True).weights
    plain = merge_weights(curve, 3, snapshot="mean")
    settings = both.config.optimizer
    aware = decayed_mean_weights(
        [DECAYS[curve](j / 3) for j in (1, 2, 3)],
        learning_rate=settings.peak_lr,
        weight_decay=settings.weight_decay,
        steps_per_interval=interval,
    )
    assert np.abs(aware - plain).max() > 1e-5
    mask = both.facts["decay_mask"]
    assert set(mask.values()) == {True, False} and set(found) == set(mask)
    for path, decayed in mask.items():
        vector = aware if decayed else plain
        spread = np.repeat(vector[:-1] * OWN / interval, interval // OWN)
        expected = np.append(spread, vector[-1]) if curve == "exponential" else spread
        np.testing.assert_allclose(found[path], expected, rtol=0, atol=1e-7)  # the rate is float32


def test_the_aware_form_needs_a_constant_rate_from_the_start_of_its_first_interval(both, capsys):
    """The warm-up takes 5 steps. The oldest of two points lies at step 6, the first of two means begins at 3."""
    aware = ["--curve=linear", "--count=2", "--weight_decay_aware"]
    message = refused(capsys, both, *aware, "--snapshot=mean", "--last_step=9")
    assert "need a constant rate, but between steps 3 and 9" in message
    for snapshot, first in (("point", 9), ("mean", 12)):
        specs = merge_run.make_specs(asked(both, *aware, f"--snapshot={snapshot}", "--every=3"))
        assert next(iter(specs)).endswith(f"-at-{first}")


# --- the best of all curves and windows ------------------------------------------------------------------------------


def test_a_search_over_means(both, tmp_path, capsys):
    output = tmp_path / "found"
    arguments = [f"--run={both.path}", "--curve=search", "--count=4", "--snapshot=mean", f"--output={output}"]
    assert cli.main(["merge", *arguments]) == 0
    assert "merging 7 curves x 3 windows in one pass over 4 interval means" in capsys.readouterr().err
    record = inspect(output)["record"]
    fit = record["fit"]
    assert (record["name"], record["snapshot"]) == ("search-mean-4x3-at-48", "mean")
    assert {(entry["curve"], entry["count"]) for entry in fit["tried"]} == {(c, n) for c in DECAYS for n in (2, 3, 4)}
    best = min(fit["tried"], key=lambda entry: entry["loss"])
    assert fit["chosen"] == {"curve": best["curve"], "count": best["count"]}
    validate = run_evaluator(both, "validation", limit_tokens=both.config.evaluation.tokens)
    for entry in (best, fit["tried"][0], next(e for e in fit["tried"] if e["curve"] == "exponential")):
        alone = make_recipe(both, entry["curve"], entry["count"], snapshot="mean")
        merged = merge_checkpoints(alone.paths, alone.weights, item=alone.items)
        assert validate(merged).loss == pytest.approx(entry["loss"], rel=1e-6)
    assert validate(orbax.load_tree(output)).loss == pytest.approx(fit["loss"], rel=1e-6)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", ["--curve=wma", "--curve=ema:0.9", "--curve=best:2", "--schedule={rates}:half", "--like={run}"]
)
def test_rules_that_weigh_checkpoints(only, both, tmp_path, capsys, rule):
    (tmp_path / "rates.py").write_text("def half(step):\n    return 5e-4\n")
    argument = rule.format(rates=tmp_path / "rates.py", run=both.path)
    for run, more in ((only, []), (both, ["--snapshot=mean"])):
        message = refused(capsys, run, argument, "--count=2", *more)
        assert "weighs point checkpoints; interval means take a decay curve (linear, cosine," in message


@pytest.mark.integration
@pytest.mark.parametrize(
    ("kept", "arguments", "words"),
    [
        ("only", ["--snapshot=point"], "keeps interval means (checkpoint.snapshot=mean) and no points"),
        ("reference", ["--snapshot=mean"], "keeps no interval means (checkpoint.snapshot=point)"),
        ("both", ["--snapshot=median"], "--snapshot"),
        ("both", ["--snapshot=mean", "--item=params"], "--item goes with point checkpoints"),
        ("only", ["--item=mean"], "--item goes with point checkpoints"),
        ("only", ["--interval=9"], "interval=9 is no multiple of the 6 steps that each mean of"),
        ("only", ["--interval=9", "--every=12"], "; 12 is"),
        ("only", ["--interval=24", "--last_step=42"], "8 every 6 steps up to 42 begin at step 0, before there are any"),
        ("both", ["--snapshot=mean", "--last_step=3"], "begin at step 0, before there are any"),
        ("both", ["--snapshot=mean", "--curve=learned"], "--curve=learned takes point checkpoints"),
        ("only", ["--curve=learned"], "--curve=learned takes point checkpoints"),
    ],
)
def test_bad_options_are_refused_in_one_line(request, kept, arguments, words, capsys):
    assert words in refused(capsys, request.getfixturevalue(kept), "--curve=linear", "--count=2", *arguments)


def test_a_snapshot_is_that_of_a_run(tmp_path, capsys):
    assert cli.main(["merge", "/a", "/b", f"--output={tmp_path / 'c'}", "--snapshot=mean"]) == 2
    assert "--snapshot goes with --run" in capsys.readouterr().err


def test_weights_of_points_do_not_fit_a_run_of_means(only):
    """What a report or a search that knows nothing of means runs into."""
    window = select(only, 2)
    with pytest.raises(UsageError, match=r"keeps interval means \(checkpoint\.snapshot=mean\)"):
        weighting.window_weights(weighting.parse("linear"), only, window)
    with pytest.raises(UsageError, match=r"keeps interval means \(checkpoint\.snapshot=mean\)"):
        tuning.search(only, window, [2], lambda _: pytest.fail("something was evaluated"))


def test_a_mean_that_began_inside_its_interval_is_refused(both):
    """A branch at step 37 would have the mean over 38 and 39 at step 39."""
    branch = Run(both.path)
    branch.facts["branch_step"] = 37
    with pytest.raises(UsageError, match="the mean at step 39 covers the updates since the branch at step 37 only"):
        make_recipe(branch, "linear", 4, snapshot="mean")
    assert make_recipe(branch, "linear", 3, snapshot="mean").steps == (42, 45, 48)
    assert make_recipe(branch, "linear", 4, snapshot="point").steps == (39, 42, 45, 48)
    assert [window.steps for window in series(branch, 2, 3, snapshot="mean")] == [(42, 45), (45, 48)]
    branch.facts["branch_step"] = 36
    assert make_recipe(branch, "linear", 4, snapshot="mean").steps == (39, 42, 45, 48)
