"""Scores by question: values by hand, differences of pairs, records that come back, what may not be compared."""

import dataclasses
import json
import math

import numpy as np
import pytest

from wsm_jax import UsageError
from wsm_jax.evaluation import scores
from wsm_jax.evaluation.scores import TaskScore, Value

ONE = TaskScore(
    task="t", group="language", model="a", metric="acc", chance=0.25, correct=[1, 0, 0, 1], gold_nats=[1.0, 2, 3, 4],
    gold_bytes=[4, 4, 8, 8], margin=[0.1, -0.1, 0.2, 0.3], facts={"shots": 0, "prompt_hash": "x"},
)  # fmt: skip


def test_figures_are_those_of_the_questions():
    assert ONE.accuracy == (0.5, pytest.approx(np.std([1, 0, 0, 1], ddof=1) / 2))
    assert ONE.bits_per_byte.value == pytest.approx(10 / math.log(2) / 24)
    residual = (np.array([1, 2, 3, 4]) - 10 / 24 * np.array([4, 4, 8, 8])) / math.log(2)
    assert ONE.bits_per_byte.stderr == pytest.approx(math.sqrt(4 / 3 * (residual**2).sum()) / 24)
    assert ONE.gold_margin == (pytest.approx(0.125), pytest.approx(np.std(ONE.margin, ddof=1) / 2))
    assert ONE.gold_margin and ONE.gold_margin.signal_over_noise == pytest.approx(0.125 / ONE.gold_margin.stderr)
    assert ONE.accuracy and ONE.above_chance == (0.25, ONE.accuracy.stderr) and ONE.is_chance
    assert not dataclasses.replace(ONE, correct=[1, 0] * 200, chance=0.25).is_chance
    text = dataclasses.replace(ONE, metric="", correct=[], margin=[])
    assert text.accuracy is None and text.gold_margin is None and not text.is_chance


def test_a_record_is_json_and_comes_back(tmp_path):
    record = json.loads(json.dumps(ONE.record(), allow_nan=False))
    assert (record["accuracy"], record["questions"], record["shots"]) == (0.5, 4, 0)
    assert record["above_chance_signal_over_noise"] == pytest.approx(0.25 / record["accuracy_stderr"])
    back = scores.from_record(record, "here")
    assert (back.accuracy, back.bits_per_byte, back.facts["prompt_hash"]) == (ONE.accuracy, ONE.bits_per_byte, "x")
    single = dataclasses.replace(ONE, correct=[1], gold_nats=[1.0], gold_bytes=[2], margin=[0.5])
    assert json.loads(json.dumps(single.record(), allow_nan=False))["accuracy_stderr"] is None

    with pytest.raises(UsageError, match=r"holds no scores of tasks: it has no records\.jsonl"):
        scores.read(tmp_path)
    (tmp_path / "records.jsonl").write_text('{"task": "t"}\n')
    with pytest.raises(UsageError, match=r"records\.jsonl:1 is no record of a task, as wsm eval --tasks writes them"):
        scores.read(tmp_path)


def test_differences_are_paired_by_question():
    other = dataclasses.replace(ONE, model="b", correct=[1, 1, 0, 1], gold_nats=[1.1, 2.1, 3.2, 4.2])
    found = scores.differences(other, ONE)
    assert found["accuracy"] == (0.25, pytest.approx(0.25))
    assert found["bits_per_byte"].value == pytest.approx(other.bits_per_byte.value - ONE.bits_per_byte.value)
    assert found["bits_per_byte"].stderr < 0.1 * ONE.bits_per_byte.stderr
    for wrong in ({"facts": {"prompt_hash": "y"}}, {"gold_bytes": [4, 4, 8, 9]}, {"gold_nats": [1.0]}):
        with pytest.raises(UsageError, match="t: a and a were asked other questions, or in another way"):
            scores.differences(ONE, dataclasses.replace(ONE, **wrong))


def test_means_are_plain_and_groups_stand_in_the_order_of_the_paper():
    assert scores.mean([Value(1.0, 0.3), Value(2.0, 0.4)]) == (1.5, pytest.approx(0.25))
    named = [dataclasses.replace(ONE, task=task, group=group) for task, group in (("x", "other"), ("y", "code"))]
    assert list(scores.groups([*named, ONE])) == ["language", "code", "other"]
