"""Streams on disk: what is kept, how it is stored, what a kill leaves, and one-line errors."""

import functools
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from tests.runs import ROOT, TEMPORARY, assert_same_bits
from wsm_jax import UsageError
from wsm_jax.checkpoints import orbax, storage
from wsm_jax.checkpoints.orbax import complete_steps
from wsm_jax.checkpoints.stream import Stream, drop_after
from wsm_jax.io import disk
from wsm_jax.training import forecast

pytest_plugins = ["tests.runs"]


def tree(value: float):
    return {"a": {"kernel": jnp.full((4, 8), value)}, "b": jnp.arange(3) + int(value)}


def abstract(of):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), of)


def write(directory, steps, **options):
    with Stream(directory, mergeable=True, **options) as stream:
        for step in steps:
            stream.save(step, {"params": tree(step)})


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_metadata_that_cannot_be_read_names_the_file(tmp_path, text):
    write(tmp_path, [1])
    (tmp_path / "1" / orbax.COMPLETE).write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"1/_CHECKPOINT_METADATA: unreadable checkpoint metadata"):
        orbax.user_metadata(tmp_path / "1")
    (tmp_path / "1" / "params" / "_METADATA").write_text("[]")
    with pytest.raises(UsageError, match=r"1/params: unreadable checkpoint metadata"):
        orbax.array_names(tmp_path / "1")


def test_what_is_saved_is_what_is_loaded(tmp_path):
    items = {"params": tree(1), "opt_state": (jnp.zeros((), jnp.int32), {"mu": jnp.ones(2, jnp.bfloat16)})}
    with Stream(tmp_path / "s", mergeable=False) as stream:
        assert stream.steps == []
        stream.save(5, items, {"tokens": 640})
        stream.save(7, items)
    with Stream(tmp_path / "s", mergeable=False) as stream:
        assert stream.steps == [5, 7]
        assert_same_bits(stream.load(5, abstract(items)), items)
        assert_same_bits(stream.load(7, {"params": abstract(items["params"])}), {"params": items["params"]})
    path = tmp_path / "s" / "5"
    assert orbax.item_names(path) == ["opt_state", "params"]
    assert orbax.user_metadata(path) == {"tokens": 640}
    assert orbax.user_metadata(path.with_name("7")) == {}
    assert_same_bits(orbax.load_tree(path), items["params"])
    shapes = orbax.abstract_tree(path)
    assert (shapes["a"]["kernel"].shape, shapes["b"].dtype) == ((4, 8), jnp.int32)
    assert disk.tree_bytes(shapes) == 4 * 8 * 4 + 3 * 4


def test_a_run_that_goes_on_another_way_drops_what_it_makes_anew(tmp_path):
    write(tmp_path, [10, 20, 30])
    drop_after(tmp_path, 20)
    with Stream(tmp_path, mergeable=True) as stream:
        assert stream.steps == complete_steps(tmp_path) == [10, 20]
        stream.save(30, {"params": tree(7)})
    assert complete_steps(tmp_path) == [10, 20, 30]
    assert_same_bits(orbax.load_tree(tmp_path / "30"), tree(7))
    assert not [name for name in os.listdir(tmp_path) if not name.isdigit()]


def test_a_saved_step_is_not_written_again(tmp_path):
    write(tmp_path, [1])
    before = (tmp_path / "1").stat().st_mtime_ns
    write(tmp_path, [1, 2])
    assert (tmp_path / "1").stat().st_mtime_ns == before
    assert complete_steps(tmp_path) == [1, 2]


def test_a_save_under_way_survives_the_donation_of_what_it_saves(tmp_path):
    """The arrays are donated and overwritten at once, as the training loop does it."""
    step = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    x = jnp.zeros((512, 512))
    with Stream(tmp_path, mergeable=True) as stream:
        for done in range(1, 16):
            x = step(x)
            if done % 3 == 0:
                stream.save(done, {"params": {"x": x}})
    assert complete_steps(tmp_path) == list(range(3, 16, 3))
    for done in complete_steps(tmp_path):
        assert np.all(np.asarray(orbax.load_tree(tmp_path / str(done))["x"]) == done)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_keep_the_newest_and_the_branch_points(tmp_path):
    write(tmp_path, range(1, 8), keep=2, keep_steps=(3,))
    assert sorted(os.listdir(tmp_path)) == ["3", "6", "7"]
    write(tmp_path, [8], keep=1, keep_steps=(3,))
    assert complete_steps(tmp_path) == [3, 8]
    write(tmp_path, range(9, 13))
    assert complete_steps(tmp_path) == [3, *range(8, 13)]


def test_one_more_than_kept_at_any_time(tmp_path):
    """The old one goes only when the new one is whole; the forecast counts on no more than that."""
    with Stream(tmp_path, mergeable=True, keep=2) as stream:
        for step in range(1, 6):
            stream.save(step, {"params": tree(step)})
            assert set(range(max(1, step - 2), step)) <= set(complete_steps(tmp_path)) <= set(range(step - 2, step + 1))
            stream.wait()
            assert complete_steps(tmp_path) == stream.steps == list(range(max(1, step - 1), step + 1))


