"""Ling: its counts, the layer of DeepSeek-V3 in transformers, the balance of experts, and runs of it by every verb."""

import contextlib
import dataclasses
import io
import json
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.runs import ROOT, assert_same_bits, assert_same_checkpoints, records
from wsm_jax import Run, UsageError, cli, load_tree, named_leaves
from wsm_jax.config import OptimizerConfig
from wsm_jax.models import experts, family, ling, model, presets
from wsm_jax.models.ling_fields import LingFields
from wsm_jax.training import optimizer

pytest_plugins = ["tests.runs"]

BIAS = "blocks/router/bias"
COUNTS = {
    "ling_tiny": (5_209_520, 2_112_944),
    "ling_small": (49_748_096, 16_717_952),
    "ling_mini": (16_255_643_392, 1_432_973_056),  # the paper's
}
SMALL = LingFields(
    layers=2, d_model=16, heads=2, kv_heads=1, head_dim=8, d_ff=16, experts=4, expert_ff=8, groups=2, groups_kept=1,
    context=16, vocab_size=64,
)  # fmt: skip


def shapes(config: LingFields) -> Any:
    return jax.eval_shape(model.build(config).init, jax.random.key(0))


@pytest.mark.parametrize("name", COUNTS)
def test_a_preset_has_its_parameters_of_which_a_token_passes_some(name):
    """Nothing is allocated."""
    config: Any = presets.with_vocabulary(presets.preset(name), 4096 if name == "ling_tiny" else 1)
    count = model.parameter_count(shapes(config))
    assert (count, model.active_parameters(config, count)) == COUNTS[name]
    multiplied = COUNTS[name][1] - config.vocab_size * config.d_model
    scores = 12 * config.layers * config.heads * config.head_dim * config.context
    assert model.flops_per_token(config, count) == 6 * multiplied + scores


def test_the_leaves_are_declared_and_the_bias_is_neither_decayed_nor_orthogonalised():
    declared = ling.leaves(SMALL)
    family.check_leaves(declared, shapes(SMALL))
    vectors = {path for path in declared if path.rpartition("/")[2] in ("bias", "scale")}
    assert {path for path, leaf in declared.items() if not leaf.decayed} == vectors and BIAS in vectors
    assert declared["blocks/experts/down"].muon == (2, 3) and declared["first/mlp/up/kernel"].muon == (0, 1)
    assert all(declared[path].muon is None for path in (*vectors, "blocks/router/kernel", "token_embedding"))


@pytest.mark.parametrize("grouped", ["blocks", "dense"])
def test_a_layer_answers_as_that_of_deepseek_v3(grouped):
    """``tests/golden/make_experts.py`` made the file."""
    found = load_file(ROOT / "tests" / "golden" / "experts.safetensors")
    gate, up = np.split(found["experts.gate_up_proj"], 2, axis=1)
    weights = {"gate": gate, "up": up, "down": found["experts.down_proj"]}
    weights = {name: jnp.asarray(matrix.transpose(0, 2, 1)) for name, matrix in weights.items()}
    bias, router = jnp.asarray(found["gate.e_score_correction_bias"]), jnp.asarray(found["gate.weight"].T)
    choice = {"top": 3, "groups": 4, "kept": 2, "scale": 2.5}

    @jax.jit
    def answer(x: jax.Array) -> Any:
        own = experts.mixture(x, router, bias, weights, **choice, grouped=grouped, factor=1.0)
        return experts.route(x[0] @ router, bias, **choice), *own

    routing, y, told = answer(jnp.asarray(found["x"]))
    order, theirs = np.argsort(routing.chosen, axis=1), np.argsort(found["chosen"], axis=1)
    for own, golden in ((routing.chosen, found["chosen"]), (routing.weights, found["weights"])):
        ours = np.take_along_axis(np.asarray(own), order, axis=1)
        np.testing.assert_allclose(ours, np.take_along_axis(golden, theirs, axis=1), rtol=1e-5)
    up, gate, down = (found[f"shared_experts.{name}_proj.weight"].T for name in ("up", "gate", "down"))
    shared = np.asarray(jax.nn.silu(found["x"] @ gate)) * (found["x"] @ up) @ down
    np.testing.assert_allclose(y + shared, found["y"], atol=2e-5)
    np.testing.assert_array_equal(told["load"], np.bincount(found["chosen"].ravel(), minlength=12))


