"""The mesh and the rules; and eight devices against one, in one process."""

import json
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.runs import ROOT
from wsm_jax import UsageError
from wsm_jax.core.trees import named_leaves, path_name
from wsm_jax.models import model, presets
from wsm_jax.parallel import sharding


def abstract_mesh(**axes) -> Any:
    """A mesh without devices: one that this machine need not have."""
    return AbstractMesh(tuple(axes.values()), tuple(axes))


def test_the_mesh_has_all_devices_along_data():
    mesh = sharding.make_mesh()
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1, "expert": 1, "tensor": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert mesh.size == jax.device_count()
    assert sharding.make_mesh(jax.devices()[:1]).size == 1


def test_names_of_paths():
    tree = {"blocks": [{"kernel": 1}], "pair": (2, 3)}
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert names == ["blocks/0/kernel", "pair/0", "pair/1"]


def test_a_mesh_of_several_axes_takes_all_devices():
    count = jax.device_count()
    mesh = sharding.make_mesh(axes={"data": count, "tensor": 1})
    assert dict(mesh.shape) == {"data": count, "tensor": 1}
    with pytest.raises(UsageError, match=rf"data=2 x tensor={count} takes {2 * count} devices, but there are {count}"):
        sharding.make_mesh(axes={"data": 2, "tensor": count})


def test_rules_spread_the_axes_of_a_leaf_and_its_moments_follow():
    mesh = abstract_mesh(data=2, tensor=2, one=1)
    kernel, norm = jax.ShapeDtypeStruct((8, 4), float), jax.ShapeDtypeStruct((4,), float)
    params = {"mlp": {"kernel": kernel}, "norm": norm}
    state = {"params": params, "moments": ({"mu": params, "count": jax.ShapeDtypeStruct((), int)},)}
    leaves = {"mlp/kernel": ("embed", "ff"), "norm": ("embed",)}
    found = sharding.tree_shardings(mesh, state, leaves, {"embed": ("data", "one", "tensor")})
    rows = NamedSharding(mesh, P(("data", "tensor")))
    assert found["params"] == found["moments"][0]["mu"] == {"mlp": {"kernel": rows}, "norm": rows}
    assert found["moments"][0]["count"] == sharding.replicated(mesh)
    columns = sharding.tree_shardings(mesh, params, leaves, {"ff": "tensor"})
    assert columns == {"mlp": {"kernel": NamedSharding(mesh, P(None, "tensor"))}, "norm": sharding.replicated(mesh)}
    assert sharding.device_bytes(params, columns) == (8 * 4 / 2 + 4) * np.dtype(float).itemsize


def test_a_leaf_that_no_family_declares_is_an_error():
    shapes = {
        "params": {"a": jax.ShapeDtypeStruct((65,), "float32")},
        "coefficients": jax.ShapeDtypeStruct((5,), float),
    }
    mesh = abstract_mesh(data=2, fsdp=2, expert=1, tensor=1)
    assert sharding.tree_shardings(mesh, shapes)["params"]["a"].spec == P()
    with pytest.raises(UsageError, match=r"leaf params/a of shape \(65,\) is none that the model family declares"):
        sharding.tree_shardings(mesh, shapes, {"b": ("embed",)})
    with pytest.raises(
        UsageError, match=r"leaf a of shape \(65,\): dimension 0, embed, is no multiple of mesh.fsdp=2;"
    ):
        sharding.tree_shardings(mesh, shapes, {"a": ("embed",)})


def test_a_large_leaf_that_lies_whole_is_an_error_or_a_line():
    shapes = {"table": jax.ShapeDtypeStruct((1000, 300), "float32"), "norm": jax.ShapeDtypeStruct((300,), "float32")}

    def spread(axes, **mesh):
        mesh = abstract_mesh(**{"data": 1, "fsdp": 1, "expert": 1, "tensor": 1, **mesh})
        where = sharding.tree_shardings(mesh, shapes, {"table": axes, "norm": ("position",)})
        return sharding.check_spread(
            jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, where)
        )

    assert spread(("position", "other"), data=2) == ""
    assert spread(("position", "embed"), fsdp=2) == ""
    assert "1 leaves, 1.2 MB, are whole on every device, e.g. table" in spread(("position", "embed"), tensor=2)
    with pytest.raises(UsageError, match=r"leaf table of 1.2 MB would be whole .* mesh.fsdp=2 and mesh.tensor=2; its"):
        spread(("position", "other"), fsdp=2, tensor=2)


