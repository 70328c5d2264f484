"""Routing, dispatch and the product of rows with their experts, against a dense loop; on 1 and on 8 devices."""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parameters import drawn
from tests.runs import ROOT
from wsm_jax.errors import UsageError
from wsm_jax.models import dispatch, experts, model
from wsm_jax.models.ling import LingFields
from wsm_jax.parallel import activations, sharding

SMALL = LingFields(
    layers=2, d_model=32, heads=4, kv_heads=2, head_dim=8, d_ff=32, experts=8, expert_ff=16, groups=4, groups_kept=2,
    context=16, vocab_size=64, loss_blocks=1, scan_unroll=1, attention="xla", z_loss=1e-2, buffer_factor=8.0,
)  # fmt: skip
ROWS = 8
MESHES = {
    "one": {},
    "data": {"data": 8},
    "expert": {"expert": 8},
    "expert and fsdp": {"expert": 4, "fsdp": 2},
    "expert and tensor": {"expert": 4, "tensor": 2},
    "all": {"fsdp": 2, "expert": 2, "tensor": 2},
    "control": {"fsdp": 2, "expert": 4},
}
OPTIONS = {"all": {"remat": "full"}, "control": {"buffer_factor": 0.7}}  # a buffer that is too small


@functools.cache
def start() -> tuple[Any, Any]:
    """Parameters with scores that differ and a bias that matters, and a batch."""
    params = drawn(model.build(SMALL))
    params = jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim > 2 else leaf, params)
    bias = 0.05 * jax.random.normal(jax.random.key(1), params["blocks"]["router"]["bias"].shape)
    params["blocks"]["router"]["bias"] = bias
    return params, np.random.default_rng(0).integers(0, SMALL.vocab_size, (ROWS, SMALL.context + 1)).astype(np.int32)


def loss_and_gradients(mesh: Any, **fields: Any) -> tuple[float, dict[str, np.ndarray], Any]:
    """Of the whole model on a mesh: the training loss, what goes with it, and the gradients."""
    built, (params, rows) = model.build(dataclasses.replace(SMALL, **fields)), start()
    where = sharding.tree_shardings(mesh, params, built.axes)

    def loss(params: Any, rows: jax.Array) -> Any:
        with activations.on(mesh, sharding.RULES):
            return model.training_loss(built, params, rows[:, :-1], rows[:, 1:])

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    placed = jax.tree.map(lambda leaf, at: jax.device_put(np.asarray(leaf), at), params, where)
    (value, found), slopes = step(placed, jax.device_put(rows, sharding.batch_sharding(mesh)))
    return float(value), {name: np.asarray(leaf) for name, leaf in found.items()}, jax.tree.map(np.asarray, slopes)


def departures(found: Any, expected: Any) -> dict[str, Any]:
    """How far a loss, its gradients and the loads are from others; gradients relative to the largest of their leaf."""

    def relative(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))

    return {
        "loss": abs(found[0] - expected[0]),
        "gradients": max(jax.tree.leaves(jax.tree.map(relative, found[2], expected[2]))),
        "loads": float(np.abs(found[1]["load"] - expected[1]["load"]).max()),
        "dropped": float(found[1]["dropped"]),
        "bias": float(np.abs(found[2]["blocks"]["router"]["bias"]).max()),
    }


def show() -> dict[str, Any]:
    """Every mesh of eight devices against a dense loop on one."""
    expected, found = loss_and_gradients(sharding.make_mesh(jax.devices()[:1]), grouped="dense"), {}
    for name, axes in MESHES.items():
        devices = jax.devices()[: math.prod(axes.values())]
        mesh = sharding.make_mesh(devices, {**dict.fromkeys(sharding.AXES, 1), **axes})
        found[name] = departures(loss_and_gradients(mesh, **OPTIONS.get(name, {})), expected)
    return found


def assert_equal(departed: dict[str, Any]) -> None:
    assert departed["loss"] < 1e-6 and departed["gradients"] < 1e-5
    assert departed["loads"] == departed["dropped"] == departed["bias"] == 0


