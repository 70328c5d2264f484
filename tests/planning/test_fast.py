"""The estimate from shapes beside the real train step, compiled for eight simulated devices."""

import json
import os
import subprocess
import sys

import pytest

from tests.runs import ROOT
from wsm_jax.config import Config, DataConfig, ModelConfig, with_fields
from wsm_jax.models.llama import LlamaFields
from wsm_jax.parallel import topologies
from wsm_jax.planning import traffic
from wsm_jax.planning.fast import Estimator
from wsm_jax.planning.figures import figures
from wsm_jax.planning.needs import Needs
from wsm_jax.planning.planned import planned

PLAIN = {"attention": "xla", "scan_unroll": 1, "loss_blocks": 1, "vocab_size": 1024, "context": 128}
GPT = Config(batch_size=32, model=ModelConfig(layers=4, d_model=128, heads=4, **PLAIN))
LLAMA = Config(batch_size=16, model=LlamaFields(layers=6, d_model=256, heads=8, kv_heads=4, d_ff=512, **PLAIN))
CASES = {
    "data": (GPT, {}),
    "fsdp, recomputed": (GPT, {"batch_size": 128, "mesh__fsdp": 8, "model__remat": "full"}),
    "three axes, accumulated": (
        LLAMA,
        {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "accumulate": 2, "averaging__names": "ema"},
    ),
}
# A process with eight devices compiles the step of every case and tells both figures.
PROCESS = """
import json
import jax, jax.numpy as jnp
from tests.planning.test_fast import CASES, EIGHT
from wsm_jax.config import with_fields
from wsm_jax.parallel import mesh as mesh_lib, sharding
from wsm_jax.planning import hlo
from wsm_jax.planning.fast import Estimator
from wsm_jax.planning.planned import planned
from wsm_jax.training.train_step import jit_train_step

found = {}
for name, (config, changes) in CASES.items():
    config = with_fields(config, **changes)
    run = planned(config, EIGHT, mesh_lib.from_config(config.mesh))
    where = sharding.batch_sharding(run.mesh)
    batch = jax.ShapeDtypeStruct((config.batch_size, config.model.context), jnp.int32, sharding=where)
    step = jit_train_step(run.model, run.optimizer, run.mesh, run.state, accumulate=config.accumulate)
    program = step.lower(run.state, {"inputs": batch, "targets": batch}).compile()
    memory, needs = program.memory_analysis(), Estimator()(run)
    sent = sum(hlo.bytes_sent(program.as_text(), run.axes).values())
    found[name] = [
        [memory.argument_size_in_bytes, memory.temp_size_in_bytes, sent],
        [needs.state + needs.batch, needs.temporaries, sum(needs.collectives.values())],
    ]
print(json.dumps(found))
"""
EIGHT = topologies.parse("v5e:2x4")


@pytest.mark.integration
def test_the_estimate_is_near_what_the_compiler_takes():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", PROCESS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    ratios = {
        name: [guess / true for true, guess in zip(*both, strict=True)]
        for name, both in json.loads(done.stdout).items()
    }
    for arguments, temporaries, sent in ratios.values():
        assert arguments == pytest.approx(1, abs=1e-3)
        # XLA fuses less for CPUs than for what is planned, and scatters no gradients there but reduces them everywhere.
        assert 0.5 <= temporaries <= 1.5 and 0.3 <= sent <= 2, ratios


@pytest.mark.integration
def test_knobs_turn_the_estimate_the_right_way():
    def temporaries(**changes: object) -> int:
        return Estimator()(planned(with_fields(GPT, **changes), EIGHT)).temporaries

    base = temporaries()
    assert temporaries(model__remat="full") < 0.6 * base
    assert temporaries(batch_size=16) < 0.7 * base
    assert temporaries(batch_size=64, accumulate=2) == pytest.approx(base, rel=0.2)
    words = {"model__vocab_size": 32768}
    assert temporaries(**words, model__loss_blocks=4) < temporaries(**words) - 2 * 4 * 128 * 32768  # half its logits
    assert base < temporaries(mesh__data=2, mesh__tensor=4) < 3 * base  # four times the rows of a chip


def test_what_is_sent_by_hand():
    run = planned(with_fields(GPT, accumulate=2), EIGHT)
    assert traffic.bytes_sent(run) == {"data": 2 * 2 * 4 * run.parameters * 7 / 8}
    run = planned(with_fields(GPT, mesh__tensor=2), EIGHT)
    rows, width, layers = 32 // 4 * 128, 128, 4
    # Each direction: attention and feed-forward of every layer; and the tied vocabulary's.
    assert traffic.bytes_sent(run)["tensor"] == pytest.approx(2 * rows * 4 * width * (4 * layers + 1) / 2)


def test_the_figures_of_a_plan_by_hand():
    run = planned(with_fields(GPT, checkpoint__merge_keep=3, duration="100steps"), EIGHT)
    room = int(0.95 * 16e9)
    needs = Needs("by hand", state=10, temporaries=room - 11, batch=1, collectives={"data": 400e9})
    found = figures(run, needs, 2e9)
    over = figures(run, Needs("by hand", state=10, temporaries=room, batch=1, collectives={}), 2e9)
    assert found["fits"] and found["over"] == 0 and not over["fits"] and over["over"] == 11
    assert found["roofline_step_seconds"] == found["busy_seconds"]["links"] == 2.0 and found["bound_by"] == "links"
    assert found["tokens_per_day"] == 32 * 128 / 2 * 86400
    assert found["mfu_bound"] == pytest.approx(found["flops_per_step"] / (8 * 197e12 * 2))
    one = 4 * run.parameters
    assert found["disk_bytes"]["merge"] == 4 * one and found["save_seconds"]["merge"] == one / 2e9
    assert found["merge_seconds"] == 17 * one / 2e9


def test_documents_are_not_needed_where_the_vocabulary_is_given():
    missing = DataConfig(source="text:/nowhere/*.txt", tokenizer="/nowhere/tokenizer.json")
    assert planned(with_fields(GPT, data=missing), EIGHT).parameters
