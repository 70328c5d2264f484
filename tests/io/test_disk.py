"""The disk that a training run will need: said before it starts, and refused where there is too little."""

import re
import shutil

import pytest

from tests.runs import MERGE, STEPS
from wsm_jax import UsageError
from wsm_jax.checkpoints import orbax
from wsm_jax.io import disk
from wsm_jax.training.loop import train

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.xdist_group("train")  # the reference run is made once


def test_the_disk_that_will_be_needed(tiny, reference, capsys):
    train(tiny.config(), reference.path)
    printed = capsys.readouterr().err
    found = re.search(
        r"disk: up to ([\d.]+) GB under \S+ \(merge stream (\d+) x ([\d.]+) MB, one every 3 steps; full states ",
        printed,
    )
    assert found, printed
    assert int(found[2]) == STEPS // MERGE
    size = disk.tree_bytes(orbax.abstract_tree(reference.merge_stream / str(STEPS)))
    assert float(found[3]) == pytest.approx(size / 1e6, abs=0.05)
    assert f"{reference.path} is complete at step {STEPS}" in printed
    # AdamW's state is two more copies; four full states at most at a time (two kept, the branch point, the next).
    assert float(found[1]) == pytest.approx((STEPS // MERGE + 4 * 3) * size / 1e9, abs=0.001)


def test_too_little_disk_is_an_error_before_training(tiny, reference, monkeypatch):
    def room(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - free, free))

    room(10**5)
    with pytest.raises(UsageError, match=r"never needs 0\.00\d GB more but its disk has 0\.000 GB free; lower"):
        tiny.run("never")
    assert not (tiny.folder / "never").exists()
    # A run that goes on has its own checkpoints on that disk already.
    needed = 28 * disk.tree_bytes(orbax.abstract_tree(reference.merge_stream / str(STEPS)))
    room(needed - disk.disk_bytes(reference.path / "checkpoints") + 10**4)
    tiny.run("reference")
    with pytest.raises(UsageError, match="GB more"):
        tiny.run("never")
