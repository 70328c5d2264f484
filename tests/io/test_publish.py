"""What appears whole or not at all."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from wsm_jax.io import publish


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_is_replaced_whole_and_keeps_what_is_not(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "notes").write_text("mine")
    (tmp_path / "report" / "table").write_text("old")
    with publish.replaced(tmp_path / "report") as made:
        (made / "table").write_text("new")
        assert (tmp_path / "report" / "table").read_text() == "old"
    assert names(tmp_path) == ["report", "report/notes", "report/table"]
    assert (tmp_path / "report" / "table").read_text() == "new"


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "table").write_text("old")
    with pytest.raises(RuntimeError), publish.replaced(tmp_path / "report") as made:
        (made / "table").write_text("new")
        raise RuntimeError
    with pytest.raises(RuntimeError), publish.published(tmp_path / "store") as made:
        (made / "tokens").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["report", "report/table"]
    assert (tmp_path / "report" / "table").read_text() == "old"


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_between_any_two_steps_loses_neither(tmp_path, renames):
    """Killed after so many renames; the next call begins with the newest that was whole."""
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "notes").write_text("mine")
    killed = """
import os, pathlib, signal, sys
from wsm_jax.io import publish
done = 0
def kill_after(rename):
    def killing(*places, **options):
        global done
        if done == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return rename(*places, **options)
    return killing
os.rename, os.replace, publish.shutil.rmtree = map(kill_after, (os.rename, os.replace, publish.shutil.rmtree))
with publish.replaced(pathlib.Path(sys.argv[1])) as made:
    (made / "table").write_text("half")
"""
    done = subprocess.run([sys.executable, "-c", killed, str(tmp_path / "report"), str(renames)])
    assert done.returncode == -signal.SIGKILL
    with publish.replaced(tmp_path / "report") as made:
        assert (made / "notes").read_text() == "mine" and (made / "table").exists() == (renames == 2)
        (made / "table").write_text("new")
    assert names(tmp_path / "report") == ["notes", "table"]
    assert (tmp_path / "report" / "table").read_text() == "new"
    assert not (tmp_path / ".old-report").exists()


def test_what_is_written_goes_to_the_disk_meanwhile_and_no_longer(tmp_path, monkeypatch):
    synced, again = [], threading.Event()

    def note(folder):
        synced.append(names(folder))
        again.set()

    monkeypatch.setattr(publish, "sync", note)
    monkeypatch.setattr(publish, "_FLUSH_SECONDS", 0.001)
    with publish.flushing(tmp_path):
        (tmp_path / "part").write_text("x")
        again.clear()
        assert again.wait(60) and again.clear() is None and again.wait(60)
    count = len(synced)
    time.sleep(0.05)
    assert synced[-1] == ["part"] and len(synced) == count


def test_all_is_synced_before_the_name_appears(tmp_path, monkeypatch):
    """In the order in which it happens: every file and folder, then the rename, then the folder of the name."""
    happened, opened = [], {}
    really_open, sync, replace = os.open, os.fsync, os.replace

    def note_open(path, *more, **options):
        descriptor = really_open(path, *more, **options)
        opened[descriptor] = str(path)
        return descriptor

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(os, "fsync", lambda file: (happened.append(opened[file]), sync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append("renamed"), replace(a, b)))
    (tmp_path / "made" / "inside").mkdir(parents=True)
    (tmp_path / "made" / "inside" / "file").write_text("x")
    publish.appear(tmp_path / "made", tmp_path / "place")
    made = str(tmp_path / "made")
    assert happened == [f"{made}/inside/file", f"{made}/inside", made, "renamed", str(tmp_path)]
