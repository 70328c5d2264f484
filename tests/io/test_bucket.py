"""Folders in a bucket: what is whole, who writes, what the bucket refuses."""

import json
import threading

import pytest

from tests.buckets import BUCKET, CUT
from wsm_jax import UsageError
from wsm_jax.io import claims, files, places, publish

pytest_plugins = ["tests.buckets"]


@pytest.fixture
def folder(bucket, request):
    name = request.node.name.replace("[", "-").replace("]", "")
    return places.at(f"gs://{BUCKET}/{name}")


def test_it_does_what_a_path_does(folder):
    assert places.at(folder) is folder and str(folder).startswith(f"gs://{BUCKET}/")
    assert folder.absolute() == folder.resolve() == folder
    assert [str(parent) for parent in folder.parents] == [f"gs://{BUCKET}"]
    assert not folder.exists() and not folder.is_dir() and list(folder.iterdir()) == list(folder.glob("*")) == []
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "a" / "b.json", {"é": 1})
    assert files.read_json(folder / "a" / "b.json") == {"é": 1}
    assert folder.is_dir() and not folder.is_file() and (folder / "a" / "b.json").is_file()
    assert list(folder.iterdir()) == list(folder.glob("*")) == [folder / "a"]
    assert [path.name for path in folder.glob("*/b.json")] == ["b.json"]
    with pytest.raises(FileNotFoundError):
        (folder / "no").read_text()
    (folder / "no").unlink(missing_ok=True)
    folder.rmtree()
    assert not folder.exists()


def test_a_folder_is_whole_once_it_has_its_marker_and_changes_are_told(folder, bucket):
    for name in ("x", "y/z"):
        (folder / name).write_text(name)
    assert not publish.is_whole(folder)
    publish.appear(folder, folder)
    assert publish.is_whole(folder) and publish.changed(folder) == []
    held = json.loads((folder / "wsm_published.json").read_text())["objects"]
    assert {name: one["size"] for name, one in held.items()} == {"x": 1, "y/z": 3}
    (folder / "x").write_text("w")  # of the same size
    (folder / "y/z").unlink()
    assert publish.changed(folder) == [("y/z", "is missing"), ("x", "is damaged")]
    with pytest.raises(UsageError, match="published by another process meanwhile"):
        publish.appear(folder, folder)


def test_what_has_no_marker_is_swept_and_removal_takes_the_marker_first(folder, bucket):
    for name in ("1", "2"):
        (folder / name / "data").write_text(name)
    publish.appear(folder / "1", folder / "1")
    publish.sweep(folder)
    assert [path.name for path in folder.iterdir()] == ["1"]
    bucket.requests.clear()
    publish.remove(folder / "1")
    deleted = [path for method, path in bucket.requests if method == "DELETE"]
    assert "wsm_published" in deleted[0] and not folder.exists()


def test_a_folder_of_a_disk_goes_there_and_back(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with publish.published(folder) as made:
        (made / "in").mkdir()
        (made / "in" / "large").write_bytes(bytes(range(256)) * 300)
        assert not folder.exists()
    there = publish.at_hand(folder)
    assert (there / "in" / "large").read_bytes() == bytes(range(256)) * 300
    assert publish.at_hand(folder) == there  # from the disk
    with publish.published(folder) as made:  # another process was faster
        (made / "other").write_text("x")
    assert publish.changed(folder) == []


def test_one_process_at_a_time_holds_a_folder(folder, monkeypatch):
    with claims.claimed(folder, "busy"):
        assert claims.is_claimed(folder)
        with pytest.raises(UsageError, match=r"^busy$"), claims.claimed(folder, "busy"):
            pass
    assert claims.is_claimed(folder) is False and not folder.exists()
    (folder / "wsm_claim.json").write_bytes(claims._mine())  # that could not be given back
    with claims.claimed(folder, "busy"):
        pass


def test_the_claim_of_a_killed_process_is_taken_over(folder, monkeypatch):
    dead = {**json.loads(claims._mine()), "pid": 2**22 + 1}
    (folder / "wsm_claim.json").write_text(json.dumps(dead))
    assert claims.is_claimed(folder) is False
    with claims.claimed(folder, "busy"):
        assert claims.is_claimed(folder)


def test_a_claim_of_another_machine_is_watched_and_a_loser_publishes_nothing(folder, monkeypatch, capsys):
    monkeypatch.setattr(claims, "LEASE", 0.5)
    other = {**json.loads(claims._mine()), "host": "elsewhere"}
    (folder / "wsm_claim.json").write_text(json.dumps(other))
    assert claims.is_claimed(folder) is None
    ended = threading.Event()

    def renew():
        number = 0
        while not ended.wait(0.05):
            number += 1
            (folder / "wsm_claim.json").write_text(json.dumps({**other, "renewal": number}))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(UsageError, match="busy"), claims.claimed(folder, "busy"):
            pass
    finally:
        ended.set()
        thread.join()
    monkeypatch.setattr(claims, "RENEW", 0.05)
    with claims.claimed(folder, "busy"):
        assert "held by a process of elsewhere" in capsys.readouterr().err
        (folder / "1" / "data").write_text("x")
        (folder / "wsm_claim.json").write_text(json.dumps(other))
        claims._held[str(folder)]._thread.join(5)
        with pytest.raises(UsageError, match="was taken over by another process"):
            publish.appear(folder / "1", folder / "1")
    assert (folder / "wsm_claim.json").is_file()  # the other's stays


def test_lines_are_written_whole_and_what_was_there_stays(folder, monkeypatch):
    for line in ("one\n", "two\n"):
        lines = files.Lines(folder / "x.jsonl")
        lines.add(line)
        lines.flush()
        lines.add(line)
        lines.close()
    assert (folder / "x.jsonl").read_text() == "one\none\ntwo\ntwo\n"


def test_what_the_bucket_refuses_is_one_line(folder, bucket):
    (folder / "x").write_text("x")
    for asked in (folder.exists, (folder / "x").read_bytes, lambda: publish.is_whole(folder)):
        with bucket.failing(lambda *_: 403), pytest.raises(UsageError, match="access denied") as caught:
            asked()
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    with pytest.raises(UsageError, match="there is no bucket nowhere"):
        places.at("gs://nowhere/run")
    with pytest.raises(UsageError, match="names no bucket"):
        places.at("gs://")


@pytest.mark.integration  # both clients wait for seconds before they try again
@pytest.mark.parametrize("fault", [503, 429, CUT])
def test_what_fails_for_a_while_is_tried_again(folder, bucket, fault):
    left = {"PUT": 1, "POST": 1, "GET": 1}

    def once(method, path, body):
        left[method] = left.get(method, 0) - 1
        return fault if left[method] >= 0 else None

    with bucket.failing(once):
        (folder / "x").write_text("x" * 1000)
        assert (folder / "x").read_text() == "x" * 1000
        left["POST"] = left["GET"] = 1
        publish.appear(folder, folder)
    assert publish.changed(folder) == []
