"""Training: what it computes, stores, prints and refuses."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.runs import (
    BRANCH,
    DIVERGING,
    LOG,
    MERGE,
    RESUME,
    ROOT,
    SIX_STEPS,
    STEPS,
    assert_same_bits,
    assert_whole,
    bigrams,
    ended,
    records,
    to_dict,
)
from wsm_jax import NonFiniteError, Run, UsageError
from wsm_jax.checkpoints import orbax, run_schedule
from wsm_jax.core.trees import path_name
from wsm_jax.data import pipeline, tokens
from wsm_jax.models import model as model_lib
from wsm_jax.models import presets
from wsm_jax.parallel import sharding
from wsm_jax.training import optimizer, train_state
from wsm_jax.training.train_step import make_train_step

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.xdist_group("train")


# --- what is computed ------------------------------------------------------------------------------------------------


def test_the_loss_falls_on_real_text(reference):
    losses = [record["loss"] for record in reference.metrics("train")]
    assert losses[0] == pytest.approx(np.log(384), rel=0.01)  # 300 tokens, padded to a multiple of 128
    assert losses[-1] < losses[0] - 0.5
    validation = [record["loss"] for record in reference.metrics("validation")]
    assert validation == sorted(validation, reverse=True)
    assert validation[-1] < validation[0] - 0.3


@pytest.mark.integration
def test_the_saved_parameters_are_those_of_their_step(reference):
    """Computed again without donation, saving or a loop that runs ahead: no save caught a later update."""
    config = reference.config
    corpus = tokens.prepare(config.data)
    model = model_lib.build(presets.with_vocabulary(config.model, corpus.vocab_size))
    update = optimizer.make(config.optimizer, run_schedule.from_config(config), model.leaves)
    step = jax.jit(make_train_step(model, update))
    state = train_state.initialise(model, update, config.seed, sharding.make_mesh())
    for done in range(1, STEPS + 1):
        batch = pipeline.batch_at(corpus, done - 1, context=16, batch_size=8, seed=config.seed)
        state, _ = step(state, jax.tree.map(jnp.asarray, batch))
        if done % MERGE == 0:
            assert_same_bits(orbax.load_tree(reference.merge_stream / str(done)), state["params"], done)
        if done in (BRANCH, STEPS):
            saved = orbax.load_tree(reference.resume_stream / str(done), "opt_state")
            for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(state["opt_state"]), strict=True):
                assert_same_bits(a, b, done)
    assert int(state["step"]) == STEPS


@pytest.mark.integration
def test_accumulated_micro_batches_are_the_large_batch():
    model = bigrams()
    rows = np.random.default_rng(0).integers(0, 128, (8, 17), dtype=np.int32)
    batch = {"inputs": jnp.asarray(rows[:, :-1]), "targets": jnp.asarray(rows[:, 1:])}
    state = train_state.create(model, optax.sgd(1.0), jax.random.key(0))
    results = {}
    for accumulate in (1, 2, 8):
        step = jax.jit(make_train_step(model, optax.sgd(1.0), accumulate=accumulate))
        results[accumulate] = step(state, batch)
    large, large_metrics = results.pop(1)
    for small, metrics in results.values():
        for name in ("loss", "grad_norm"):
            assert float(metrics[name]) == pytest.approx(float(large_metrics[name]), rel=1e-6)
        for a, b, start in zip(*map(jax.tree.leaves, (small["params"], large["params"], state["params"])), strict=True):
            assert np.abs(a - start).max() > 1e-3
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


# --- what is stored --------------------------------------------------------------------------------------------------


def test_both_streams_of_a_run(reference):
    assert orbax.complete_steps(reference.merge_stream) == list(range(MERGE, STEPS + 1, MERGE))
    assert orbax.complete_steps(reference.resume_stream) == [BRANCH, STEPS - RESUME, STEPS]  # 12 and 24 went
    newest = reference.merge_stream / str(STEPS)
    assert orbax.item_names(newest) == ["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(orbax.abstract_tree(newest))} == {jnp.dtype("float32")}
    assert orbax.user_metadata(newest) == {"tokens": STEPS * 8 * 16}
    assert orbax.item_names(reference.resume_stream / str(STEPS)) == ["opt_state", "params"]
    assert assert_whole(reference) == STEPS
    for item in reference.merge_stream, reference.resume_stream:
        assert all(name.isdigit() for name in os.listdir(item))


def test_the_facts_of_a_run(reference):
    facts = reference.facts
    params = orbax.abstract_tree(reference.merge_stream / str(STEPS))
    assert facts["parameters"] == model_lib.parameter_count(params)
    assert (facts["steps"], facts["tokens_per_step"], facts["merge_interval"]) == (STEPS, 128, MERGE)
    paths = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert set(facts["decay_mask"]) == paths
    assert {name for name, decayed in facts["decay_mask"].items() if not decayed} == {n for n in paths if "norm" in n}
    assert to_dict(Run(reference.path).config) == to_dict(reference.config)


def test_the_records_of_a_run(reference):
    train_records = reference.metrics("train")
    assert [record["step"] for record in train_records] == list(range(LOG, STEPS + 1, LOG))
    for record in train_records:
        assert record["tokens"] == record["step"] * 128
        rounded = 0.05 / record["tokens_per_second"]  # to a tenth, which is much where the machine is busy
        seconds = LOG * 128 / record["tokens_per_second"]
        assert record["seconds"] == pytest.approx(seconds, rel=1.1 * rounded, abs=1e-4)
        assert record["grad_norm"] > 0
        assert 0 <= record["data_seconds"] <= record["seconds"]
        flops = model_lib.flops_per_token(reference.config.model, reference.facts["parameters"])
        tflops = record["tokens_per_second"] * flops / 1e12
        assert record["tflops_per_second"] == pytest.approx(tflops, rel=1e-3 + rounded)
    # Five updates of warm-up; the record shows the rate of its last update, whose count is one less than the step.
    assert train_records[0]["learning_rate"] == pytest.approx(1e-3 * 3 / 6)
    assert {round(record["learning_rate"], 9) for record in train_records[2:]} == {1e-3}
    assert [record["step"] for record in reference.metrics("validation")] == list(range(RESUME, STEPS + 1, RESUME))
    assert next((r["kind"], r["step"]) for r in reference.metrics()) == ("start", 0)


@pytest.mark.integration
def test_the_merge_stream_can_be_short(tiny, reference):
    run = tiny.run("short", duration="24steps", checkpoint__merge_keep=3, checkpoint__branch_points="")
    assert orbax.complete_steps(run.merge_stream) == [18, 21, 24]
    for step in (18, 21, 24):
        saved, expected = (orbax.load_tree(r.merge_stream / str(step)) for r in (run, reference))
        assert_same_bits(saved, expected, step)


# --- the same command again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer__peak_lr": 2e-3}, r"was made with optimizer\.peak_lr=0\.001, now it is 0\.002"),
        ({"seed": 1}, r"was made with seed=0, now it is 1"),
        ({"duration": "60steps"}, r"was made with duration='48steps', now it is '60steps'"),
        ({"checkpoint__merge_interval": "4steps"}, r"checkpoint\.merge_interval='3steps', now it is '4steps'"),
    ],
)
def test_another_configuration_in_the_same_folder(tiny, reference, fields, message):
    before = sorted(reference.path.rglob("*"))
    with pytest.raises(UsageError, match=message):
        tiny.run("reference", **fields)
    assert sorted(reference.path.rglob("*")) == before


@pytest.mark.integration
def test_what_may_change_when_a_run_goes_on(tiny, reference):
    copy = shutil.copytree(reference.path, tiny.folder / "changed")
    shutil.rmtree(copy / "checkpoints" / "resume" / str(STEPS))
    for step in (42, 45, 48):
        shutil.rmtree(copy / "checkpoints" / "merge" / str(step))
    run = tiny.run(
        "changed",
        log__interval="1steps",
        evaluation__interval="",
        data__workers=0,
        checkpoint__resume_interval="5steps",
        checkpoint__resume_keep=1,
    )
    assert run.metrics("start")[-1]["step"] == 36
    assert orbax.complete_steps(run.resume_stream) == [BRANCH, STEPS]
    for step in (42, 45, 48):
        saved, expected = (orbax.load_tree(r.merge_stream / str(step)) for r in (run, reference))
        assert_same_bits(saved, expected, step)
    ours, theirs = records(run), records(reference)
    assert [r for r in ours if r["step"] <= 36] == [r for r in theirs if r["step"] <= 36]
    assert [r["step"] for r in ours if r["step"] > 36] == list(range(37, 49))


@pytest.mark.integration
def test_a_state_that_was_to_be_kept_stays_when_a_later_command_forgets_it(tiny, reference):
    copy = shutil.copytree(reference.path, tiny.folder / "forgetful")
    shutil.rmtree(copy / "checkpoints" / "resume" / str(STEPS))
    config = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**config, "branch_points": [BRANCH, 40]}))
    run = tiny.run("forgetful", checkpoint__branch_points="", checkpoint__resume_keep=1, evaluation__interval="")
    assert orbax.complete_steps(run.resume_stream) == [BRANCH, 40, STEPS]  # also the one that was still to come


@pytest.mark.integration
def test_two_processes_do_not_write_one_run(tiny):
    process = tiny.start("twice", duration="4000steps", checkpoint__resume_interval="4000steps")
    while not (tiny.folder / "twice" / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    status, output = ended(tiny.start("twice", duration="4000steps", checkpoint__resume_interval="4000steps"))
    process.send_signal(signal.SIGTERM)
    assert (status, output) == (
        2,
        f"wsm: {tiny.folder / 'twice'} is being trained by another process; wait for it or use another --run\n",
    )
    status, output = ended(process)
    assert status == 75, output  # and it was not disturbed


@pytest.mark.integration
def test_a_start_that_fails_late_does_not_lock_the_folder(tiny):
    with pytest.raises(UsageError, match="too few for one window"):
        tiny.run("corrected", model__context=100_000)
    run = tiny.run("corrected", **SIX_STEPS)
    assert orbax.complete_steps(run.resume_stream) == [6] and run.config.model.context == 16


# --- as a library ----------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_quiet_means_quiet(tiny):
    """Nothing on either stream, from a fresh process, also from the libraries; and from a thread, where Python allows
    no signal handlers."""
    config = tiny.config(**SIX_STEPS, data__store=str(tiny.folder / "new-store"))
    program = f"""
import json, threading
from wsm_jax.config import from_dict
from wsm_jax.training.loop import train

config = from_dict(json.loads({json.dumps(to_dict(config))!r}))
thread = threading.Thread(target=lambda: train(config, {str(tiny.folder / "library")!r}, quiet=True))
thread.start()
thread.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=tiny.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert orbax.complete_steps(Run(tiny.folder / "library").merge_stream) == [3, 6]


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_signal_handlers_are_put_back(tiny):
    import signal

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(NonFiniteError):
        tiny.run("infinite", **(DIVERGING | {"optimizer__peak_lr": 1e39, "checkpoint__merge_interval": "1steps"}))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