@pytest.mark.integration
def test_weights_and_segments_of_packed_rows_count():
    """Two sequences in one row are the two by themselves, in their loss and in where their tokens go."""
    built = model.build(SMALL)
    params = built.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, SMALL.vocab_size)
    weights = jnp.asarray([[0.0] * 3 + [1.0] * 5, [0.0] * 5 + [1.0] * 3])
    apart, alone = model.training_loss(built, params, tokens[:, :-1], tokens[:, 1:], weights * 2)
    row = {
        "weights": weights.reshape(1, 16) * 2,
        "segments": jnp.repeat(jnp.asarray([1, 2]), 8)[None],
        "positions": jnp.tile(jnp.arange(8), 2)[None],
    }
    flat = (tokens[:, :-1].reshape(1, 16), tokens[:, 1:].reshape(1, 16))
    packed, together = model.training_loss(built, params, *flat, **row)
    np.testing.assert_allclose(packed, apart, rtol=1e-6)
    np.testing.assert_array_equal(together["load"], alone["load"])
    assert abs(float(model.training_loss(built, params, *flat)[0] - packed)) > 1e-3


def test_the_bias_brings_skewed_experts_to_balance():
    config = dataclasses.replace(SMALL, experts=16, experts_per_token=2, groups=4, groups_kept=2, bias_rate=5e-3)
    logits = jax.random.normal(jax.random.key(0), (2, 512, 16)) + jnp.linspace(-1, 1, 16)[None, None]
    choice = {"top": 2, "groups": 4, "kept": 2, "scale": 2.5}

    def update(params: Any, _: None) -> Any:
        bias = params["blocks"]["router"]["bias"]
        load = jax.vmap(lambda logits, bias: experts.route(logits, bias, **choice).load)(logits, bias)
        return ling.after_update(config, params, {"load": load, "dropped": jnp.zeros(())})

    start = {"blocks": {"router": {"bias": jnp.zeros((2, 16)), "kernel": jnp.ones(3)}}, "head": jnp.ones(2)}
    params, found = jax.jit(lambda params: jax.lax.scan(update, params, length=200))(start)
    bias = params["blocks"]["router"]["bias"]
    assert set(found) == {"dropped", "max_violation", "min_violation"}
    assert found["max_violation"][0] > 1 and found["min_violation"][0] > 0.5
    assert found["max_violation"][-20:].max() < 0.15 and found["min_violation"][-20:].max() < 0.15
    assert bias[0, 0] > 0.1 > -0.1 > bias[0, -1] and abs(float(bias.mean())) < 1e-6
    assert_same_bits({**params, "blocks": {"router": {**params["blocks"]["router"], "bias": 0}}},
                     {**start, "blocks": {"router": {**start["blocks"]["router"], "bias": 0}}})  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 1}, "model.layers is 1; the first layer is dense"),
        ({"kv_heads": 3}, "model.heads=2 is not a multiple of model.kv_heads=3"),
        ({"groups": 3}, "model.experts=4 is not a multiple of model.groups=3"),
        ({"groups_kept": 3}, "model.groups_kept=3 is more than model.groups=2"),
        ({"experts_per_token": 3}, "model.experts_per_token=3, but model.groups_kept leaves 2 to it"),
        ({"rotary_pct": 0.1}, "model.rotary_pct=0.1 rotates 0 of the 8 features"),
        ({"grouped": "sparse"}, "model.grouped is 'sparse'; choose auto, blocks, ragged_dot, dense"),
        ({"grouped": "ragged_dot"}, "model.grouped=ragged_dot computes every expert"),
        ({"buffer_factor": 0.0}, "model.buffer_factor is 0.0; it must be positive"),
        ({"drop_limit": 1.5}, "model.drop_limit is 1.5; it must be between 0 and 1"),
    ],
)
def test_fields_that_make_no_network_are_refused_in_one_line(change, message):
    with pytest.raises(UsageError) as error:
        model.build(dataclasses.replace(SMALL, **change))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_schedule_free_would_pull_the_bias_back_and_is_refused():
    with pytest.raises(UsageError, match=f"schedule_free would pull {BIAS} back"):
        optimizer.make(OptimizerConfig(name="schedule_free"), lambda count: 1e-3, ling.leaves(SMALL))


def test_a_run_of_another_machine_is_evaluated_with_what_is_here():
    found = family.of(SMALL).portable(dataclasses.replace(SMALL, grouped="ragged_dot", attention="splash"))
    assert (found.grouped, found.attention) == ("blocks", "xla")


# --- runs ------------------------------------------------------------------------------------------------------------

STEPS = 12
FIELDS = {
    "duration": f"{STEPS}steps",
    "model": dataclasses.replace(SMALL, vocab_size=0, bias_rate=1e-2),
    "accumulate": 2,
    "checkpoint__resume_interval": "6steps",
    "checkpoint__branch_points": "6steps",
    "evaluation__interval": "6steps",
    "log__interval": "1steps",
}


@pytest.fixture(scope="module")
def run(tiny: Any) -> Run:
    return tiny.run("ling", **FIELDS)


