"""Hashes of what is saved: made from the arrays, checked by every reader."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.runs import ROOT, assert_same_bits
from tests.two_processes import two_processes
from wsm_jax import UsageError, cli, load_tree, merge_checkpoints
from wsm_jax.checkpoints import inspection, integrity, orbax, storage
from wsm_jax.checkpoints.stream import Stream
from wsm_jax.io import hashes

STATE = {"params": jnp.arange(70000.0).reshape(70, 1000), "bias": {"b": jnp.ones(300), "scale": jnp.float32(2)}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's checkpoints: two full states, two of the merge stream with an average, and a merge in each format."""
    run = tmp_path_factory.mktemp("runs") / "run"
    for name, mergeable in (("resume", False), ("merge", True)):
        with Stream(run / "checkpoints" / name, mergeable=mergeable) as stream:
            for step in (1, 2):
                tree = jax.tree.map(lambda x, step=step: x + step, STATE)
                stream.save(step, {"params": tree, "opt_state" if name == "resume" else "ema": tree})
    (run / "config.json").write_text("{}")
    (run / "run.json").write_text(json.dumps({"hashes": hashes.KIND}))
    steps = [run / "checkpoints" / "merge" / step for step in "12"]
    for form in storage.FORMATS:
        merge_checkpoints(steps, [0.5, 0.5], run / "merged" / form, format=form)
    return run


def everything(run):
    return [path for path in sorted(run.rglob("*")) if path.is_file() and path.parent != run]


def step_of(file):
    return next(p for p in file.parents if p.parent.name in ("resume", "merge", "merged"))


def read(place):
    """What the run's readers make of a checkpoint."""
    if place.parent.name == "resume":
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), STATE)
        where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)
        with Stream(place.parent, mergeable=False, read_only=True) as stream:
            return stream.load(int(place.name), {"params": shapes, "opt_state": shapes})
    return load_tree(place) if orbax.is_checkpoint(place) else None


@pytest.mark.integration
def test_a_hundred_flipped_bits_are_all_found(saved):
    """Each reader refuses, or it gives what it gave before, for it does not read that byte."""
    chance, files = random.Random(0), everything(saved)
    before = {place: read(place) for place in {step_of(file) for file in files}}
    chosen = [file for file in files if file.stat().st_size]
    refused = 0
    for number in range(100):
        file = chosen[number] if number < len(chosen) else chance.choice(chosen)  # each once, then any
        whole = file.read_bytes()
        bit = chance.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        place = step_of(file)
        found = inspection.verify(place)["damaged"]
        assert str(file) in [damage["file"] for damage in found], (file, bit, found)
        try:
            now = read(place)
        except UsageError as error:
            assert "\n" not in str(error) and str(file) in str(error), (file, error)
            refused += 1
        else:
            assert_same_bits(before[place], now, (file, bit))
        file.write_bytes(whole)
    assert refused > 60
    assert inspection.verify(saved)["damaged"] == []


