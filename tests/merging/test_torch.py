"""Merges of PyTorch's files: the same bits as of the same tensors in safetensors, in the same places."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from wsm_jax import cli

GOLDEN = Path(__file__).parents[1] / "golden" / "torch"
STEPS = (100, 200, 300)


def merge(*arguments: object) -> dict[str, np.ndarray]:
    """The tensors that ``wsm merge`` writes."""
    assert cli.main(["merge", *map(str, arguments)]) == 0
    output = next(str(one) for one in arguments if str(one).startswith("--output=")).removeprefix("--output=")
    return load_file(Path(output) / "model.safetensors")


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].tobytes()) == (array.dtype, array.tobytes()), name


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The merge of the tensors as PyTorch wrote them in safetensors."""
    path = tmp_path_factory.mktemp("safetensors")
    for step in STEPS:
        (path / str(step)).mkdir()
        shutil.copy(GOLDEN / f"{step}.safetensors", path / str(step) / "model.safetensors")
    return merge(path, "--count=3", "--curve=minus_sqrt", "--dtype=float32", f"--output={path / 'out'}")


def test_files_merge_to_the_bits_of_the_same_tensors_in_safetensors(tmp_path, expected):
    files = [GOLDEN / f"plain-{step}.pt" for step in STEPS]
    found = merge(*files, "--curve=minus_sqrt", "--dtype=float32", "--verify", f"--output={tmp_path / 'out'}")
    assert_same(found, expected)
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert [entry["format"] for entry in record["inputs"]] == ["torch"] * 3


def test_a_folder_of_steps_may_hold_files(tmp_path, expected):
    for step in STEPS:
        shutil.copy(GOLDEN / f"legacy-{step}.pth", tmp_path / f"epoch=0-step={step}.pth")
    (tmp_path / "step_400.pth").write_bytes((GOLDEN / "plain-100.pt").read_bytes()[:2000])  # being written
    found = merge(tmp_path, "--count=3", "--curve=minus_sqrt", "--dtype=float32", f"--output={tmp_path / 'out'}")
    assert_same(found, {name: array for name, array in expected.items() if name != "kind.uint16"})


def test_a_model_folder_keeps_its_configuration_and_its_shards(tmp_path):
    for step in (5, 10):
        shutil.copytree(GOLDEN / "sharded", tmp_path / f"checkpoint-{step}")
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"")
    assert cli.main(["merge", str(tmp_path), "--count=2", "--dtype=bfloat16", f"--output={tmp_path / 'out'}"]) == 0
    written = {file.name for file in (tmp_path / "out").iterdir()}
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    assert written == {*shards, "model.safetensors.index.json", "config.json", "merge.json", "wsm_hashes.json"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    tensors = {name: array for shard in shards for name, array in load_file(tmp_path / "out" / shard).items()}
    assert_same(tensors, {n: a.astype(tensors[n].dtype) for n, a in load_file(GOLDEN / "model.safetensors").items()})


def test_a_trainers_file_merges_without_its_optimizer_and_says_so(tmp_path, capsys):
    found = merge(GOLDEN / "nanogpt.pt", GOLDEN / "nanogpt.pt", f"--output={tmp_path / 'out'}")
    wanted = {f"_orig_mod.{name}": array for name, array in load_file(GOLDEN / "model.safetensors").items()}
    assert_same(found, wanted)
    (line,) = capsys.readouterr().err.splitlines()
    assert "optimizer, best_val_loss is left out" in line


def test_a_hostile_file_ends_the_command_with_one_line_and_writes_nothing(tmp_path, capsys):
    bad = tmp_path / "bad.bin"
    bad.write_bytes((GOLDEN / "plain-100.pt").read_bytes()[:3000])
    assert cli.main(["merge", str(GOLDEN / "plain-100.pt"), str(bad), f"--output={tmp_path / 'out'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{bad}: cut short or damaged" in line and list(tmp_path.iterdir()) == [bad]