def verb(*arguments: str) -> Any:
    """Standard output of ``wsm``, read as JSON."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main(list(arguments)) == 0
    return json.loads(said.getvalue())


@pytest.mark.integration
@pytest.mark.xdist_group("ling")
def test_a_run_records_its_balance_and_moves_its_bias(run):
    found = run.metrics("train")
    assert found[-1]["loss"] < found[0]["loss"] and {"lm_loss", "router_z", "max_violation"} <= set(found[-1])
    assert all(record["dropped"] == 0 and "load" not in record for record in found)
    assert found[-1]["loss"] > found[-1]["lm_loss"]
    biases = [named_leaves(load_tree(run.merge_stream / str(step)))[BIAS] for step in (3, STEPS)]
    assert all(0 < np.abs(bias).max() <= steps * 1e-2 * 1.5 for bias, steps in zip(biases, (3, STEPS), strict=True))
    moments = named_leaves(load_tree(run.resume_stream / str(STEPS), "opt_state"))
    assert [path for path in moments if path.endswith(BIAS)]
    assert all(not np.asarray(leaf).any() for path, leaf in moments.items() if path.endswith(BIAS))
    assert run.facts["decay_mask"][BIAS] is False


@pytest.mark.integration
@pytest.mark.xdist_group("ling")
def test_a_run_goes_on_bit_for_bit_and_branches(tiny, run):
    place = tiny.folder / "ling-again"
    shutil.copytree(run.path, place)
    shutil.rmtree(place / "checkpoints" / "resume" / str(STEPS))
    again = tiny.run("ling-again", **FIELDS)
    assert [record["step"] for record in again.metrics("start")] == [0, 6]
    branch = tiny.run("ling-branch", branch_from=f"{run.path}@6", **{**FIELDS, "model__bias_rate": 0.0})
    assert records(again) == records(run)
    assert_same_checkpoints(run, again)
    saved = [named_leaves(load_tree(place)) for place in (run.merge_stream / "6", branch.merge_stream / str(STEPS))]
    np.testing.assert_array_equal(saved[0][BIAS], saved[1][BIAS])


@pytest.mark.integration
@pytest.mark.xdist_group("ling")
def test_it_is_merged_and_evaluated_by_the_verbs(run):
    """The bias is averaged, or the last, as it is asked."""
    made = {name: run.path / "merged" / name for name in ("averaged", "last")}
    one = ("merge", f"--run={run.path}", "--curve=mean", "--count=2", "--json")
    verb(*one, f"--output={made['averaged']}")
    verb(*one, f"--output={made['last']}", f"--leaves=^{BIAS}$=last")
    first, last = (named_leaves(load_tree(run.merge_stream / str(step))) for step in (STEPS - 3, STEPS))
    for name, weight in (("averaged", 0.5), ("last", 1.0)):
        merged = named_leaves(load_tree(made[name]))
        for path, leaf in merged.items():
            share = weight if path == BIAS else 0.5
            expected = (1 - share) * np.asarray(first[path]) + share * np.asarray(last[path])
            np.testing.assert_allclose(leaf, expected, atol=1e-7, err_msg=path)
        assert 3.0 < verb("eval", f"--run={run.path}", f"--merged={name}", "--json")["loss"] < 6.0


# Every command line in one process of four devices.
PROCESS = """
import contextlib, io, json, sys
from wsm_jax import cli
from wsm_jax.training import loop
compiled, outcomes = loop.jit_train_step, []
for arguments, may in json.loads(sys.argv[1]):
    loop.jit_train_step = compiled if may else None
    with contextlib.redirect_stderr(io.StringIO()) as said:
        outcomes.append([cli.main(["train", "--quiet", *arguments]), said.getvalue()])
print(json.dumps(outcomes))
"""


@pytest.mark.integration
@pytest.mark.xdist_group("ling")
def test_over_devices_it_trains_as_on_one_and_stops_where_too_much_is_dropped(tiny, run):
    file = tiny.file("ling-devices", **FIELDS)
    cases = [
        ("spread", True, "model.buffer_factor=4.0"),
        ("dropping", True, "model.buffer_factor=0.5"),
        ("indivisible", False, "model.experts=6"),
    ]
    commands = [
        ([f"--config={file}", f"--run={tiny.folder / name}", "--config.mesh.expert=4", f"--config.{field}"], may)
        for name, may, field in cases
    ]
    cheap = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {cheap}"}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, check=False,
        env=tiny.environment | flags,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spread, dropping, indivisible = json.loads(done.stdout.splitlines()[-1])
    assert spread == [0, ""]
    losses = [[record["loss"] for record in found.metrics("train")] for found in (run, Run(tiny.folder / "spread"))]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert dropping[0] == 2 and dropping[1].count("\n") == 1
    assert "of the assignments to experts were dropped, more than model.drop_limit=0.02; raise" in dropping[1]
    assert indivisible[0] == 2 and "dimension 1, expert, is no multiple of mesh.expert=4" in indivisible[1]
    assert not (tiny.folder / "indivisible").exists() and not list((tiny.folder / "dropping").glob("checkpoints/*/*"))
