"""What an experiment may declare."""

import dataclasses

import numpy as np
import pytest

from wsm_jax.errors import UsageError
from wsm_jax.sweeps import Arm, Choice, Claim, Experiment, RunSpec, difference

GOOD = Experiment(
    "e",
    "An experiment",
    "configs/tiny.py",
    runs={"constant": RunSpec(), "decay": RunSpec({"schedule.name": "cooldown"}, branch_from="constant@0.75run")},
    arms={"last": Arm("constant"), "mean": Arm("constant", {"curve": "linear", "count": 4}), "decay": Arm("decay")},
    choices={"best": Choice(["last", "mean"])},
    claims={"c": Claim("The merge is better than the decay.", difference("best", "decay"))},
)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("runs", {}, "runs is empty"),
        ("seeds", (), "seeds is empty"),
        ("runs", {**GOOD.runs, "b": RunSpec(branch_from="other@5steps")}, "'other@5steps' is not RUN@WHEN"),
        ("runs", {**GOOD.runs, "b": RunSpec(params_from="other")}, "params_from='other' is not an arm"),
        ("arms", {**GOOD.arms, "x": Arm("other")}, "run='other' is not a run; there are constant, decay"),
        ("choices", {"mean": Choice(["last"])}, "'mean' names an arm and a choice"),
        ("choices", {"best": Choice(["other"])}, "'other' is not an arm"),
        ("choices", {"best": Choice([])}, "'best' has no candidates"),
        ("claims", {"c": Claim("...", difference("other", "decay"))}, "claim 'c', 'other' is not an arm or a choice"),
    ],
)
def test_names_that_are_not_there_are_refused(field, value, says):
    with pytest.raises(UsageError, match=says):
        dataclasses.replace(GOOD, **{field: value})


def test_a_difference_is_the_mean_over_the_domains_that_count():
    losses = {("a", "x"): 3.0, ("a", "y"): 5.0, ("b", "x"): 2.0, ("b", "y"): 1.0}
    loss = lambda arm, domain: np.asarray([losses[arm, domain]])  # noqa: E731
    assert difference("a", "b")(loss, ["x", "y"]) == [2.5]
    assert difference("a", "b", ["y", "absent"])(loss, ["x", "y"]) == [4.0]
