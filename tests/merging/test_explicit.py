"""Inputs of `wsm merge` given one by one: how each is split, their weights, their order."""

from pathlib import Path

import numpy as np
import pytest

from tests.merging.options import asked
from tests.runs import MERGE, STEPS, assert_same_bits
from wsm_jax import UsageError, cli, merge_checkpoints, merge_weights
from wsm_jax.checkpoints import orbax
from wsm_jax.cli import merge_inputs
from wsm_jax.core.coefficients import wma_weights
from wsm_jax.merging.inputs import check_order, input_weights, negative, odd_sum, parse_input
from wsm_jax.merging.weighting import changed, parse

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.xdist_group("train")


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
