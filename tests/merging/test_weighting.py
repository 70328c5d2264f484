"""The rules that weigh a window: their names, averages, the best by validation loss, schedules, weight decay."""

import json
import re
import shutil

import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runs import RESUME, STEPS
from wsm_jax import DECAYS, Run, UsageError, cli, merge_weights, schedule_weights
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from wsm_jax.core import schedules
from wsm_jax.core.coefficients import ema_weights, update_weights, wma_weights
from wsm_jax.core.weight_decay import decayed_checkpoint_weights
from wsm_jax.merging import weighting
from wsm_jax.merging.selection import Window, select
from wsm_jax.merging.weighting import count_weights, parse, window_weights

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.xdist_group("train")

BY_COUNT = [*DECAYS, "mean", "lawa", "wma", "ema:0.9"]


def window(*steps):
    """A window at these steps, for rules that read no checkpoint."""
    return Window((), steps, steps[1] - steps[0] if len(steps) > 1 else 1)


def configured(folder, *, peak=1e-3, weight_decay=0.0, branch_step=None, **schedule):
    """A run directory of 1,000 steps with that rate, before its first step."""
    config = Config(
        duration="1000steps",
        model=ModelConfig(context=16),
        data=DataConfig(),
        optimizer=OptimizerConfig(peak_lr=peak, weight_decay=weight_decay),
        schedule=ScheduleConfig(**{"warmup": "100steps", **schedule}),
    )
    facts = {"branch_step": branch_step, "data_hash": "0" * 64, "decay_mask": {"kernel": True, "bias": False}}
    run_lib.begin(folder, config, facts)
    return Run(folder)


@pytest.fixture
def constant(tmp_path):
    return configured(tmp_path / "constant")


# --- names -----------------------------------------------------------------------------------------------------------


@given(st.sampled_from(BY_COUNT), st.integers(1, 60))
def test_every_rule_is_a_convex_combination_over_every_count(name, count):
    c = count_weights(parse(name), count)
    assert c.shape == (count,)
    assert c.min() >= 0
    assert c.sum() == pytest.approx(1.0, abs=1e-13)


def test_each_name_is_its_formula():
    for curve in DECAYS:
        assert count_weights(parse(curve), 9).tolist() == merge_weights(curve, 9).tolist()
    for name in ("mean", "lawa"):
        np.testing.assert_allclose(count_weights(parse(name), 9), np.full(9, 1 / 9), rtol=1e-15)
    assert count_weights(parse("wma"), 9).tolist() == wma_weights(9).tolist()
    assert count_weights(parse("ema:0.75"), 9).tolist() == ema_weights(9, 0.75).tolist()
    assert count_weights(parse("ema:5e-1"), 9).tolist() == ema_weights(9, 0.5).tolist()
    assert parse("best:8").best == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lineer", f"unknown curve 'lineer'; known: {', '.join(DECAYS)}, mean, lawa, wma, ema:DECAY, best:N"),
        ("", "unknown curve ''"),
        ("1-sqrt", r"unknown curve '1-sqrt'.*did you mean minus_sqrt\?"),
        ("best", "unknown curve 'best'.*best:N"),
        ("best:2.5", "unknown curve 'best:2.5'"),
        ("best:-1", "unknown curve"),
        ("best:0", "curve 'best:0': the number of best checkpoints must be at least 1"),
        ("wma:3", "unknown curve 'wma:3'"),
        ("ema:", "unknown curve 'ema:'"),
        ("ema:nan", "unknown curve 'ema:nan'"),
        ("ema:1", r"must lie in \[0, 1\), got 1.0"),
    ],
)
def test_a_name_that_is_no_rule(text, message):
    with pytest.raises(UsageError, match=message):
        parse(text)


def test_help_names_every_rule(capsys):
    for verb in ("merge", "weights"):
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        words = set(re.findall(r"[a-zA-Z_:]+", capsys.readouterr().out))
        assert set(weighting.NAMES) <= words


