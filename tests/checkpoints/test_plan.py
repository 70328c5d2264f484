"""The plan of a run: every duration in steps, and what cannot be planned is refused by field."""

import re
from typing import Any

import numpy as np
import pytest

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints import plan as plan_lib
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.checkpoints.plan import plan
from wsm_jax.checkpoints.run import begin
from wsm_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    ModelConfig,
)
from wsm_jax.errors import UsageError
from wsm_jax.io import memory

FACTS = {"branch_from": None, "branch_step": None, "branch_points": [], "data_hash": "abc"}


def settings(**fields: Any) -> Config:
    """1,000 steps of 8 x 16 tokens."""
    usual: dict[str, Any] = {"duration": "1000steps", "batch_size": 8, "model": ModelConfig(context=16)}
    return Config(**usual | fields)


def test_the_plan_resolves_every_duration_to_steps():
    found = plan(
        settings(
            data=DataConfig(switch_source="text:better", switch_at="0.8run"),
            checkpoint=CheckpointConfig(
                merge_interval="0.02run", resume_interval="12800tok", branch_points="0.75run, 900steps"
            ),
            evaluation=EvaluationConfig(interval="0.1run"),
            log=LogConfig(interval="10steps"),
        )
    )
    assert found == plan_lib.Plan(
        steps=1000,
        tokens_per_step=128,
        switch_step=800,
        merge_interval=20,
        resume_interval=100,
        branch_points=(750, 900),
        evaluation_interval=100,
        log_interval=10,
    )


def test_a_run_measured_in_tokens():
    assert plan(settings(duration="128ktok")).steps == 1000
    assert plan(settings(duration="128.001ktok")).steps == 1001


def test_without_a_switch_and_without_validation():
    found = plan(settings(evaluation=EvaluationConfig(interval=""), data=DataConfig(validation_fraction=0.0)))
    assert found.switch_step is None
    assert found.evaluation_interval == 0
    assert found.branch_points == ()


def test_the_merge_stream_has_every_interval_that_fits():
    assert plan(settings(checkpoint=CheckpointConfig(merge_interval="300steps"))).merge_steps() == [300, 600, 900]
    assert plan(settings(checkpoint=CheckpointConfig(merge_interval="0.5run"))).merge_steps() == [500, 1000]


