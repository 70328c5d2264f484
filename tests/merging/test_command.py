"""The options of `wsm merge`: what they ask for, all of it before an array is read, and what comes of it."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.runs import MERGE, STEPS, assert_same_bits
from wsm_jax import UsageError, cli, merge_checkpoints, merge_weights
from wsm_jax.checkpoints import orbax
from wsm_jax.cli import merge_inputs, merge_request, merge_run
from wsm_jax.core.coefficients import wma_weights
from wsm_jax.merging.inputs import check_order, input_weights, negative, odd_sum, parse_input
from wsm_jax.merging.selection import select
from wsm_jax.merging.weighting import changed, parse, window_weights

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.xdist_group("train")


def asked(*arguments):
    """The parsed options of ``wsm merge``."""
    return cli._parser().parse_args(["merge", *map(str, arguments)])


# --- explicit inputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("run/100", "run/100", None),
        ("run/100:0.5", "run/100", 0.5),
        ("run/100:-1e-2", "run/100", -0.01),
        ("gs://bucket/run", "gs://bucket/run", None),
        ("gs://bucket/run:2", "gs://bucket/run", 2.0),
        ("C:folder", "C:folder", None),
        ("run:infant", "run:infant", None),
    ],
)
def test_an_input_is_split_only_where_a_number_follows(text, path, weight):
    assert parse_input(text) == (path, weight)


@pytest.mark.parametrize("weight", ["nan", "-NaN", "inf", "+inf", "1e400"])
def test_a_weight_that_is_not_finite_is_refused(weight):
    with pytest.raises(UsageError, match=r"the weight of a is .*; it must be a finite number"):
        parse_input(f"a:{weight}")


def test_weights_of_explicit_inputs():
    mean = parse("mean")
    np.testing.assert_allclose(input_weights([("a", None), ("b", None)], mean, has_curve=False), [0.5, 0.5])
    np.testing.assert_allclose(input_weights([("a", 0.2), ("b", 0.8)], mean, has_curve=False), [0.2, 0.8])
    np.testing.assert_allclose(input_weights([("a", None)] * 3, parse("cosine")), merge_weights("cosine", 3))
    np.testing.assert_array_equal(input_weights([("a", None)] * 3, parse("wma")), wma_weights(3))
    reverse = changed(mean, order="reverse")
    np.testing.assert_array_equal(input_weights([("a", 0.2), ("b", 0.8)], reverse, has_curve=False), [0.8, 0.2])
    with pytest.raises(UsageError, match="not both"):
        input_weights([("a", 0.2), ("b", 0.8)], parse("cosine"))
    with pytest.raises(UsageError, match="b has no weight"):
        input_weights([("a", 0.2), ("b", None)], mean, has_curve=False)


def test_unusual_weights_are_named():
    names = ["a", "b", "c"]
    assert negative(names, np.asarray([0.5, 0.5, 0.0])) is None
    assert negative(names, np.asarray([1.5, -0.5, 0.0])) == "the weight of b is negative, -0.5"
    several = "2 weights are negative; the least, -0.5, is that of c"
    assert negative(names, np.asarray([1.7, -0.2, -0.5])) == several
    assert negative(names, {"w": np.asarray([1.2, -0.2, 0.0]), "v": np.asarray([1.5, 0.0, -0.5])}) == several
    assert odd_sum([0.3, 0.3]) == "the weights sum to 0.6, not to 1; they are used as given"
    assert odd_sum([]) is odd_sum([0.25, 0.75]) is odd_sum([0.1] * 10) is None  # the last is not 1 in floats


def test_unusual_weights_warn_and_merge_all_the_same(reference, tmp_path, capsys):
    a, b = (reference.merge_stream / step for step in ("45", "48"))
    assert cli.main(["merge", f"{a}:-0.5", f"{b}:2", f"--output={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        f"wsm: warning: the weight of {a} is negative, -0.5",
        "wsm: warning: the weights sum to 1.5, not to 1; they are used as given",
    ]
    assert printed.out == f"merged 2 checkpoints into {tmp_path / 'out'}\n"
    assert_same_bits(orbax.load_tree(tmp_path / "out"), merge_checkpoints([a, b], [-0.5, 2.0]))
    assert cli.main(["merge", f"{a}:0.5", f"{b}:0.5", f"--output={tmp_path / 'usual'}"]) == 0
    assert capsys.readouterr().err == ""


def test_explicit_inputs_make_a_merge(reference, tmp_path):
    paths = [str(reference.merge_stream / step) for step in ("3", "6", "9")]
    specs = merge_inputs.make_specs(asked(*paths, "--curve=wma", f"--output={tmp_path / 'out'}"))
    (merge,) = specs.values()
    assert merge.paths == tuple(map(Path, paths))
    np.testing.assert_array_equal(merge.weights, wma_weights(3))
    assert merge.output == tmp_path / "out"
    assert merge.record["curve"] == "wma"
    assert merge.record["weights"] == wma_weights(3).tolist()
    assert not (tmp_path / "out").exists()


def test_a_curve_over_inputs_that_are_not_oldest_first_is_refused(reference, tmp_path, capsys):
    """A shell sorts 12 before 9."""
    paths = [str(reference.merge_stream / step) for step in ("12", "9")]
    options = ["merge", *paths, f"--output={tmp_path / 'out'}"]
    assert cli.main([*options, "--curve=ema"]) == 2
    message = (
        f"{paths[0]} is not in the order of the steps, but a curve takes the oldest first; give {paths[1]} {paths[0]}"
    )
    assert message in capsys.readouterr().err
    assert cli.main(options) == 0  # equal weights know no order
    check_order(["a/step9", "b/step3", "a/step9", "a/step10/", "plain"])  # two series, and a repetition
    check_order(["runs/seed2", "runs/seed1"])  # numbers, but no steps
    with pytest.raises(UsageError, match="the oldest first; give a/step9 a/step10"):
        check_order(["a/step10", "a/step9"])


def test_a_folder_of_checkpoints_says_what_it_holds(reference, tmp_path, capsys):
    assert cli.main(["merge", str(reference.merge_stream), f"--output={tmp_path / 'out'}"]) == 2
    assert f"it holds those of steps {MERGE} to {STEPS}: add --count=N for the newest N" in capsys.readouterr().err


# --- one window of a run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name", "steps"),
    [
        (["--curve=wma", "--window=0.25run"], "wma-4x3-at-48", [39, 42, 45, 48]),
        (["--curve=ema:0.9", "--window=24steps", "--count=2", "--last_step=36"], "ema0.9-2x12-at-36", [24, 36]),
        (["--curve=best:2", "--count=8", "--interval=6"], "best2-8x6-at-48", list(range(6, 49, 6))),
        (["--curve=lawa", "--count=2", "--name=mine"], "mine", [45, 48]),
    ],
)
def test_a_window_makes_a_merge(reference, arguments, name, steps):
    options = asked(f"--run={reference.path}", *arguments)
    specs = merge_run.make_specs(options)
    (merge,) = specs.values()
    assert list(specs) == [merge.record["name"]] == [name]
    assert merge.paths == tuple(reference.merge_stream / str(step) for step in steps)
    window = select(reference, len(steps), last_step=steps[-1], interval=steps[1] - steps[0])
    expected = window_weights(parse(options.curve), reference, window)
    np.testing.assert_array_equal(merge.weights, expected)
    assert merge.output == reference.merged(name)
    assert merge.record["steps"] == steps
    assert merge.record["curve"] == options.curve
    assert merge.record["weights"] == expected.tolist()
    assert merge.record["config_hash"] == reference.facts["config_hash"]
    json.dumps(merge.record)
    assert not reference.merged(name).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--count=2", "--last_step=6"], "step 3 lies in the warm-up"),
        (["--count=15"], ""),  # the oldest at step 6, the warm-up ends at 5
        (["--count=1", "--every=3", "--last_step=9"], "step 3 lies in the warm-up"),
    ],
)
def test_checkpoints_of_the_warm_up_are_a_warning(reference, tmp_path, capsys, arguments, said):
    assert (
        cli.main(["merge", f"--run={reference.path}", "--curve=linear", f"--output={tmp_path / 'out'}", *arguments])
        == 0
    )
    err = capsys.readouterr().err
    assert (f"wsm: warning: {said} of {reference.path}, which ends at step 5" in err) if said else "warm-up" not in err


@pytest.mark.integration
def test_a_merge_that_lies_elsewhere_is_evaluated_by_its_path(reference, tmp_path, capsys):
    paths = [str(reference.merge_stream / step) for step in ("45", "48")]
    assert cli.main(["merge", *paths, f"--output={tmp_path / 'mine'}"]) == 0
    capsys.readouterr()
    assert cli.main(["eval", f"--run={reference.path}", f"--merged={tmp_path / 'mine'}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == str(tmp_path / "mine")
    wide = jax.tree.map(lambda x: np.concatenate([x, x], axis=-1), orbax.load_tree(tmp_path / "mine"))
    orbax.save_tree(tmp_path / "wide", wide)
    assert cli.main(["eval", f"--run={reference.path}", f"--merged={tmp_path / 'wide'}"]) == 2
    assert f"{tmp_path / 'wide'}: leaf " in capsys.readouterr().err
    assert cli.main(["eval", f"--run={reference.path}", "--merged=nowhere"]) == 2
    assert f"{reference.path} has no merge 'nowhere', and no such folder is there" in capsys.readouterr().err


@pytest.mark.integration
def test_a_merge_is_evaluated_although_the_checkpoints_are_gone(reference, tmp_path, capsys):
    copy = shutil.copytree(reference.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    record = merge_checkpoints([reference.merge_stream / "45"], [1.0], copy / "merged" / "mine")
    assert record["inputs"][0]["weight"] == 1.0
    assert cli.main(["eval", f"--run={copy}", "--merged=mine", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert cli.main(["eval", f"--run={reference.path}", "--step=45", "--json"]) == 0
    assert found["loss"] == json.loads(capsys.readouterr().out)["loss"]


def test_leaves_that_share_their_weights_need_not_say_whose(reference):
    options = asked(f"--run={reference.path}", "--curve=cosine", "--count=4", "--explain")
    rows = merge_request.explain(merge_run.make_specs(options))
    assert {row["weights of"] for row in rows} == {None}


def test_explaining_needs_no_output_that_is_free(reference, capsys):
    step = str(reference.merge_stream / "45")
    for arguments in ([step], [step, f"--output={step}"]):
        assert cli.main(["merge", *arguments, "--explain", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert {(row["policy"], row["result"]) for row in rows} == {("average", "float32")}


def test_the_best_checkpoints_are_merged_and_counted(reference, tmp_path, capsys):
    output = tmp_path / "best"
    assert cli.main(["merge", f"--run={reference.path}", "--curve=best:2", "--count=16", f"--output={output}"]) == 0
    assert capsys.readouterr().out == f"merged 2 checkpoints into {output}\n"
    two = merge_checkpoints([reference.merge_stream / step for step in ("36", "48")], [0.5, 0.5])
    assert_same_bits(orbax.load_tree(output), two)


def test_a_merge_like_another_run_records_which(reference, tmp_path, capsys):
    rates = tmp_path / "rates.py"
    rates.write_text("def half(step):\n    return 1e-3 if step < 42 else 5e-4\n")
    for arguments, curve, source in (
        ([f"--schedule={rates}:half"], "schedule-half", f"{rates}:half"),
        ([f"--like={reference.path}"], "like-reference", str(reference.path)),
    ):
        options = ["merge", f"--run={reference.path}", "--count=4", f"--output={tmp_path / curve}", "--json"]
        assert cli.main([*options, *arguments]) == 0
        record = json.loads(capsys.readouterr().out)
        assert (record["curve"], record["schedule"], record["name"]) == (curve, source, f"{curve}-4x3-at-48")
        expected = [0.0, 0.5, 0.0, 0.5] if curve == "schedule-half" else [0.0, 0.0, 0.0, 1.0]
        np.testing.assert_allclose(record["weights"], expected, atol=1e-6)
        assert orbax.user_metadata(tmp_path / curve)["schedule"] == source


def test_a_window_past_its_merge_and_in_another_order(reference, tmp_path, capsys):
    """The default name tells; one line warns of the weight below zero; leaf by leaf where the leaves differ."""
    options = [f"--run={reference.path}", "--curve=cosine", "--count=4", "--extrapolate=1.5", "--order=scramble:3"]
    specs = merge_run.make_specs(asked(*options))
    (merge,) = specs.values()
    assert Path(merge.output or "").name == "cosine-extrapolate1.5-scramble3-4x3-at-48"
    expected = merge_weights("cosine", 4, extrapolate=1.5, order="scramble:3")
    np.testing.assert_array_equal(merge.weights, expected)
    assert (merge.record["curve"], merge.record["extrapolate"], merge.record["order"]) == ("cosine", 1.5, "scramble:3")
    (least,) = np.flatnonzero(expected < 0)
    warning = f"wsm: warning: the weight of {merge.paths[least]} is negative, {expected[least]:g}\n"
    assert capsys.readouterr().err == warning
    (merge,) = merge_run.make_specs(asked(*options, "--weight_decay_aware")).values()
    assert all(len(np.flatnonzero(vector < 0)) == 1 for vector in merge.weights.values())
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["merge", *options, f"--output={tmp_path / 'past'}", "--output_item=default", "--verify"]) == 0
    assert orbax.item_names(tmp_path / "past") == ["default"]
    assert_same_bits(orbax.load_tree(tmp_path / "past"), merge_checkpoints(merge.paths, expected))


def test_the_record_of_weights_by_rule_has_them_by_leaf(reference, tmp_path):
    paths = [reference.merge_stream / step for step in ("45", "48")]
    rules = [("embedding", [-0.5, 1.5]), ("", [0.0, 1.0])]
    record = merge_checkpoints(paths, rules, tmp_path / "out")
    names = reference.facts["decay_mask"]
    assert record["weights"] == {name: [-0.5, 1.5] if "embedding" in name else [0.0, 1.0] for name in names}
    assert_same_bits(orbax.load_tree(tmp_path / "out"), merge_checkpoints(paths, rules))
    assert_same_bits(merge_checkpoints(paths, record["weights"]), merge_checkpoints(paths, rules))
    assert any("embedding" in name for name in names) and not all("embedding" in name for name in names)


# --- one merge at every so many steps --------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize(
    ("more", "ends"),
    [
        (["--curve=cosine"], [12, 24, 36, 48]),
        (["--curve=cosine", "--last_step=40"], [12, 24, 36]),
        # These need a constant rate: the first window, from step 3, begins in the warm-up of 5 steps.
        (["--curve=cosine", "--weight_decay_aware"], [24, 36, 48]),
        (["--schedule={rates}:half"], [24, 36, 48]),
    ],
)
def test_every_is_one_merge_after_the_other(reference, tmp_path, capsys, more, ends):
    (tmp_path / "rates.py").write_text("def half(step):\n    return 1e-3 if step < 30 else 5e-4\n")
    window = [f"--run={reference.path}", "--window=12steps", "--json"]
    rule = [argument.format(rates=tmp_path / "rates.py") for argument in more]
    assert cli.main(["merge", *window, *rule, "--every=12", f"--output={tmp_path / 'series'}"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["steps"][-1] for record in records] == ends
    assert sorted(path.name for path in (tmp_path / "series").iterdir()) == sorted(r["name"] for r in records)
    for record, end in zip(records, ends, strict=True):
        one = tmp_path / f"one-{end}"
        single = [argument for argument in rule if "last_step" not in argument]
        assert cli.main(["merge", *window, *single, f"--last_step={end}", f"--output={one}"]) == 0
        expected = json.loads(capsys.readouterr().out)
        for field in ("name", "curve", "schedule", "count", "interval", "steps", "weights", "config_hash"):
            assert record[field] == expected[field], field
        assert [entry["path"] for entry in record["inputs"]] == [entry["path"] for entry in expected["inputs"]]
        assert Path(record["output"]) == tmp_path / "series" / record["name"]
        # One merge is an ordered sum, many are a matrix product: equal within their common error bound.
        for a, b in zip(*(jax.tree.leaves(orbax.load_tree(p)) for p in (record["output"], one)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=8 * 2.0**-24 * float(abs(b).max()))
        assert orbax.user_metadata(record["output"]) == record


def test_a_series_is_one_merge_for_each_window(reference):
    arguments = [f"--run={reference.path}", "--curve=minus_sqrt", "--count=3", "--every=6"]
    for more in ([], ["--weight_decay_aware"]):
        specs = merge_run.make_specs(asked(*arguments, *more))
        assert list(specs) == [f"minus_sqrt-3x3-at-{end}" for end in range(12, STEPS + 1, 6)]
        for end, merge in zip(range(12, STEPS + 1, 6), specs.values(), strict=True):
            assert merge.steps == (end - 6, end - 3, end)
            for vector in merge.weights.values() if more else [merge.weights]:
                assert vector.shape == (3,)
                assert more or vector.tolist() == merge_weights("minus_sqrt", 3).tolist()


# --- what is refused -------------------------------------------------------------------------------------------------


def test_an_output_that_exists_is_refused_before_anything_is_written(reference, tmp_path, capsys):
    folder = tmp_path / "series"
    (folder / "linear-4x3-at-36").mkdir(parents=True)
    options = [f"--run={reference.path}", "--curve=linear", "--count=4"]
    assert cli.main(["merge", *options, "--every=12", f"--output={folder}"]) == 2
    assert capsys.readouterr().err == f"wsm: {folder}/linear-4x3-at-36 exists; choose another name or remove it\n"
    assert [path.name for path in folder.iterdir()] == ["linear-4x3-at-36"]
    for more in ([*options, "--last_step=36"], [str(reference.merge_stream / "48")]):
        assert cli.main(["merge", *more, f"--output={folder / 'linear-4x3-at-36'}"]) == 2
        assert "linear-4x3-at-36 exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--curve=linear"], "--count=N or --window=W"),
        (["--count=3"], "needs --curve=C, --schedule=FILE.py:NAME or --like=RUN"),
        (["--curve=linear", "--window=13steps"], "no multiple of the interval of 3 steps; 12steps is"),
        (["--curve=linear", "--count=4", "--every=7"], "every=7 is no multiple"),
        (["--curve=linear", "--count=4", "--every=6", "--name=x"], "--name goes with one merge"),
        (["--curve=best:5", "--count=16"], "best:5 needs 5 checkpoints with a validation loss, but 4 of"),
        (["--curve=best:2", "--count=16", "--weight_decay_aware"], "has no weight-decay-aware form"),
        (["--like=/nowhere", "--count=4"], "/nowhere is not a run directory"),
        (["--curve=linear", "--count=4", "--every=x"], "--every"),
        (["--curve=linear", "--count=4", "--name=../x"], "--name=../x must be the name of one folder; it is made in"),
        (["--curve=linear", "--count=4", "--name=/abs"], "--name=/abs must be the name of one folder"),
        (["--curve=linear", "--count=4", "--name=."], "--name=. must be the name of one folder"),
        (["--curve=linear", "--count=4", "--name="], "--name= is empty"),
        (["--curve=search", "--count=4", "--name=.."], "--name=.. must be the name of one folder"),
        (["--curve=linear", "--count=99999999999999999999"], "--count"),
        (["--curve=linear", "--count=999999999999999999"], "before there are any"),
        (["--curve=linear", "--count=2", "--interval=99999999999999999999"], "--interval"),
        (["--curve=linear", "--count=2", "--last_step=99999999999999999999"], "--last_step"),
        (["--curve=learned", "--count=2", "--fit_steps=999999999999999999"], "fit_steps=999999999999999999 must be at"),
        (["--curve=linear", "--count=2", "--spacing=true"], "--spacing goes with checkpoint folders"),
        (["--curve=search", "--count=2", "--order=reverse"], "--order changes the weights of a rule; --curve=search"),
    ],
)
def test_bad_options_are_refused_in_one_line(reference, arguments, words, capsys):
    assert cli.main(["merge", f"--run={reference.path}", *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.startswith("wsm: ")
    assert message.count("\n") == 1
    assert not (reference.path / "merged").exists()