def test_the_biases_of_a_large_model_may_lie_whole():
    """1.2 MB of them, cut by ``tensor`` alone, beside 2.6 GB of matrices: GPT-2 XL with its biases."""
    declared = {"bias": ("layer", "ff"), "kernel": ("embed", "ff")}
    shapes = {"bias": (48, 6400), "kernel": (1600, 400_000)}
    abstract = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    where = sharding.tree_shardings(abstract_mesh(data=1, fsdp=4, expert=1, tensor=1), abstract, declared)
    assert where["bias"].spec == P()
    placed = {name: jax.ShapeDtypeStruct(shapes[name], "float32", sharding=at) for name, at in where.items()}
    assert sharding.check_spread(placed) == ""


@pytest.mark.parametrize("name", ["gpt2_small", "tiny"])
def test_fsdp_and_tensor_cut_every_large_leaf_of_gpt2(name):
    built = model.build(presets.with_vocabulary(presets.preset(name), 4096))
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    mesh = abstract_mesh(data=1, fsdp=4, expert=1, tensor=2)
    where = named_leaves(sharding.tree_shardings(mesh, shapes, built.axes))
    whole = {
        path: leaf
        for path, leaf in named_leaves(shapes).items()
        if sharding.count(mesh, sharding.names(where[path].spec)) < 8
    }
    assert set(whole) == {path for path in where if path.endswith("scale")} | {"position_embedding"}
    assert {sharding.count(mesh, sharding.names(where[path].spec)) for path in whole} == {4}


def test_rows_that_the_devices_cannot_share_equally_are_on_all_of_them():
    mesh = abstract_mesh(replica=2, data=2)
    rules = {"batch": ("replica", "data")}
    assert sharding.batch_parts(mesh, rules) == 4
    assert sharding.rows_sharding(mesh, 12, rules).spec == P(("replica", "data"))
    assert sharding.rows_sharding(mesh, 6, rules).spec == P()
    assert sharding.batch_sharding(mesh, {}).spec == P()
    with pytest.raises(UsageError, match="the rules spread batch over data, but the mesh has x"):
        sharding.batch_sharding(sharding.make_mesh(axes={"x": jax.device_count()}))


def test_rows_of_this_process_become_the_global_batch():
    mesh = sharding.make_mesh()
    rows = np.arange(12, dtype=np.int32).reshape(4, 3)
    batch = sharding.global_batch(mesh, {"inputs": rows})
    assert batch["inputs"].sharding == sharding.batch_sharding(mesh)
    np.testing.assert_array_equal(np.asarray(batch["inputs"]), rows)


EIGHT = """
import json
import jax, jax.numpy as jnp, numpy as np, optax
from wsm_jax.parallel import sharding
from wsm_jax.training import train_state
from tests.runs import bigrams
from wsm_jax.training.train_step import jit_train_step

assert jax.device_count() == 8
model = bigrams()
optimizer = optax.sgd(1.0)
rows = np.random.default_rng(0).integers(0, 128, (3, 8, 17), dtype=np.int32)
runs, facts = {}, {}
for devices in (1, 8):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    state = train_state.initialise(model, optimizer, 0, mesh)
    step = jit_train_step(model, optimizer, mesh, state)
    losses = []
    for row in rows:
        batch = sharding.global_batch(mesh, {"inputs": row[:, :-1], "targets": row[:, 1:]})
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    runs[devices] = losses, jax.device_get(state["params"])
facts["rows of each device"] = sorted({shard.data.shape[0] for shard in batch["inputs"].addressable_shards})
facts["replicated"] = all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
facts["devices of the state"] = len(state["step"].sharding.device_set)
copies = jax.tree.map(lambda leaf: all(np.array_equal(s.data, leaf) for s in leaf.addressable_shards), state["params"])
facts["copies agree"] = all(jax.tree.leaves(copies))
facts["losses"] = [runs[1][0], runs[8][0]]
difference = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), runs[1][1], runs[8][1])
facts["difference"] = max(jax.tree.leaves(difference))
print(json.dumps(facts))
"""


@pytest.mark.integration
def test_eight_devices_compute_what_one_computes():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    done = subprocess.run(
        [sys.executable, "-c", EIGHT], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["rows of each device"] == [1]
    assert facts["replicated"]
    assert facts["copies agree"]
    assert facts["devices of the state"] == 8
    one, eight = facts["losses"]
    assert one[0] != one[-1]
    assert eight == pytest.approx(one, rel=1e-6)
    assert facts["difference"] < 1e-6