def test_inspect_names_every_damaged_file_of_a_run(saved, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    assert cli.main(["inspect", str(run), "--hashes"]) == 0
    assert "6 checkpoints read, 0 files damaged" in capsys.readouterr().out
    chunk = run / "checkpoints" / "merge" / "2" / "ema" / "params" / "c" / "0" / "0"
    state = next((run / "checkpoints" / "resume" / "2" / "opt_state" / "d").iterdir())
    tensors = run / "merged" / "safetensors" / "model.safetensors"
    for file in (chunk, state, tensors):
        with file.open("r+b") as opened:
            opened.seek(file.stat().st_size // 2)
            byte = opened.read(1)[0]
            opened.seek(-1, 1)
            opened.write(bytes([byte ^ 4]))
    assert cli.main(["inspect", str(run), "--hashes", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)["damaged"]
    assert {damage["file"] for damage in found} == {str(chunk), str(state), str(tensors)}
    advice = {damage["file"]: damage["advice"] for damage in found}
    assert "--branch_from=" in advice[str(chunk)] and "@1" in advice[str(chunk)]
    assert "the next older state is 1: remove" in advice[str(state)] and "merge again" in advice[str(tensors)]
    with pytest.raises(UsageError, match=r"opt_state/d/\w+ is damaged; the next older state is 1: remove .*resume/2"):
        read(run / "checkpoints" / "resume" / "2")
    load_tree(run / "checkpoints" / "merge" / "2")  # the damage is in the average


def test_a_file_that_is_cut_short_is_named_once(saved, tmp_path):
    place = shutil.copytree(saved / "checkpoints" / "merge" / "1", tmp_path / "1")
    largest = max((file for file in place.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    assert [(str(damage.file), damage.what) for damage in integrity.damages(place)] == [(str(largest), "is damaged")]


def test_a_step_without_hashes_is_damaged_unless_an_earlier_version_saved_it(saved, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    (run / "checkpoints" / "merge" / "1" / hashes.FILE).unlink()
    with pytest.raises(UsageError, match=r"merge/1/wsm_hashes\.json is missing"):
        load_tree(run / "checkpoints" / "merge" / "1")
    assert cli.main(["inspect", str(run), "--hashes"]) == 2
    (run / "run.json").write_text("{}")
    capsys.readouterr()
    for _ in range(2):
        load_tree(run / "checkpoints" / "merge" / "1")
    assert capsys.readouterr().err.count("has no hashes") == 1
    assert cli.main(["inspect", str(run), "--hashes"]) == 0
    assert "1 have no hashes" in capsys.readouterr().out


def save_sharded(folder):
    """Run on four devices."""
    values = np.arange(96 * 2000, dtype=np.float32).reshape(96, 2000)
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2), ("x", "y"))
    whole = dict(hashes.Units({"w": values.size}).add("w", 0, values.reshape(-1)))
    for number, spec in enumerate([P(), P("x"), P(None, "x"), P("x", "y")]):
        array = jax.device_put(values, NamedSharding(mesh, spec))
        assert integrity.units({"w": array}) == {"w": whole}, spec
        with Stream(folder, mergeable=True) as stream:
            stream.save(number, {"params": {"w": array}})
        step = pathlib.Path(folder) / str(number)
        assert hashes.read(step, "params") == {"w": [whole[k] for k in range(3)]}, spec
        assert list(integrity.damages(step)) == [], spec
        assert np.array_equal(load_tree(step)["w"], values), spec


@pytest.mark.integration
def test_hashes_are_the_same_however_the_arrays_are_sharded(tmp_path):
    """Rows that cut a unit, and columns, which are no ranges at all."""
    program = f"from tests.checkpoints.test_integrity import save_sharded; save_sharded({str(tmp_path)!r})"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)


def test_what_no_process_holds_whole_is_read(tmp_path):
    """Of two processes each knows its own units; the one that lies in both is read when the checkpoint is sealed."""
    values = jnp.arange(3.0 * hashes.UNIT)
    orbax.save_tree(tmp_path / "1", {"w": values})
    units = integrity.units({"w": values})["w"]
    integrity.seal(tmp_path / "1", {"params": [{"w": {0: units[0]}}, {"w": {2: units[2]}}]})
    assert hashes.read(tmp_path / "1", "params") == {"w": [units[0], units[1], units[2]]}


TOGETHER = """
import faulthandler, sys, jax
faulthandler.dump_traceback_later(240, exit=True)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[1]}", num_processes=2, process_id=int(sys.argv[2]))
from tests.checkpoints.test_integrity import save_together
save_together(sys.argv[3])
"""


def save_together(folder):
    """Run by two processes of two devices; rows cut a unit, columns are no ranges, one leaf is whole everywhere."""
    values = np.arange(96 * 2000, dtype=np.float32).reshape(96, 2000)
    mesh = Mesh(np.asarray(jax.devices()), ("x",))
    specs = {"rows": P("x"), "whole": P(), "columns": P(None, "x")}
    place = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    tree = {n: jax.make_array_from_callback(values.shape, where, lambda i: values[i]) for n, where in place.items()}
    shapes = {n: jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=where) for n, where in place.items()}
    for name, mergeable in (("resume", False), ("merge", True)):
        with Stream(pathlib.Path(folder) / name, mergeable=mergeable, keep=1) as stream:
            for step in (1, 2):
                stream.save(step, {"params": tree})
            stream.wait()
            assert stream.steps == [2] and (stream.directory / "2").is_dir()
            for leaf in jax.tree.leaves(stream.load(2, {"params": shapes})):
                assert all(np.array_equal(shard.data, values[shard.index]) for shard in leaf.addressable_shards)


@pytest.mark.integration
def test_two_processes_hash_each_its_own(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    two_processes(TOGETHER, tmp_path, environment=environment)
    values = np.arange(96 * 2000, dtype=np.float32)
    written = hashes.read(tmp_path / "merge" / "2", "params")
    assert written
    for name, found in written.items():
        assert found == [digest for _, digest in hashes.Units({name: values.size}).add(name, 0, values)], name
    for stream in ("resume", "merge"):
        assert os.listdir(tmp_path / stream) == ["2"] and list(integrity.damages(tmp_path / stream / "2")) == []
