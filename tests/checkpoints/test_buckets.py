"""Streams and merges in a bucket, in this process: what is saved is loaded, what has no marker is not there."""

import os

import jax
import jax.numpy as jnp
import pytest

from tests.buckets import BUCKET, CUT
from tests.runs import assert_same_bits
from wsm_jax import UsageError, merge_checkpoints
from wsm_jax.checkpoints import inspection, orbax
from wsm_jax.checkpoints.stream import Stream, drop_after
from wsm_jax.io import places

pytest_plugins = ["tests.buckets"]


def tree(value: float):
    return {"a": {"kernel": jnp.arange(40000.0).reshape(100, 400) * value}, "b": jnp.arange(3) + int(value)}


def abstract(of):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), of)


@pytest.fixture
def folder(bucket, request):
    return places.at(f"gs://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}")


@pytest.mark.parametrize("mergeable", [True, False])
def test_what_is_saved_is_what_is_loaded(folder, mergeable):
    with Stream(folder, mergeable=mergeable, keep=2) as stream:
        for step in (5, 7, 10):
            stream.save(step, {"params": tree(step)}, {"tokens": step})
        stream.wait()
        assert stream.steps == orbax.complete_steps(folder) == [7, 10]
        assert_same_bits(stream.load(10, {"params": abstract(tree(10))}), {"params": tree(10)})
    assert orbax.user_metadata(folder / "7") == {"tokens": 7}
    assert orbax.item_names(folder / "7") == ["params"]
    assert inspection.verify(folder) == {
        "kind": "hashes", "path": str(folder), "checked": 2, "damaged": [], "unhashed": [],
    }  # fmt: skip
    drop_after(folder, 7)
    assert orbax.complete_steps(folder) == [7] and [path.name for path in folder.iterdir()] == ["7"]


def test_a_save_that_is_refused_or_killed_leaves_no_step_and_is_swept(folder, bucket):
    ended = []

    def refused(method, path, body):
        """From the marker on nothing may be written or removed any more: so it is after a kill."""
        if method == "POST" and "wsm_published" in path:
            ended.append(path)
        return 403 if ended and method != "GET" else None

    with bucket.failing(refused), pytest.raises(UsageError, match=r"/6: access denied") as caught:
        with Stream(folder, mergeable=True) as stream:
            stream.save(6, {"params": tree(6)})
    assert "\n" not in str(caught.value)
    assert bucket.names(f"{folder.key}/6/params/") and orbax.complete_steps(folder) == []
    with pytest.raises(UsageError, match="is not a complete Orbax checkpoint"):
        orbax.item_names(folder / "6")
    with Stream(folder, mergeable=True) as stream:
        assert not bucket.names(f"{folder.key}/")
        stream.save(6, {"params": tree(6)})
    assert orbax.complete_steps(folder) == [6]


@pytest.mark.integration  # both clients wait for a second before they try again
def test_a_connection_that_is_cut_within_an_upload_costs_nothing(folder, bucket):
    cut = [3]

    def fault(method, path, body):
        if method in ("POST", "PUT") and len(body) > 10_000 and cut[0]:
            cut[0] -= 1
            return CUT
        return None

    with bucket.failing(fault), Stream(folder, mergeable=True) as stream:
        stream.save(6, {"params": tree(6)})
    assert cut == [0]
    assert_same_bits(orbax.load_tree(folder / "6"), tree(6))


@pytest.mark.integration
@pytest.mark.parametrize("form", ["orbax", "safetensors"])
def test_merges_from_and_to_a_bucket_are_those_of_a_disk(folder, tmp_path, form, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (folder, tmp_path / "disk"):
        with Stream(place, mergeable=True) as stream:
            for step in (1, 2, 3):
                stream.save(step, {"params": tree(step)})
    inputs = [[place / str(step) for step in (1, 2, 3)] for place in (folder, tmp_path / "disk")]
    here = merge_checkpoints(inputs[1], [0.5, 0.3, 0.2])
    assert_same_bits(merge_checkpoints(inputs[0], [0.5, 0.3, 0.2]), here)
    record = merge_checkpoints(inputs[0], [0.5, 0.3, 0.2], folder / "out", verify=True, format=form)
    assert [one["path"] for one in record["inputs"]] == list(map(str, inputs[0]))
    merge_checkpoints(inputs[1], [0.5, 0.3, 0.2], tmp_path / "out", format=form)
    again = [merge_checkpoints([place / "out"], [1.0]) for place in (folder, tmp_path)]
    assert_same_bits(*again)
    assert inspection.verify(folder / "out")["damaged"] == []
    with pytest.raises(UsageError, match="out exists; choose another name"):
        merge_checkpoints(inputs[0], [0.5, 0.3, 0.2], folder / "out")
    (folder / "theirs" / "x").write_text("x")
    with pytest.raises(UsageError, match="theirs exists; choose another name"):
        merge_checkpoints(inputs[0], [0.5, 0.3, 0.2], folder / "theirs")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        path.name for path in (folder / "out").iterdir() if path.name != "wsm_published.json"
    )