def test_padded_blocks_equal_a_dense_loop():
    """A layer and its slopes; the whole model is compared where several devices are."""
    E, D, F = 8, 16, 12
    shapes = {"x": (4, 8, D), "router": (D, E), "bias": (E,), "gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arrays = {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}

    def value(arrays: Any, grouped: str) -> Any:
        options = {"top": 2, "groups": 4, "kept": 2, "scale": 2.5, "grouped": grouped, "factor": 1.0}
        y, found = experts.mixture(arrays["x"], arrays["router"], 0.05 * arrays["bias"], arrays, **options)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum() + found["z"], found["load"]

    def both_values(arrays: Any) -> Any:
        return [jax.value_and_grad(value, has_aux=True)(arrays, grouped) for grouped in ("blocks", "dense")]

    both = jax.jit(both_values, compiler_options={"xla_llvm_disable_expensive_passes": True})
    ((loss, load), slopes), ((plain, counted), expected) = both(arrays)
    np.testing.assert_allclose(loss, plain, rtol=1e-6)
    np.testing.assert_array_equal(load, counted)
    for name, slope in slopes.items():
        largest = np.abs(expected[name]).max()
        np.testing.assert_allclose(slope, expected[name], rtol=0, atol=1e-5 * largest, err_msg=name)


@pytest.fixture(scope="module")
def meshes() -> dict[str, Any]:
    cheap = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {cheap}", "JAX_PLATFORMS": "cpu"}
    code = "import json; from tests.models import test_experts as it; print(json.dumps(it.show()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | flags, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.integration
@pytest.mark.xdist_group("experts")
@pytest.mark.parametrize("name", [name for name in MESHES if name != "control"])
def test_experts_over_devices_equal_a_dense_loop_on_one(meshes, name):
    assert_equal(meshes[name])


@pytest.mark.integration
@pytest.mark.xdist_group("experts")
def test_a_buffer_that_is_too_small_drops_and_is_seen_to(meshes):
    found = meshes["control"]
    assert 0.05 < found["dropped"] < 0.5
    with pytest.raises(AssertionError):
        assert_equal(found)
    assert found["loss"] > 1e-5 and found["gradients"] > 1e-2


def test_routing_is_as_written_out():
    """Against numpy, a token at a time; a bias changes who is chosen and not with what weight."""
    rng = np.random.default_rng(1)
    logits, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((40, 12), (12,)))
    found = experts.route(jnp.asarray(logits), jnp.asarray(bias), top=3, groups=4, kept=2, scale=2.5)
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    load = np.zeros(12)
    for token, (chosen, weights) in enumerate(zip(found.chosen, np.asarray(found.weights), strict=True)):
        biased = (scores[token] + bias).reshape(4, 3)
        best = np.sort(biased, axis=1)[:, -2:].sum(axis=1)
        allowed = np.isin(np.arange(4), np.argsort(best)[-2:])
        expected = np.argsort(np.where(allowed[:, None], biased, -np.inf).ravel())[::-1][:3]
        assert list(np.asarray(chosen)) == list(expected)
        np.testing.assert_allclose(weights, 2.5 * scores[token][expected] / scores[token][expected].sum(), rtol=1e-5)
        load[expected] += 1
    np.testing.assert_array_equal(found.load, load)


@pytest.mark.parametrize("options", [{}, {"block": 4}, {"capacity": 3}])
def test_slots_hold_each_assignment_once(options):
    """Slots and sources are inverses, a block has one owner, and an empty or overfull group is as it should be."""
    rng, count = np.random.default_rng(2), 5
    lay_out = jax.jit(functools.partial(dispatch.layout, count=count, **options))
    for group in (rng.integers(0, count + 1, 24), np.full(24, 3), np.full(24, count), np.repeat([0, 4], 12)):
        found = jax.tree.map(np.asarray, lay_out(jnp.asarray(group)))
        slots = found.source.size
        assert (found.sizes == np.bincount(group, minlength=count + 1)[:count]).all()
        kept = np.flatnonzero(found.slot < slots)
        np.testing.assert_array_equal(found.source[found.slot[kept]], kept)
        assert np.sort(found.source[found.source < 24]).tolist() == kept.tolist()
        owner = np.repeat(found.owner, slots // found.owner.size)
        assert (owner[found.slot[kept]] == group[kept]).all()
        rank = np.array([(group[:i] == own).sum() for i, own in enumerate(group)])
        expected = (group < count) & (rank < options.get("capacity", 24))
        np.testing.assert_array_equal(found.slot < slots, expected)


def test_rows_are_moved_as_by_indexing_in_both_directions():
    group, x = jnp.asarray(np.random.default_rng(3).integers(0, 4, 12)), jnp.arange(30.0).reshape(6, 5)

    @jax.jit
    def both(x: jax.Array) -> Any:
        found = dispatch.layout(group, 4, block=2)
        moved, pull = jax.vjp(lambda x: dispatch.moved(x, found.source, found.slot, 2), x)
        plain, expected = jax.vjp(lambda x: jnp.append(x, jnp.zeros((1, 5)), axis=0)[found.source // 2], x)
        return moved, plain, pull(jnp.cos(plain))[0], expected(jnp.cos(plain))[0]

    moved, plain, slope, expected = both(x)
    np.testing.assert_array_equal(moved, plain)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_a_product_that_would_be_dense_is_refused(monkeypatch):
    assert experts.chosen_product("auto") == "blocks"
    with pytest.raises(UsageError, match=r"model\.grouped=ragged_dot computes every expert .* choose blocks"):
        experts.chosen_product("ragged_dot")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    for grouped in ("auto", "ragged_dot"):
        with pytest.raises(UsageError, match=r"on TPUs needs jax 0\.12 or newer"):
            experts.chosen_product(grouped)
    assert experts.chosen_product("blocks") == "blocks"
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    assert experts.chosen_product("auto") == "ragged_dot"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [experts.chosen_product(name) for name in ("auto", "ragged_dot")] == ["blocks", "ragged_dot"]
