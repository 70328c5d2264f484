"""A run whose model leaves settings open keeps what was picked for it."""

import shutil

import pytest

from tests.runs import SIX_STEPS
from wsm_jax import Run
from wsm_jax.config import with_fields
from wsm_jax.evaluation import evaluate
from wsm_jax.io.files import read_json, write_json
from wsm_jax.models import picks
from wsm_jax.parallel.sharding import RULES
from wsm_jax.training.prepare import prepare

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("train")]
pytest_plugins = ["tests.runs"]
OPEN = {"model__attention": "auto", "model__scan_unroll": -1, "model__loss_blocks": -1}
PICKED, BEFORE = ("blocks", 2, 2), ("xla", 1, 1)


@pytest.fixture(scope="module")
def run(tiny):
    """Six updates with what larger models have on CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picks, "LEAST_CONTEXT", 16)
        patch.setattr(picks, "LOGITS", 8 * 8 * 384)
        return tiny.run("picked", **{**SIX_STEPS, **OPEN})


def settings(fields):
    return fields.attention, fields.scan_unroll, fields.loss_blocks


def prepared(config, directory, branch_from=""):
    lines = []
    setup = prepare(config, directory, branch_from, "", None, RULES, lines.append, progress=False)
    return setup, lines


def test_run_json_has_what_was_picked_and_a_line_says_it(tiny, run):
    assert settings(run.config.model) == ("auto", -1, -1)
    assert run.facts["picked"] == {"loss_blocks": 2, "attention": "blocks", "scan_unroll": 2}
    _, lines = prepared(tiny.config(**{**SIX_STEPS, **OPEN}), tiny.folder / "new")
    assert "picked on cpu: model.loss_blocks=1, model.attention=xla, model.scan_unroll=1" in lines


def test_it_goes_on_is_branched_from_and_is_evaluated_with_that(tiny, run):
    config = tiny.config(**{**SIX_STEPS, **OPEN})
    assert settings(prepared(config, run.path)[0].model.config) == PICKED
    assert settings(evaluate.model_and_data(run)[0].config) == PICKED
    longer = with_fields(config, duration="8steps")
    assert settings(prepared(longer, tiny.folder / "on", f"{run.path}@6")[0].model.config) == PICKED
    plain = with_fields(longer, model__attention="xla")
    assert settings(prepared(plain, tiny.folder / "on", f"{run.path}@6")[0].model.config) == ("xla", 2, 2)


def test_a_run_of_an_earlier_version_keeps_what_that_had(tiny, run):
    """Its config.json has the defaults of then, or lacks a field; its run.json tells of no choice."""
    old = shutil.copytree(run.path, tiny.folder / "old")
    values, facts = read_json(old / "config.json"), read_json(old / "run.json")
    values["model"] |= {"attention": "xla", "scan_unroll": 1}
    del values["model"]["loss_blocks"], facts["picked"]
    write_json(old / "config.json", values)
    write_json(old / "run.json", facts)
    setup, lines = prepared(tiny.config(**{**SIX_STEPS, **OPEN}), old)
    assert settings(setup.model.config) == BEFORE
    assert settings(setup.config.model)[:2] == ("xla", 1)
    assert not [line for line in lines if "attention" in line]
    assert settings(evaluate.model_and_data(Run(old))[0].config) == BEFORE
