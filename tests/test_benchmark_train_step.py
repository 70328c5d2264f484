"""The benchmark of training steps: its shapes, and contenders that fail or take too long."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import jax
import pytest

from wsm_jax.config import MODEL_FIELDS
from wsm_jax.models import model, presets

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def cases(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("train_step_cases")


@pytest.fixture
def process(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("train_step_process")


def parameters(fields):
    return model.parameter_count(jax.eval_shape(model.build(fields).init, jax.random.key(0)))


def test_the_models_for_a_card_are_those_of_the_presets(cases):
    names = ("gpt2_small", "gpt2_medium", "llama_3_2_1b")
    for name, shape in zip(names, cases.gpu_shapes(toy=False).values(), strict=True):
        kind = MODEL_FIELDS[shape["family"]]
        own = {field.name for field in dataclasses.fields(kind)}
        fields = kind(**{key: value for key, value in shape.items() if key in own})
        preset = dataclasses.replace(presets.preset(name), context=1024)
        assert parameters(fields) == parameters(preset)
        assert fields.context == 1024 and fields.compute_dtype == "bfloat16"


def test_the_first_contender_has_the_defaults_and_the_last_is_the_compiled_peer(cases):
    shape = cases.cpu_shape("llama", "2,64,4,64,4,512") | {"threads": 2}
    first, *_, last = cases.cpu_variants(shape, "peer/python", parts=True)
    assert json.loads(first.command[-1]) == shape == json.loads(last.command[-1])
    assert (first.name, last.name, last.command[0]) == (cases.OURS, cases.PEER, "peer/python")
    assert [v.name for v in cases.cpu_variants(shape, "", parts=False)] == [cases.OURS]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import time; time.sleep(60)", "did not answer in 1 s"),
        ("print('{}', flush=True); input(); import time; time.sleep(60)", "did not answer in 1 s"),
        ("raise SystemExit('no card')", r"ended early \(no card\)"),
        ("print('no JSON\\\\n{}', flush=True)", "ended early"),
    ],
)
def test_a_contender_that_does_not_answer_is_one_line(process, code, why):
    variant = process.Variant("a contender", [sys.executable, "-c", code])
    with pytest.raises(process.Failed, match=why):
        process.Contender(variant, limit=1 if "1 s" in why else 60).run(3, limit=1)
