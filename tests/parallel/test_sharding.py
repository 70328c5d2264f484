"""The mesh and the rules; and eight devices against one, in one process."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.runs import ROOT
from wsm_jax import UsageError
from wsm_jax.core.trees import path_name
from wsm_jax.parallel import sharding


def test_the_mesh_has_one_axis_over_all_devices():
    mesh = sharding.make_mesh()
    assert mesh.axis_names == ("data",)
    assert mesh.axis_types == (AxisType.Auto,)
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
    mesh = sharding.make_mesh(jax.devices()[:1], {"data": 1, "tensor": 1})
    kernel, norm = jax.ShapeDtypeStruct((8, 4), float), jax.ShapeDtypeStruct((4,), float)
    params = {"mlp": {"kernel": kernel}, "norm": norm}
    state = {"params": params, "moments": ({"mu": params, "count": jax.ShapeDtypeStruct((), int)},)}
    leaves = {"mlp/kernel": ("embed", "ff"), "norm": ("embed",)}
    found = sharding.tree_shardings(mesh, state, leaves, {"embed": ("data", "tensor")})
    rows = NamedSharding(mesh, P(("data", "tensor")))
    assert found["params"] == found["moments"][0]["mu"] == {"mlp": {"kernel": rows}, "norm": rows}
    assert found["moments"][0]["count"] == sharding.replicated(mesh)
    columns = sharding.tree_shardings(mesh, params, leaves, {"ff": "tensor"})
    assert columns == {"mlp": {"kernel": NamedSharding(mesh, P(None, "tensor"))}, "norm": sharding.replicated(mesh)}
    everywhere = sharding.tree_shardings(mesh, state, leaves)
    assert {where.spec for where in jax.tree.leaves(everywhere)} == {P()}


def test_rows_that_the_devices_cannot_share_equally_are_on_all_of_them():
    mesh = sharding.make_mesh(axes={"replica": 1, "data": jax.device_count()})
    rules = {"batch": ("replica", "data")}
    assert sharding.batch_parts(mesh, rules) == jax.device_count()
    assert sharding.rows_sharding(mesh, 3 * jax.device_count(), rules).spec == P(("replica", "data"))
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