def test_steps_older_than_the_newest_after_a_crash(tmp_path):
    """The merge stream may be ahead of the full state that a run goes on from."""
    write(tmp_path, [1, 2, 3, 4], keep=2)
    write(tmp_path, [2, 3, 4, 5], keep=2)
    assert sorted(os.listdir(tmp_path)) == ["4", "5"]


# --- how it is stored ------------------------------------------------------------------------------------------------


def stored(path, leaf):
    """The stored array as TensorStore sees it."""
    return tensorstore.open({"driver": "zarr3", "kvstore": f"file://{path / 'params' / leaf}/"}, open=True).result()


@pytest.mark.parametrize("way", ["stream", "save_tree"])
def test_the_merge_stream_is_float32_uncompressed_and_in_chunks_of_64_MB(tmp_path, way):
    params = {"stacked": jnp.zeros((4, 1024, 5000)), "vector": jnp.ones(7)}  # 82 MB of zeros
    if way == "stream":
        with Stream(tmp_path, mergeable=True) as stream:
            stream.save(1, {"params": params})
    else:
        orbax.save_tree(tmp_path / "1", params)
    for name, leaf in params.items():
        array = stored(tmp_path / "1", name)
        assert (array.shape, array.dtype) == (leaf.shape, tensorstore.float32)
        chunk = [int(size or 0) for size in array.chunk_layout.read_chunk.shape or ()]
        assert 0 < math.prod(chunk) * 4 <= 64 * 10**6
        metadata = array.spec().to_json()["metadata"]
        assert metadata.get("compressor") is None
        assert not {"zstd", "blosc", "gzip"} & {str(codec.get("name")) for codec in metadata.get("codecs", [])}
    assert disk.disk_bytes(tmp_path) >= disk.tree_bytes(params)  # zeros would shrink to nothing


SHAPES = {
    "layers": (6, 16, 40),
    "wide_layers": (3, 8, 8, 32),
    "tall": (300, 8),
    "many": (300, 2, 2, 2),
    "wide": (8, 300),
    "long": (4001,),
}


def save_small_chunks(folder: str) -> None:
    """A merge checkpoint with arrays far larger than its chunks, replicated over all devices."""
    orbax.CHUNK_BYTES = 4000
    everywhere = jax.sharding.NamedSharding(
        jax.make_mesh((jax.device_count(),), ("data",)), jax.sharding.PartitionSpec()
    )
    params = {name: jax.device_put(jnp.ones(shape), everywhere) for name, shape in SHAPES.items()}
    with Stream(folder, mergeable=True) as stream:
        stream.save(1, {"params": params})


@pytest.mark.integration
def test_every_chunk_of_the_merge_stream_is_a_range_of_its_leaf(tmp_path):
    """With several devices too, each of which has all of the arrays."""
    code = f"from tests.checkpoints.test_checkpoints import save_small_chunks; save_small_chunks({str(tmp_path)!r})"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | flags, check=True)
    with storage.open_sources([tmp_path / "1"], None) as (source,):
        assert {path: (leaf.shape, leaf.quantum) for path, leaf in source.leaves.items()} == {
            name: (shape, 1) for name, shape in SHAPES.items()
        }
    layouts = {name: stored(tmp_path / "1", name).chunk_layout.read_chunk.shape for name in SHAPES}
    chunks = {name: tuple(int(size or 0) for size in shape or ()) for name, shape in layouts.items()}
    assert chunks["layers"] == (1, 16, 40) and chunks["wide_layers"] == (1, 8, 8, 32)
    assert chunks["wide"] == (1, 300)
    for name in ("tall", "many"):
        assert chunks[name][1:] == SHAPES[name][1:] and 2000 < math.prod(chunks[name]) * 4 <= 4000


# --- what a kill leaves ----------------------------------------------------------------------------------------------


def test_only_whole_checkpoints_are_listed(tmp_path):
    write(tmp_path / "s", [10, 20])
    assert complete_steps(tmp_path / "nothing") == []
    (tmp_path / "s" / "30").mkdir()
    (tmp_path / "s" / "40").write_text("")
    shutil.copytree(tmp_path / "s" / "20", tmp_path / "s" / f"50.{TEMPORARY}-1700000000")
    shutil.copytree(tmp_path / "s" / "20", tmp_path / "s" / "newest")
    assert complete_steps(tmp_path / "s") == [10, 20]
    assert not orbax.is_checkpoint(tmp_path / "s")


