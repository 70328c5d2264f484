"""Merges on several devices and several processes: each reads, merges, holds and writes only its part."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import wsm_jax
from tests.merging.trees import bits, save_all
from tests.two_processes import two_processes
from wsm_jax.checkpoints import orbax

pytestmark = pytest.mark.integration

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


def environment(**more):
    return {**os.environ, "JAX_PLATFORMS": "cpu", **more}


def large(seed):
    """Rows for eight devices; more than one piece, so that there is something to share."""
    random = np.random.default_rng(seed)
    return {
        "embedding": random.standard_normal((64, 4096), np.float32),
        "blocks": {"kernel": random.standard_normal((8, 64, 256), np.float32), "norm": np.ones((8, 3), np.float32)},
    }


PLACED = """
import sys, jax, numpy as np, wsm_jax
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
where = {"embedding": NamedSharding(mesh, P(("x", "y"))),
         "blocks": {"kernel": NamedSharding(mesh, P("x", None, "y")), "norm": NamedSharding(mesh, P())}}
paths = sys.argv[1:]
weights = {"one": [0.2, 0.3, 0.5], "last": [0.0, 0.0, 1.0]}
whole = {name: t for name, t in wsm_jax.merge_many(paths, weights)}
for name, merged in wsm_jax.merge_many(paths, weights, shardings=where):
    for path, leaf in (("embedding", merged["embedding"]), *merged["blocks"].items()):
        there = where.get(path) or where["blocks"][path]
        assert leaf.sharding == there, (path, leaf.sharding)
        other = whole[name].get(path) if path in whole[name] else whole[name]["blocks"][path]
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other))
assert merged["embedding"].addressable_shards[0].data.shape == (8, 4096)
assert merged["blocks"]["kernel"].addressable_shards[0].data.shape == (2, 64, 128)
"""


def test_results_are_placed_on_eight_devices(tmp_path):
    paths = save_all(tmp_path, [large(i) for i in range(3)])
    subprocess.run([sys.executable, "-c", PLACED, *map(str, paths)], env=environment(**EIGHT), check=True)


def test_a_merge_does_not_depend_on_the_mesh_that_saved_its_inputs(tmp_path):
    program = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from wsm_jax.checkpoints import orbax
from tests.merging.test_processes import large
mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
spec = {"embedding": P("x", "y"), "blocks": {"kernel": P(None, ("x", "y")), "norm": P("x")}}
for i in range(3):
    tree = jax.tree.map(lambda a, s: jax.device_put(a, NamedSharding(mesh, s)), large(i), spec)
    orbax.save_tree(f"{sys.argv[1]}/sharded-{i}", tree)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment(**EIGHT), check=True)
    trees = [large(i) for i in range(3)]
    weights = wsm_jax.merge_weights("cosine", 3)
    wsm_jax.merge_checkpoints([tmp_path / f"sharded-{i}" for i in range(3)], weights, tmp_path / "out", verify=True)
    assert bits(orbax.load_tree(tmp_path / "out")) == bits(wsm_jax.merge(trees, weights))


PROCESS = """
import faulthandler, pathlib, sys, time, jax
faulthandler.dump_traceback_later(240, exit=True)  # a process that waits for ever says where
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[1]}", num_processes=2, process_id=int(sys.argv[2]))
import numpy as np, wsm_jax
from jax.sharding import NamedSharding, PartitionSpec as P
from wsm_jax.checkpoints import huggingface, orbax_tree, output, storage, zarr
from wsm_jax.merging import engine
assert jax.process_count() == 2 and len(jax.devices()) == 4
engine.BLOCK = 1 << 16
out, form, paths = sys.argv[3], sys.argv[4], sys.argv[5:]
read = written = 0
def slowly(path, text, write=pathlib.Path.write_text):  # nobody reads what another is writing, however long it takes
    if path.name == "_METADATA":
        write(path, "")
        time.sleep(1)
    return write(path, text)
pathlib.Path.write_text = slowly
for source in (zarr.Source, huggingface.Source):
    def counted(self, path, start, values, original=source.read):
        global read
        read += values.size
        original(self, path, start, values)
    source.read = counted
