"""One model on many meshes: the same losses, equal shares of the state, and checkpoints that any mesh can read."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import optax
import pytest

from tests.runs import ROOT, SIX_STEPS
from wsm_jax import Run, load_tree, merge_checkpoints, named_leaves
from wsm_jax.checkpoints import storage
from wsm_jax.config import ModelConfig, from_dict, to_dict
from wsm_jax.evaluation import evaluate, tuning
from wsm_jax.merging import offline
from wsm_jax.merging.selection import select
from wsm_jax.models import model as model_lib
from wsm_jax.models.attention import causal_attention
from wsm_jax.parallel import activations, sharding
from wsm_jax.training import train_state
from wsm_jax.training.loop import train
from wsm_jax.training.train_step import jit_train_step

pytest_plugins = ["tests.runs"]
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("meshes")]

UPDATES = 3
ONE_AXIS = [{axis: count} for count in (2, 4, 8) for axis in sharding.AXES]
TOGETHER = [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "expert": 2}]
FIELDS = {**SIX_STEPS, "checkpoint__resume_interval": "3steps", "log__interval": "1steps", "averaging__names": "ema"}


def mesh_of(axes: dict[str, int]) -> Any:
    sizes = {**dict.fromkeys(sharding.AXES, 1), **axes}
    return sharding.make_mesh(jax.devices()[: int(np.prod(list(sizes.values())))], sizes)


@functools.cache
def start() -> tuple[Any, Any, Any]:
    """A model, an optimizer and their state on one device."""
    model = model_lib.build(ModelConfig(layers=2, d_model=16, heads=2, context=16, vocab_size=256, loss_blocks=2))
    optimizer = optax.adamw(1e-2)
    return model, optimizer, train_state.initialise(model, optimizer, 0, mesh_of({}))


def losses(axes: dict[str, int]) -> dict[str, Any]:
    """Three updates of a tiny model by AdamW, with what the first device holds of the state."""
    mesh, (model, optimizer, state) = mesh_of(axes), start()
    abstract = train_state.abstract(model, optimizer, mesh)
    state = jax.tree.map(lambda leaf, like: jax.device_put(np.asarray(leaf), like.sharding), state, abstract)
    step, found = jit_train_step(model, optimizer, mesh, state), []
    for _ in range(UPDATES):
        rows = np.random.default_rng(0).integers(0, 256, (8, 17), dtype=np.int32)
        batch = sharding.global_batch(mesh, {"inputs": rows[:, :-1], "targets": rows[:, 1:]})
        state, metrics = step(state, batch)
        found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    held = [
        shard.data.nbytes
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
        if shard.device == jax.devices()[0]
    ]
    whole = {path for path, leaf in named_leaves(state["params"]).items() if leaf.sharding.is_fully_replicated}
    return {
        "losses": found,
        "bytes": sum(held),
        "whole": sorted(whole),
        "parameters": model_lib.parameter_count(state["params"]),
    }


def loss_memory(axes: dict[str, int]) -> dict[str, float]:
    """Bytes a device of a step with 157,184 words, compiled and not run: temporaries, and all logits of its rows."""
    rows, context, vocabulary = 8, 1024, 157184
    mesh, optimizer = mesh_of(axes), optax.sgd(1e-2)
    shape: dict[str, Any] = {"layers": 1, "d_model": 64, "heads": 8, "context": context, "vocab_size": vocabulary}
    fields = ModelConfig(**shape, attention="xla", loss_blocks=16)
    state = train_state.abstract(model := model_lib.build(fields), optimizer, mesh)
    tokens = jax.ShapeDtypeStruct((rows, context), np.int32, sharding=sharding.batch_sharding(mesh))
    step = jit_train_step(model, optimizer, mesh, state).lower(state, {"inputs": tokens, "targets": tokens}).compile()
    logits = rows // sharding.batch_parts(mesh) * context * vocabulary // axes.get("tensor", 1) * 4
    return {"temporaries": cast(Any, step.memory_analysis()).temp_size_in_bytes, "logits": logits}


def splash_calls(axes: dict[str, int]) -> int:
    """Kernels in attention and its gradient, lowered for TPUs with each device's part of the rows and the heads."""
    mesh = mesh_of(axes)
    q, k = (jax.ShapeDtypeStruct((8, 256, heads, 64), "bfloat16") for heads in (4, 2))

    def total(q: Any, k: Any, v: Any) -> Any:
        with activations.on(mesh, sharding.RULES):
            return causal_attention(q, k, v, "splash").astype("float32").sum()

    lowered = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, k).lower(lowering_platforms=("tpu",))
    return lowered.as_text().count("tpu_custom_call")