def test_the_resume_stream_adds_branch_points_and_the_end_once_each():
    found = plan(settings(checkpoint=CheckpointConfig(resume_interval="300steps", branch_points="600steps,750steps")))
    assert found.resume_steps() == [300, 600, 750, 900, 1000]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"duration": "0steps"}, r"duration='0steps' is 0 steps"),
        ({"duration": "long"}, r"duration='long' is not a duration"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"evaluation": EvaluationConfig(batch_size=0)}, r"evaluation\.batch_size is 0; it must be at least 1"),
        ({"data": DataConfig(validation_fraction=0.0)}, r"data\.validation_fraction=0 leaves nothing to evaluate"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be at least 0 and have at most 63 bits"),
        ({"data": DataConfig(workers=-1)}, r"data\.workers is -1"),
        ({"evaluation": EvaluationConfig(tokens=-1)}, r"evaluation\.tokens is -1"),
        ({"accumulate": 3}, "batch_size=8 is not a multiple of accumulate=3"),
        ({"log": LogConfig(interval="0.0001run")}, r"log\.interval='0\.0001run' is 0 steps of a run of 1000"),
        ({"evaluation": EvaluationConfig(interval="0steps")}, r"evaluation\.interval='0steps'"),
        ({"checkpoint": CheckpointConfig(merge_interval="")}, r"checkpoint\.merge_interval='' is not"),
        ({"checkpoint": CheckpointConfig(resume_interval="5")}, r"checkpoint\.resume_interval='5' is not"),
        ({"checkpoint": CheckpointConfig(branch_points="0.5run,0.75")}, r"checkpoint\.branch_points='0\.75' is not"),
        (
            {"checkpoint": CheckpointConfig(branch_points="2run")},
            r"branch_points=.2run. is 2000 steps, but the run ends at",
        ),
        ({"checkpoint": CheckpointConfig(resume_keep=0)}, r"checkpoint\.resume_keep"),
        ({"checkpoint": CheckpointConfig(merge_keep=-1)}, r"checkpoint\.merge_keep"),
        ({"data": DataConfig(switch_at="0.5run")}, r"data\.switch_source"),
        ({"data": DataConfig(switch_source="text:x")}, r"data\.switch_at"),
    ],
)
def test_a_configuration_that_makes_no_plan_names_the_field(fields, message):
    with pytest.raises(UsageError, match=message):
        plan(settings(**fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"duration": "1e30steps"}, "a run has at most 2,147,483,647"),
        ({"batch_size": 10**9}, "batch_size=1000000000 x model.context=16 is 1.6e+10 tokens in one batch; at most"),
        ({"evaluation": EvaluationConfig(batch_size=10**9)}, "evaluation.batch_size=1000000000 x model.context=16"),
        (
            {"duration": "1e9steps", "checkpoint": CheckpointConfig(merge_interval="1steps")},
            "checkpoint.merge_interval='1steps' makes 1,000,000,000 checkpoints in 1,000,000,000 steps; at most",
        ),
        (
            {"duration": "1e9steps", "checkpoint": CheckpointConfig(resume_interval="7steps")},
            "checkpoint.resume_interval='7steps' makes 142,857,142 checkpoints",
        ),
        ({"batch_size": "8"}, "batch_size is '8'; it must be a whole number"),
        ({"model": ModelConfig(context=0)}, "model.context is 0"),
    ],
)
def test_sizes_that_no_machine_can_hold_are_refused_at_once(fields, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        plan(settings(**fields))


def test_a_batch_that_does_not_fit_the_memory_is_refused(tmp_path, monkeypatch):
    config = settings(evaluation=EvaluationConfig(batch_size=4))
    for free, refused in ((8 * 16 * 12, False), (8 * 16 * 12 - 1, True)):
        monkeypatch.setattr(memory, "free", lambda free=free: free)
        if refused:
            with pytest.raises(UsageError, match=r"^batch_size=8 takes .* GB of memory for one batch, but .* lower it"):
                run_lib.resumed_plan(tmp_path, config)
        else:
            run_lib.resumed_plan(tmp_path, config)


UNUSED = {
    "averaging.running_mean_start": "2run",
    "averaging.wsm_window": "2run",
    "averaging.wsm_every": "1001steps",
    "averaging.swa_start": "2run",
    "averaging.swa_every": "often",
    "averaging.lawa_every": "2run",
    "averaging.wsm_curve": "foo",
    "schedule.curve": "foo",
    "schedule.decay": "2run",
    "schedule.cycle": "2run",
    "schedule.cycle_start": "3run",
    "preview.windows": "0.1run,2run",
    "evaluation.interval": "2run",
}


@pytest.mark.parametrize("name", UNUSED)
def test_a_field_that_the_run_does_not_use_is_looked_at_too(name, tmp_path):
    group, field = name.split(".")
    config = settings()
    setattr(getattr(config, group), field, UNUSED[name])
    with pytest.raises(UsageError, match=f"^{re.escape(name)}"):
        run_lib.resumed_plan(tmp_path, config)
    assert list(tmp_path.iterdir()) == []
    begin(tmp_path, config, FACTS)  # a run that an earlier version began so goes on
    orbax.save_tree(run_lib.merge_stream(tmp_path) / "20", {"w": np.ones(2, np.float32)})
    assert run_lib.resumed_plan(tmp_path, config).steps == 1000


def test_a_file_is_no_place_for_a_run(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UsageError, match="notes is a file, not the folder of a run"):
        run_lib.resumed_plan(tmp_path / "notes", settings())
