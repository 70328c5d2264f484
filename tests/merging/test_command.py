"""The options of `wsm merge`: what they ask for, all of it before an array is read, and what comes of it."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.merging.options import asked
from tests.runs import STEPS, assert_same_bits
from wsm_jax import cli, merge_checkpoints, merge_weights
from wsm_jax.checkpoints import orbax
from wsm_jax.cli import merge_request, merge_run
from wsm_jax.merging.selection import select
from wsm_jax.merging.weighting import parse, window_weights

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.xdist_group("train")


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