def test_wsm_weights_knows_the_rules_too(capsys, tmp_path):
    assert cli.main(["weights", "--curve=ema:0.9", "--count=5", "--json", f"--plot={tmp_path / 'ema'}"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["weights"] == ema_weights(5, 0.9).tolist()
    np.testing.assert_allclose(printed["update_weights"], [1 - 0.9 ** (5 - i) for i in range(1, 5)])
    assert (tmp_path / "ema.svg").exists()
    assert cli.main(["weights", "--curve=best:2", "--count=5"]) == 2
    assert "best:2 needs a run" in capsys.readouterr().err


# --- the best by validation loss -------------------------------------------------------------------------------------


def test_the_best_are_those_of_lowest_validation_loss(reference):
    """It validates at 12, 24, 36 and 48, and its loss falls."""
    losses = {record["step"]: record["loss"] for record in reference.metrics("validation")}
    assert sorted(losses, key=lambda step: losses[step]) == [48, 36, 24, 12]
    for best, chosen in ((1, {48}), (3, {24, 36, 48})):
        found = window_weights(parse(f"best:{best}"), reference, select(reference, 16))
        assert found.tolist() == [1 / best if step in chosen else 0.0 for step in range(3, STEPS + 1, 3)]
    found = window_weights(parse("best:1"), reference, select(reference, 4, last_step=45))
    assert found.tolist() == [1.0, 0.0, 0.0, 0.0]  # 36, though 48 is better: it lies outside


def test_the_order_of_losses_decides_not_that_of_steps(reference, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", "run.json"):
        shutil.copy(reference.path / name, copy)
    losses = {12: 2.0, 24: 1.0, 36: None, 48: 1.0}  # None: it was not finite
    text = "".join(json.dumps({"kind": "validation", "step": s, "loss": loss}) + "\n" for s, loss in losses.items())
    (copy / "metrics.jsonl").write_text(text + '{"kind": "train", "step": 36, "loss": 0.5}\n{"kind": "valid')
    whole = window(*range(RESUME, STEPS + 1, RESUME))
    assert window_weights(parse("best:2"), Run(copy), whole).tolist() == [0.0, 0.5, 0.0, 0.5]
    assert window_weights(parse("best:1"), Run(copy), whole).tolist() == [0.0, 0.0, 0.0, 1.0]  # the newer of equals
    with pytest.raises(UsageError, match=r"best:4 needs 4 checkpoints.*but 3 of the window's 4, steps 12 to 48 of"):
        window_weights(parse("best:4"), Run(copy), whole)


def test_too_few_validated_checkpoints_say_what_to_set(reference):
    with pytest.raises(UsageError, match=r"but 1 of the window's 4, .* have one; .* with evaluation.interval=3steps"):
        window_weights(parse("best:2"), reference, select(reference, 4))


# --- schedules -------------------------------------------------------------------------------------------------------


def test_like_another_run_is_its_schedule_over_the_rate_of_this_one(constant, tmp_path):
    configured(tmp_path / "wsd", name="wsd", curve="minus_sqrt", decay="0.4run")
    rule = weighting.like(tmp_path / "wsd")
    assert rule.name == "like-wsd"
    real = schedules.wsd(1e-3, "minus_sqrt", total_steps=1000, decay_steps=400)
    steps = range(600, 1001, 50)
    found = window_weights(rule, constant, window(*steps))
    np.testing.assert_allclose(found, schedule_weights(real, steps, 1e-3), rtol=0, atol=1e-7)
    mean = [1 - np.diff(np.power([n - 1, n], 1.5))[0] * 2 / 3 / np.sqrt(8) for n in range(1, 9)]  # of 1 - sqrt(t)
    np.testing.assert_allclose(update_weights(found), mean, rtol=0, atol=0.01)
    assert window_weights(rule, constant, window(400, 500, 600)).tolist() == [0.0, 0.0, 1.0]  # before the decay
    assert window_weights(rule, constant, window(900)).tolist() == [1.0]


def test_like_a_branch_starts_where_it_was_branched(constant, tmp_path):
    configured(tmp_path / "branch", name="cooldown", branch_step=800)
    found = window_weights(weighting.like(tmp_path / "branch"), constant, window(700, 800, 900, 1000))
    # linear over updates 800 .. 999: means 1 - 49.5 / 200 and 1 - 149.5 / 200
    np.testing.assert_allclose(update_weights(found), [1.0, 1 - 49.5 / 200, 1 - 149.5 / 200], atol=1e-6)


SCHEDULES = """
import math
import optax

DECAY = 200
linear = optax.linear_schedule(1e-3, 0.0, DECAY, transition_begin=800)
number = 3

def stepwise(step):
    if step < 800:
        return 1e-3
    return 1e-3 * (1 - (step - 800) / DECAY)

def rising(step):
    return 1e-3 * step / 1000

def negative(step):
    return -1e-3

def undefined(step):
    return math.log(800 - step)

def no_number(step):
    return "fast"
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "rates.py").write_text(SCHEDULES)
    return tmp_path / "rates.py"


@pytest.mark.parametrize("name", ["linear", "stepwise"])
def test_a_schedule_from_a_file_of_arrays_or_of_single_steps(constant, file, name):
    rule = weighting.from_file(f"{file}:{name}")
    assert rule.name == f"schedule-{name}"
    steps = (700, 800, 850, 900, 1000)
    exact = optax.linear_schedule(1e-3, 0.0, 200, transition_begin=800)
    found = window_weights(rule, constant, window(*steps))
    np.testing.assert_allclose(found, schedule_weights(exact, steps, 1e-3), rtol=0, atol=1e-6)
    assert found[0] == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rising", "rates.py:rising.* over steps 800 to 1000, relative to the run's rate 0.001: .*must not increase"),
        ("negative", r"from update 800 to 900 the schedule is -0\.001 on average, but .* at peak=0\.001"),
        ("undefined", "is no function step -> learning rate .ValueError: "),
        ("no_number", "rates.py:no_number.* .ValueError: could not convert string to float"),
    ],
)
def test_a_schedule_that_cannot_be_emulated(constant, file, name, message):
    with pytest.raises(UsageError, match=message) as refused:
        window_weights(weighting.from_file(f"{file}:{name}"), constant, window(800, 900, 1000))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rates.py", "not of the form FILE.py:NAME"),
        (":linear", "not of the form FILE.py:NAME"),
        ("rates.py:1 + 1", "not of the form FILE.py:NAME"),
        ("nowhere.py:linear", "no file nowhere.py"),
        ("{file}:quadratic", "rates.py defines no function quadratic"),
        ("{file}:number", "rates.py defines no function number"),
    ],
)
def test_a_file_without_the_schedule(file, text, message):
    with pytest.raises(UsageError, match=message):
        weighting.from_file(text.format(file=file))


def test_a_file_that_fails(file):
    file.write_text("import nowhere_at_all\n")
    with pytest.raises(UsageError, match=r"rates.py fails \(ModuleNotFoundError: No module named 'nowhere_at_all'\)"):
        weighting.from_file(f"{file}:linear")


@pytest.mark.parametrize(
    ("fields", "steps", "message"),
    [
        ({}, (50, 100, 150), "between steps 50 and 150 of .* it goes from 0.000505 to 0.001"),
        ({"name": "wsd", "decay": "0.2run"}, (700, 800, 900), "it goes from 0.001 to 0.000505"),
    ],
)
def test_a_schedule_is_relative_to_a_rate_that_is_constant(tmp_path, file, fields, steps, message):
    run = configured(tmp_path / "other", **fields)
    with pytest.raises(UsageError, match=f"need a constant rate, but .*{message}"):
        window_weights(weighting.from_file(f"{file}:linear"), run, window(*steps))


# --- the weight-decay-aware form -------------------------------------------------------------------------------------


def aware(run, rule, steps):
    return window_weights(rule, run, window(*steps), weight_decay_aware=True)


@pytest.mark.parametrize("name", BY_COUNT)
def test_the_aware_form_goes_to_the_leaves_that_decay_shrinks(tmp_path, name):
    run = configured(tmp_path / "run", peak=0.01, weight_decay=0.2)
    rule, plain = parse(name), count_weights(parse(name), 6)
    found = aware(run, rule, range(200, 701, 100))
    assert set(found) == {"kernel", "bias"}
    np.testing.assert_array_equal(found["bias"], plain)
    expected = decayed_checkpoint_weights(
        np.minimum(update_weights(plain), 1), learning_rate=0.01, weight_decay=0.2, steps_per_interval=100
    )
    np.testing.assert_allclose(found["kernel"], expected, rtol=0, atol=1e-7)
    assert np.abs(found["kernel"] - plain).max() > 1e-3
    settings = {"learning_rate": 0.01, "weight_decay": 0.2, "steps_per_interval": 100}
    np.testing.assert_allclose(count_weights(rule, 6, **settings), expected, rtol=0, atol=1e-15)
    if name in DECAYS:
        np.testing.assert_allclose(expected, merge_weights(name, 6, **settings), rtol=0, atol=1e-14)


def test_the_aware_form_of_a_schedule_is_the_run_with_that_schedule(tmp_path):
    """Step by step: theta <- (1 - lr wd) theta - lr u, with rate and direction constant within each interval."""
    (tmp_path / "stairs.py").write_text("def stairs(step):\n    return 0.05 * (1 - ((step - 200) // 100) / 5)\n")
    rule = weighting.from_file(f"{tmp_path / 'stairs.py'}:stairs")
    run = configured(tmp_path / "run", peak=0.05, weight_decay=0.3)
    steps = range(200, 701, 100)
    random = np.random.default_rng(0)
    for leaf, decay in (("kernel", 0.3), ("bias", 0.0)):
        constant = scheduled = random.normal()
        saved = [constant]
        for interval in range(5):
            u, rate = random.normal(), 0.05 * (1 - interval / 5)
            for _ in range(100):
                constant = (1 - 0.05 * decay) * constant - 0.05 * u
                scheduled = (1 - rate * decay) * scheduled - rate * u
            saved.append(constant)
        assert float(aware(run, rule, steps)[leaf] @ np.asarray(saved)) == pytest.approx(scheduled, abs=1e-5)
        if decay:
            assert abs(float(window_weights(rule, run, window(*steps)) @ np.asarray(saved)) - scheduled) > 0.01


def test_without_weight_decay_or_with_one_checkpoint_the_aware_form_is_the_plain_one(tmp_path, constant):
    assert aware(constant, parse("wma"), (200, 300, 400)).tolist() == wma_weights(3).tolist()
    run = configured(tmp_path / "run", weight_decay=0.1)
    assert aware(run, parse("linear"), (50,)).tolist() == [1.0]
    assert count_weights(parse("wma"), 1, learning_rate=0.1, weight_decay=0.1, steps_per_interval=5).tolist() == [1.0]


def test_the_aware_form_needs_a_constant_rate_and_a_rule_that_is_a_decay(tmp_path, reference):
    run = configured(tmp_path / "run", weight_decay=0.1)
    with pytest.raises(UsageError, match="need a constant rate, but between steps 50 and 150"):
        aware(run, parse("linear"), (50, 100, 150))
    with pytest.raises(UsageError, match="best:2 selects checkpoints and emulates no decay"):
        window_weights(parse("best:2"), reference, select(reference, 16), weight_decay_aware=True)
    with pytest.raises(UsageError, match="weight_decay needs learning_rate and steps_per_interval"):
        count_weights(parse("wma"), 3, weight_decay=0.1)
