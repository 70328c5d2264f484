"""Finished requests: kept line by line, whole after a kill, and known by all that decides them."""

import itertools

import jax.numpy as jnp
import numpy as np

from wsm_jax.evaluation import journal
from wsm_jax.evaluation.journal import Journal
from wsm_jax.parallel import sharding


def test_what_was_added_is_there_after_a_kill_that_cut_a_line(tmp_path):
    file = tmp_path / "beside" / "requests.jsonl"
    first = Journal(file)
    first.add({"a": [1.25, True], "b": "text"})
    assert file.read_text().count("\n") == 2  # on the disk, though nothing was closed
    first.close()
    file.write_text(file.read_text() + '{"key": "c", "ans')
    second = Journal(file)
    assert (second.get("a"), second.get("b"), second.get("c")) == ([1.25, True], "text", None)
    second.add({"c": [0.1 + 0.2, False]})
    second.close()
    third = Journal(file)
    assert third.get("c") == [0.1 + 0.2, False] and file.read_text().count("\n") == 3
    third.close()


def test_nothing_is_written_without_a_file():
    kept = Journal()
    kept.add({"a": 1})
    assert kept.get("a") == 1
    kept.close()


def tokens(ids: list[int]) -> np.ndarray:
    return np.asarray(ids, np.int32)


def test_keys_differ_where_anything_does():
    requests = [
        ("model", "score", tokens([1, 2]), tokens([3])),
        ("model", "score", tokens([1]), tokens([2, 3])),
        ("model", "score", tokens([1, 2, 3]), tokens([])),
        ("model", "text", tokens([1, 2]), tokens([3])),
        ("other", "score", tokens([1, 2]), tokens([3])),
        ("model", "score", 12, tokens([3])),
        ("model", "score", 1, 2, tokens([3])),
    ]
    keys = [journal.key(*request) for request in requests]
    assert len(set(keys)) == len(keys) and keys[0] == journal.key(*requests[0])


def test_a_fingerprint_tells_values_places_leaves_and_dtypes():
    mesh = sharding.make_mesh()
    values = jnp.arange(12.0).reshape(3, 4)
    trees = [
        {"a": values, "b": jnp.zeros(3)},
        {"a": values.at[1, 2].set(jnp.nextafter(values[1, 2], jnp.inf)), "b": jnp.zeros(3)},
        {"a": values.at[0].set(values[1]).at[1].set(values[0]), "b": jnp.zeros(3)},
        {"a": values.reshape(4, 3), "b": jnp.zeros(3)},
        {"a": values, "c": jnp.zeros(3)},
        {"a": values, "b": jnp.zeros(3).at[2].set(-0.0)},
        {"a": values.astype(jnp.bfloat16), "b": jnp.zeros(3)},
        {"a": values.astype(jnp.int32), "b": jnp.zeros(3)},
    ]
    found = [journal.fingerprint(tree, mesh) for tree in trees]
    assert all(one != other for one, other in itertools.combinations(found, 2))
    assert found[0] == journal.fingerprint({"b": np.zeros(3, np.float32), "a": np.asarray(values)}, mesh)
