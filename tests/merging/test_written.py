"""What a merge keeps of what it wrote, and merges as values: hashes by the unit, several specs in one pass."""

import dataclasses
import json
import subprocess
import sys
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
import xxhash
from safetensors.numpy import load_file, save_file

import wsm_jax
from tests.merging.trees import bits, plain_chunks, save_all, tree
from wsm_jax import UsageError
from wsm_jax.checkpoints import orbax
from wsm_jax.core.trees import named_leaves
from wsm_jax.io import hashes
from wsm_jax.merging import offline
from wsm_jax.merging.spec import Input, MergeSpec


def digests(leaves, unit):
    """The table of ``leaves`` by its definition."""
    return {
        path: [
            xxhash.xxh3_128_hexdigest(
                leaf[start : start + unit].tobytes(), seed=zlib.crc32(path.encode()) << 32 ^ start
            )
            for start in range(0, leaf.size, unit)
        ]
        for path, leaf in ((path, np.asarray(leaf).reshape(-1)) for path, leaf in leaves.items())
    }


@pytest.mark.parametrize("form", ["orbax", "safetensors"])
@pytest.mark.parametrize("memory", [4096, 1 << 28])
def test_a_merge_keeps_the_hashes_of_what_it_holds(tmp_path, monkeypatch, form, memory):
    """However its inputs are stored and its blocks are cut: inputs in chunks of 300, units of 128 elements."""
    monkeypatch.setattr(hashes, "UNIT", 128)
    monkeypatch.setattr(orbax, "_storage_options", plain_chunks)
    random = np.random.default_rng(0)
    shapes = {"wide": (5, 60), "tall": (60, 5), "one": ()}
    paths = save_all(
        tmp_path, [{k: jnp.asarray(random.standard_normal(s)) for k, s in shapes.items()} for _ in range(2)]
    )
    wsm_jax.merge_checkpoints(paths, [0.3, 0.7], tmp_path / "out", format=form, memory=memory, dtype="float32")
    file = tmp_path / "out" / "model.safetensors"
    leaves = load_file(file) if form == "safetensors" else named_leaves(orbax.load_tree(tmp_path / "out"))
    kept = json.loads((tmp_path / "out" / "wsm_hashes.json").read_text())
    assert kept["arrays"] == {"" if form == "safetensors" else "params": digests(leaves, 128)}


def test_the_fingerprint_of_an_input_is_the_sum_of_its_hashes(tmp_path):
    paths = save_all(tmp_path, [tree(0), tree(1)])
    wsm_jax.merge_checkpoints(paths, [0.5, 0.5], tmp_path / "out")
    (read,) = wsm_jax.merge_checkpoints([tmp_path / "out"], [1.0], tmp_path / "again")["inputs"]
    table = hashes.read(tmp_path / "out", "params") or {}
    assert int(read["xxh3"], 16) == sum(int(unit, 16) for units in table.values() for unit in units) % 2**128
    assert hashes.read(tmp_path / "again", "params") == table


@pytest.mark.parametrize("form", ["orbax", "safetensors"])
def test_a_flipped_bit_of_a_merge_is_seen_by_the_next(tmp_path, form):
    wsm_jax.merge_checkpoints(save_all(tmp_path, [tree(0)]), [1.0], tmp_path / "in", format=form)
    file = next(
        file for file in (tmp_path / "in").rglob("*") if file.name in ("0", "model.safetensors") and file.is_file()
    )
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    for arguments in ((tmp_path / "out",), ()):
        with pytest.raises(UsageError, match=r"in: leaf .* is not what was written there .*; copy or merge it again"):
            wsm_jax.merge_checkpoints([tmp_path / "in"] * 2, [0.5, 0.5], *arguments)
    (tmp_path / "in" / "wsm_hashes.json").unlink()  # as earlier versions wrote it
    wsm_jax.merge_checkpoints([tmp_path / "in"] * 2, [0.5, 0.5], tmp_path / "out")


def test_merges_of_other_inputs_are_written_in_one_pass(tmp_path):
    """Weights may be negative. Each has the record and the policies of its own inputs."""
    trees = [{**tree(i), "n": jnp.asarray(i)} for i in range(4)]
    paths = save_all(tmp_path, trees)
    inputs = [Input(path, step=int(path.name)) for path in paths]
    early = MergeSpec((inputs[0], inputs[1]), [-0.5, 1.5], rules=[("^n$", "first")], output=tmp_path / "early")
    late = dataclasses.replace(
        early, inputs=(inputs[3], inputs[1]), weights={p: [0.25, 0.75] for p in named_leaves(trees[0])}
    )
    late = dataclasses.replace(late, output=tmp_path / "late")
    records = offline.write({"late": late, "early": early}, verify=True)
    for name, places, weights in (("early", [0, 1], [-0.5, 1.5]), ("late", [3, 1], [0.25, 0.75])):
        assert [entry["path"] for entry in records[name]["inputs"]] == [str(paths[i]) for i in places]
        merged = orbax.load_tree(tmp_path / name)
        alone = wsm_jax.merge([trees[i] for i in places], weights, rules=early.rules)
        for path, leaf in named_leaves(merged).items():
            np.testing.assert_allclose(leaf, named_leaves(alone)[path], rtol=0, atol=0 if path == "n" else 1e-6)
    assert records["early"]["weights"] == [-0.5, 1.5]
    assert records["late"]["weights"]["embedding"] == [0.25, 0.75]


def test_nothing_to_merge_is_refused(tmp_path):
    paths = save_all(tmp_path, [tree(0), tree(1)])
    for output in (None, tmp_path / "out"):
        with pytest.raises(UsageError, match=r"nothing to merge: .*0 has no leaf but skipped ones"):
            wsm_jax.merge_checkpoints(paths, [0.5, 0.5], output, rules=[("", "skip")])
    (tmp_path / "empty").mkdir()
    save_file({}, tmp_path / "empty" / "model.safetensors")
    with pytest.raises(UsageError, match=r"nothing to merge: .*empty has no leaf$"):
        wsm_jax.merge_checkpoints([tmp_path / "empty"], [1.0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merge_of_safetensors_imports_nothing_that_it_does_not_need(tmp_path):
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        save_file({"w": np.full(3, i, np.float32)}, tmp_path / str(i) / "model.safetensors")
    program = (
        "import sys; from wsm_jax import cli; status = cli.main(sys.argv[1:])\n"
        "heavy = 'orbax tensorstore flax optax matplotlib rich tqdm grain absl ml_collections tokenizers'.split()\n"
        "sys.exit(status or ', '.join(name for name in heavy if name in sys.modules) or None)"
    )
    command = [sys.executable, "-c", program, "merge", str(tmp_path / "0"), str(tmp_path / "1")]
    done = subprocess.run([*command, f"--output={tmp_path / 'out'}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert bits(load_file(tmp_path / "out" / "model.safetensors")) == np.full(3, 0.5, np.float32).tobytes()