for sink in (zarr.Sink, huggingface.Sink):
    def noted(self, path, start, values, original=sink.write):
        global written
        written += values.size
        original(self, path, start, values)
    sink.write = noted
if form == "fail":
    def broken(*arguments):
        raise wsm_jax.UsageError("disk on fire")
    # One place of every block that processes leave together, in the process that does the work there.
    for who, place, name in ((1, storage, "open_source"), (1, zarr.Source, "read"), (1, zarr.Source, "tree"),
                             (0, output, "_claim"), (0, orbax_tree, "_take_arrays_out"), (0, zarr.Sink, "_begin"),
                             (0, zarr.Sink, "finish")):
        whole = getattr(place, name)
        if jax.process_index() == who:
            setattr(place, name, broken)
        try:
            wsm_jax.merge_checkpoints(paths, [0.2, 0.3, 0.5], out)
        except wsm_jax.UsageError as error:
            print(f"error: {error}")
        setattr(place, name, whole)
else:
    wsm_jax.merge_checkpoints(paths, [0.2, 0.3, 0.5], out, format=form, verify=True)
    print("offline", read, written)
    read = 0
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    where = NamedSharding(mesh, P("x"))
    (_, merged), = wsm_jax.merge_many(paths, {"a": [0.2, 0.3, 0.5]}, shardings=where)
    for shard in merged["embedding"].addressable_shards:
        np.save(f"{out}-shard-{shard.index[0].start}.npy", np.asarray(shard.data))
    print("placed", read)
"""


def run_both(*arguments):
    env = environment(XLA_FLAGS="--xla_force_host_platform_device_count=2")
    return two_processes(PROCESS, *arguments, environment=env)


@pytest.mark.parametrize("form", ["orbax", "safetensors"])
def test_two_processes_each_read_and_write_their_part(tmp_path, form):
    trees = [large(i) for i in range(3)]
    paths = save_all(tmp_path, trees)
    printed = run_both(tmp_path / "out", form, *paths)
    wsm_jax.merge_checkpoints(paths, [0.2, 0.3, 0.5], tmp_path / "alone", format=form)
    if form == "orbax":
        assert bits(orbax.load_tree(tmp_path / "out")) == bits(orbax.load_tree(tmp_path / "alone"))
    else:
        files = [tmp_path / name / "model.safetensors" for name in ("out", "alone")]
        assert files[0].read_bytes() == files[1].read_bytes()
    tables = [json.loads((tmp_path / name / "wsm_hashes.json").read_text())["arrays"] for name in ("out", "alone")]
    assert tables[0] == tables[1]
    elements = sum(leaf.size for leaf in (trees[0]["embedding"], *trees[0]["blocks"].values()))
    offline = [line.split()[1:] for text in printed for line in text.splitlines() if line.startswith("offline")]
    read, written = (np.asarray([int(pair[i]) for pair in offline]) for i in (0, 1))
    assert read.sum() == 3 * elements and written.sum() == elements
    assert (read > elements).all()  # about half of 3 x elements each
    # In memory every process reads the rows of its own two devices, to whole pieces.
    placed = [int(line.split()[1]) for text in printed for line in text.splitlines() if line.startswith("placed")]
    assert len(placed) == 2 and all(0.4 * 3 * elements < n < 0.6 * 3 * elements for n in placed)
    expected = np.asarray(wsm_jax.merge(trees, [0.2, 0.3, 0.5])["embedding"])
    rows = [np.load(tmp_path / f"out-shard-{start}.npy") for start in (0, 16, 32, 48)]
    np.testing.assert_array_equal(np.concatenate(rows), expected)


def test_an_error_in_one_process_is_an_error_in_all(tmp_path):
    paths = save_all(tmp_path, [large(i) for i in range(3)])
    first, second = run_both(tmp_path / "out", "fail", *paths)
    for printed, own, others in ((first, 4, 3), (second, 3, 4)):
        assert printed.count("error: disk on fire") == own, (first, second)
        assert len(re.findall(r"error: process [01] failed; see its message", printed)) == others, (first, second)
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2"]