def test_leftovers_go_when_the_run_goes_on_but_not_when_it_is_read(tmp_path):
    write(tmp_path, [10])
    leftovers = ["20.orbax-checkpoint-tmp-17", f"{TEMPORARY}20", f"{TEMPORARY}20.orbax-checkpoint-tmp", ".deleted-5"]
    for name in leftovers:
        shutil.copytree(tmp_path / "10", tmp_path / name)
    with Stream(tmp_path, mergeable=True, read_only=True) as stream:
        assert_same_bits(stream.load(10, {"params": abstract(tree(10))}), {"params": tree(10)})
    assert sorted(os.listdir(tmp_path)) == sorted(["10", *leftovers])
    write(tmp_path, [])
    assert os.listdir(tmp_path) == ["10"]


KILLED_WHILE_REMOVING = """
import os, signal, sys
import jax.numpy as jnp
from wsm_jax.checkpoints.stream import Stream

doomed, files = False, 0

def watch(event, arguments):
    global doomed, files
    if event == "shutil.rmtree" and str(arguments[0]).startswith({folder!r}):
        doomed = True
    if event == "os.remove" and doomed:
        files += 1
        if files == {files}:
            os.kill(os.getpid(), signal.SIGKILL)

with Stream({folder!r}, mergeable=False, keep=1) as stream:
    stream.save(1, {{"params": {{"x": jnp.ones(9)}}}})
    stream.save(2, {{"params": {{"x": jnp.ones(9)}}}})
    sys.addaudithook(watch)
    stream.wait()
"""


@pytest.mark.integration
@pytest.mark.parametrize("files", [1, 6])
def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_half_of_it(tmp_path, files):
    program = textwrap.dedent(KILLED_WHILE_REMOVING).format(folder=str(tmp_path), files=files)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(os.listdir(tmp_path)) == 2
    assert complete_steps(tmp_path) == [2]
    assert np.all(np.asarray(orbax.load_tree(tmp_path / "2")["x"]) == 1)
    Stream(tmp_path, mergeable=False, keep=1).close()
    assert os.listdir(tmp_path) == ["2"]


# --- errors ----------------------------------------------------------------------------------------------------------


def test_one_line_errors(tmp_path):
    with Stream(tmp_path, mergeable=False) as stream:
        stream.save(1, {"params": tree(1), "opt_state": tree(2)})
        stream.save(2, {"weights": tree(1)})
        stream.save(3, {"weights": tree(1), "opt_state": tree(2)})
    one, two, three = (tmp_path / str(step) for step in (1, 2, 3))
    assert orbax.choose_item(one) == "params"
    assert orbax.choose_item(one, "opt_state") == "opt_state"
    assert orbax.choose_item(two) == "weights"
    load, describe = orbax.load_tree, orbax.abstract_tree
    cases = [
        (functools.partial(load, tmp_path / "9"), r"9 is not a complete Orbax checkpoint"),
        (functools.partial(describe, tmp_path), r"is not a complete Orbax checkpoint"),
        (functools.partial(load, one, "mu"), r"has no item 'mu'; it has opt_state, params"),
        (functools.partial(load, three), r"has the items opt_state, weights; say which one to read"),
        (functools.partial(orbax.user_metadata, tmp_path / "9"), r"is not a complete Orbax checkpoint"),
        (functools.partial(orbax.save_tree, one, tree(1)), r"1 exists; choose another name or remove it"),
    ]
    for call, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", ["_METADATA", "c"])
def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path, broken):
    orbax.save_tree(tmp_path / "c", tree(1))
    if broken == "_METADATA":
        (tmp_path / "c" / "params" / broken).write_text("{}")
    else:  # the chunks of one array
        shutil.rmtree(next((tmp_path / "c" / "params").rglob(broken)))
    with pytest.raises(UsageError, match=str(tmp_path / "c")):
        orbax.load_tree(tmp_path / "c")


# --- the disk --------------------------------------------------------------------------------------------------------


def test_the_forecast_of_a_stream():
    size = disk.tree_bytes(tree(0))
    assert size == 4 * 8 * 4 + 3 * 4
    assert forecast.stream_bytes(tree(0), range(1, 11), 0) == 10 * size
    assert forecast.stream_bytes(tree(0), range(1, 11), 2) == 3 * size  # the third is written before the first goes
    assert forecast.stream_bytes(tree(0), range(1, 11), 2, (4, 5, 99)) == 5 * size
    assert forecast.stream_bytes(tree(0), [3], 2, (3,)) == size
    assert forecast.stream_bytes(tree(0), [], 2) == 0


def test_too_little_disk(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: asked.append(Path(path)) or shutil._ntuple_diskusage(9, 4, 5)
    )
    disk.check_disk(tmp_path / "not" / "yet", 5)
    assert asked == [tmp_path]
    with pytest.raises(UsageError, match=r"yet needs 0\.000 GB more but its disk has 0\.000 GB free; lower checkpoint"):
        disk.check_disk(tmp_path / "not" / "yet", 6, "lower checkpoint.merge_keep")
    assert disk.disk_bytes(tmp_path / "not") == 0
