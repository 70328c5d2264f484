"""Averages from a configuration: which, with which settings, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from wsm_jax import UsageError
from wsm_jax.checkpoints import run_schedule
from wsm_jax.config import AveragingConfig, CheckpointConfig, Config, ModelConfig, OptimizerConfig, ScheduleConfig
from wsm_jax.training import averaging


def make(snapshot="point", schedule=None, **settings):
    config = Config(
        duration="1000steps",
        batch_size=8,
        model=ModelConfig(context=64),
        checkpoint=CheckpointConfig(merge_interval="20steps", snapshot=snapshot),
        averaging=AveragingConfig(**settings),
        schedule=schedule or ScheduleConfig(),
    )
    return averaging.from_config(config, run_schedule.from_config(config))


def test_none_are_kept_unless_asked_for():
    assert make() == {}


def test_every_name_is_known_and_says_how_often_it_is_updated():
    found = make("mean", names=",".join(averaging.NAMES), every=5, swa_every="40steps", swa_start="400steps")
    assert {name: rule.every for name, rule in found.items()} == {
        "mean": 5,
        "ema": 5,
        "running_mean": 5,
        "swa": 40,
        "lawa": 20,
        "wsm": 5,
        "power_ema_0.05": 5,
        "power_ema_0.1": 5,
    }
    assert list(make("both")) == ["mean"]


@pytest.mark.parametrize(
    ("text", "decay"),
    [
        ("0.99/step", 0.99),
        (" 9.5e-1 / step ", 0.95),
        ("0.9999/tok", 0.9999**512),  # 8 sequences of 64 tokens a step
        ("10steps", 0.5 ** (1 / 10)),
        ("5.12ktok", 0.5 ** (1 / 10)),
        ("0.01run", 0.5 ** (1 / 10)),
    ],
)
def test_the_decay_of_an_ema_in_steps_or_tokens_or_as_a_half_life(text, decay):
    rule = make(names="ema", ema_decay=text)["ema"]
    state = rule.init(jnp.zeros(()))
    for step, value in enumerate((1.0, 2.0), 1):
        state = rule.update(state, jnp.float32(value), step)
    wanted = (decay * 1.0 + 2.0) / (decay + 1.0)
    np.testing.assert_allclose(rule.read(state, jnp.float32(2.0), 2), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": "ema,swab"}, r"unknown average 'swab' in averaging\.names; known: ema, running_mean, swa"),
        ({"names": "ema, ema"}, "names an average twice"),
        ({"snapshot": "all"}, r"checkpoint\.snapshot='all' is not one of point, mean, both"),
        ({"names": "ema", "every": 3}, r"averaging\.every=3 does not divide the 20 steps"),
        ({"names": "ema", "every": 0}, r"averaging\.every=0"),
        ({"names": "ema", "ema_decay": "1.5/step"}, r"averaging\.ema_decay='1\.5/step' is not a decay between 0 and 1"),
        ({"names": "ema", "ema_decay": "1.5/tok"}, r"averaging\.ema_decay='1\.5/tok' is not a decay between 0 and 1"),
        ({"names": "ema", "ema_decay": "0/tok"}, r"averaging\.ema_decay='0/tok'"),
        ({"names": "ema", "ema_decay": "0.99"}, r"averaging\.ema_decay='0\.99' is not a duration"),
        ({"names": "ema", "ema_decay": "0.9.9/step"}, r"averaging\.ema_decay='0\.9\.9/step' is not a duration"),
        ({"names": "ema", "ema_decay": "0steps"}, r"averaging\.ema_decay='0steps' is 0 steps"),
        ({"names": "swa", "swa_start": "755steps"}, r"averaging\.swa_start='755steps' \(755 steps\) is not a multiple"),
        ({"names": "lawa", "lawa_count": 0}, r"averaging\.lawa_count is 0"),
        ({"names": "lawa", "lawa_every": "0run"}, r"averaging\.lawa_every='0run' is 0 steps"),
        (
            {"names": "wsm", "wsm_window": "110steps"},
            r"averaging\.wsm_window='110steps' \(110 steps\) must be a multiple",
        ),
        ({"names": "wsm", "wsm_curve": "lineal"}, r"unknown curve 'lineal'"),
        (
            {"names": "wsm", "wsm_every": "50steps", "every": 20},
            r"averaging\.wsm_every='50steps' \(50 steps\), and that one",
        ),
        ({"names": "power_ema", "power_ema_widths": "0.1,wide"}, r"power_ema_widths='0\.1,wide' is not a list"),
        ({"names": "power_ema", "power_ema_widths": ""}, "needs one width or several different"),
        ({"names": "power_ema", "power_ema_widths": "0.1,0.10"}, "several different"),
        ({"names": "power_ema", "power_ema_widths": "0.5"}, "width of a power-function EMA is 0.5"),
    ],
)
def test_settings_that_do_not_fit_name_their_field(settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        make(**settings)
    assert "\n" not in str(caught.value)


def test_swa_under_a_cyclic_rate_samples_the_ends_of_the_cycles():
    cycles = ScheduleConfig(name="cyclic", cycle="50steps", cycle_start="500steps")
    assert make(names="swa", schedule=cycles, swa_every="50steps", swa_start="500steps")["swa"].every == 50
    with pytest.raises(UsageError, match=r"averaging\.swa_every='0\.01run' must be schedule\.cycle='50steps'"):
        make(names="swa", schedule=cycles)
    late = ScheduleConfig(name="cyclic", cycle="20steps", cycle_start="750steps")  # its cycles end at 770, 790, ...
    with pytest.raises(UsageError, match=r"cycle_start='750steps' \(750 steps\) is not a multiple of schedule\.cycle"):
        make(names="swa", schedule=late, swa_every="20steps", swa_start="760steps")


def test_there_is_no_rate_to_decay_in_a_schedule_free_run():
    config = Config(averaging=AveragingConfig(names="wsm"), optimizer=OptimizerConfig(name="schedule_free"))
    with pytest.raises(UsageError, match=r"averaging\.names=wsm .* optimizer\.name=schedule_free"):
        averaging.from_config(config, run_schedule.from_config(config))
