"""What a rival or a kill leaves behind of a merge."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

import wsm_jax
from tests.merging.trees import bits, save_all, tree
from wsm_jax import UsageError
from wsm_jax.checkpoints import orbax, storage
from wsm_jax.checkpoints import output as output_lib

pytestmark = pytest.mark.integration


def test_two_merges_cannot_write_the_same_output(tmp_path):
    paths = save_all(tmp_path, [tree(0)])
    with output_lib.unfinished(tmp_path / "out") as place:
        with pytest.raises(UsageError, match="out is being written by another merge"):
            wsm_jax.merge_checkpoints(paths, [1.0], tmp_path / "out")
        orbax.save_tree(place, tree(5))
    assert bits(orbax.load_tree(tmp_path / "out")) == bits(tree(5))
    assert sorted(os.listdir(tmp_path)) == ["0", "out"]


@pytest.mark.parametrize("planted", ["link", "folder", "file"])
def test_what_no_merge_has_made_is_neither_followed_nor_removed(tmp_path, planted):
    paths = save_all(tmp_path, [tree(0)])
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "keep").write_text("must survive")
    place = tmp_path / ".out.merging"
    if planted == "link":
        place.symlink_to(victim)
    elif planted == "folder":
        victim.rename(place)
        victim = place
    else:
        place.write_text("a file")
    with pytest.raises(UsageError, match=r"\.out\.merging is in the way"):
        wsm_jax.merge_checkpoints(paths, [1.0], tmp_path / "out")
    assert (victim / "keep").read_text() == "must survive"
    assert os.path.lexists(place)
    assert not (tmp_path / "out").exists()


def test_links_among_the_leftovers_of_a_killed_merge_are_not_followed(tmp_path):
    paths = save_all(tmp_path, [tree(0)])
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "keep").touch()
    place = tmp_path / ".out.merging"
    place.mkdir()
    (place / output_lib.MARK).touch()
    (place / "out").symlink_to(tmp_path / "victim")
    wsm_jax.merge_checkpoints(paths, [1.0], tmp_path / "out")
    assert (tmp_path / "victim" / "keep").exists()
    assert sorted(os.listdir(tmp_path)) == ["0", "out", "victim"]


MERGE = """
import sys, wsm_jax
paths = sys.argv[2:]
wsm_jax.merge_checkpoints(paths, [1 / len(paths)] * len(paths), sys.argv[1])
"""


@pytest.mark.parametrize("form", ["orbax", "safetensors"])
def test_a_killed_merge_leaves_nothing_that_looks_whole_and_can_be_repeated(tmp_path, form):
    """Kills at several moments between the claim of the folder and the end of the merge."""
    trees = [{"a": np.random.default_rng(i).standard_normal((3000, 3000), np.float32)} for i in range(4)]
    (tmp_path / "in").mkdir()
    if form == "orbax":
        paths = save_all(tmp_path / "in", trees)
    else:
        paths = [tmp_path / "in" / str(i) for i in range(4)]
        for path, value in zip(paths, trees, strict=True):
            path.mkdir()
            save_file(value, path / "model.safetensors")
    out = tmp_path / "merged" / "out"
    place = out.parent / ".out.merging"
    command = [sys.executable, "-c", MERGE, str(out), *map(str, paths)]

    def started():
        """A merge that has just claimed its folder, which removes what an earlier one left in it."""
        shutil.rmtree(out, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        (place / output_lib.MARK).touch()
        (place / "leftover").touch()
        process = subprocess.Popen(command)
        while (place / "leftover").exists():
            assert process.poll() is None
            time.sleep(0.001)
        return process

    process, clock = started(), time.perf_counter()
    assert process.wait() == 0
    whole = time.perf_counter() - clock
    killed = 0
    for share in (0.0, 0.25, 0.5, 0.75):
        process = started()
        time.sleep(share * whole)
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (0, -signal.SIGKILL)
        if out.exists():  # it was done before, and is whole
            assert os.listdir(out.parent) == ["out"]
            with storage.open_sources([out]) as (source,):
                values = np.empty(9_000_000, np.float32)
                source.read("a", 0, values)
            np.testing.assert_allclose(
                values[:9000], np.mean([t["a"].ravel()[:9000] for t in trees], axis=0), atol=1e-6
            )
            continue
        assert process.returncode == -signal.SIGKILL
        assert os.listdir(out.parent) == [place.name]
        killed += 1
    assert killed >= 2
    shutil.rmtree(out, ignore_errors=True)
    record = wsm_jax.merge_checkpoints(paths, [0.25] * 4, out, verify=True)
    assert os.listdir(tmp_path / "merged") == ["out"]
    assert json.dumps(record)