def show(settings: str, folder: Path) -> dict[str, Any]:
    """Everything that takes eight devices; what is asserted of it."""
    config = from_dict(json.loads(settings))
    config.mesh.fsdp = 4
    run = train(config, folder / "run", quiet=True)
    for stream in (run.resume_stream, run.merge_stream):
        (stream / "6").rename(folder / f"{stream.name}-6")
    records = run.metrics("train")
    config.mesh.fsdp, config.mesh.tensor, config.mesh.expert = 2, 2, 2
    run = train(config, folder / "run", quiet=True)  # goes on from step 3
    paths = [run.merge_stream / str(step) for step in (3, 6)]
    ((_, merged),) = offline.merge_many(paths, {"merged": [0.25, 0.75]}, shardings=evaluate.shardings(run))
    return {
        "meshes": [{"axes": axes, **losses(axes)} for axes in [{"data": 1}, *ONE_AXIS, *TOGETHER]],
        "loss memory": [loss_memory(axes) for axes in ({"fsdp": 8}, {"tensor": 8})],
        "splash": splash_calls(TOGETHER[0]),
        "records": records,
        "specs": {path: str(leaf.sharding.spec) for path, leaf in named_leaves(merged).items()},
        "merged": evaluate.run_evaluator(run, "validation")(merged).loss,
        "fitted": tuning.learn(run, select(run, 2), steps=1).before,
        "loaded": evaluate.run_evaluator(run, "validation")(evaluate.load(run, paths[1])).loss,
    }


@pytest.fixture(scope="module")
def facts(tiny) -> dict[str, Any]:
    folder = tiny.folder / "meshes"
    folder.mkdir()
    code = "import json, sys; from pathlib import Path; from tests.training import test_meshes as it; "
    code += "print(json.dumps(it.show(sys.argv[1], Path(sys.argv[2]))))"
    # Nothing here runs long enough to be worth optimising; compiling is what takes time.
    cheap = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {cheap}"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(to_dict(tiny.config(**FIELDS))), str(folder)],
        cwd=ROOT, env=tiny.environment | flags, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "folder": folder}


def test_every_mesh_has_the_losses_of_one_device(facts):
    """Sums are cut elsewhere, so the last bits of float32 differ: 1e-6 at first; three updates make 1e-5 of it."""
    one, *others = facts["meshes"]
    assert len(others) >= 3
    assert one["losses"][0][0] > one["losses"][-1][0] + 0.01
    for other in others:
        np.testing.assert_allclose(other["losses"][0], one["losses"][0], rtol=2e-6, err_msg=str(other["axes"]))
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=2e-5, err_msg=str(other["axes"]))


def test_each_device_holds_its_share_of_the_state(facts):
    """Parameters and two moments in float32, and a few counts."""
    for found in facts["meshes"]:
        cut = found["axes"].get("fsdp", 1)
        if "tensor" in found["axes"]:
            assert set(found["whole"]) == (
                set()
                if cut > 1
                else {f"blocks/norm{i}/scale" for i in (1, 2)} | {"final_norm/scale", "position_embedding"}
            )
        else:
            counts = found["bytes"] - found["parameters"] * 12 // cut
            assert 0 < counts <= 16, found["axes"]


def test_the_logits_of_a_large_vocabulary_never_exist_whole(facts):
    """A sixteenth of the sequence at a time; the table, its gradient and the scores of attention are the rest."""
    assert facts["loss memory"]
    for found in facts["loss memory"]:
        assert found["temporaries"] < 0.6 * found["logits"]


def test_splash_runs_on_each_device_by_itself(facts):
    assert facts["splash"] == 2


def test_a_run_goes_on_on_another_mesh(facts):
    before, run = facts["records"], Run(facts["folder"] / "run")
    assert [record["step"] for record in run.metrics("start")] == [0, 3]
    after = run.metrics("train")[3:]
    assert [record["step"] for record in after] == [4, 5, 6]
    np.testing.assert_allclose([r["loss"] for r in after], [r["loss"] for r in before[3:]], rtol=1e-5)
    assert run.config.mesh.expert == 2
    for item in ("params", "ema"):
        one, other = (load_tree(place, item) for place in (facts["folder"] / "merge-6", run.merge_stream / "6"))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one, other)


def test_the_merge_stream_keeps_raw_ranges_whatever_is_cut(facts):
    run = Run(facts["folder"] / "run")
    paths = [run.merge_stream / str(step) for step in (3, 6)]  # of fsdp=4, and of fsdp=2, tensor=2
    with storage.open_sources(paths, None) as sources:
        for source in sources:
            assert {leaf.quantum for leaf in source.leaves.values()} == {1}
            assert len(source.held()) > 3 * len(source.leaves)  # several files a leaf


def test_merges_in_memory_lie_on_the_mesh_and_are_those_of_one_device(facts):
    run = Run(facts["folder"] / "run")
    assert facts["specs"]["blocks/mlp/up/kernel"] == "P(None, 'fsdp', 'tensor')"
    validate = evaluate.run_evaluator(run, "validation")
    merged = merge_checkpoints([run.merge_stream / str(step) for step in (3, 6)], [0.25, 0.75])
    mean = merge_checkpoints([run.merge_stream / str(step) for step in (3, 6)], [0.5, 0.5])
    on_part = evaluate.run_evaluator(run, "validation", limit_tokens=run.config.evaluation.tokens)
    assert facts["fitted"] == pytest.approx(on_part(mean).loss, rel=1e-5)
    assert facts["merged"] == pytest.approx(validate(merged).loss, rel=1e-6)
    assert facts["loaded"] == pytest.approx(validate(load_tree(run.merge_stream / "6")).loss, rel=1e-6)
