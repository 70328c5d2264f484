"""Addresses that are no path here: refused in one line, wherever a path is taken, before anything is made."""

import pathlib

import numpy as np
import pytest

from tests.merging.trees import bits, flat, save_all, tree
from wsm_jax import UsageError
from wsm_jax.checkpoints import orbax, output
from wsm_jax.cli import main
from wsm_jax.io import places

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIG = f"--config={ROOT / 'configs' / 'tiny.py'}"
TRAIN = ["train", CONFIG]


@pytest.mark.parametrize("text", ["s3://bucket/run", "az://a/b", "https://host/run", "gs:/lost/slash", "file:///a"])
def test_an_address_is_no_folder(text):
    with pytest.raises(UsageError, match="is no path of a file system"):
        places.at(text)
    with pytest.raises(UsageError, match="is no path of a file system"):  # Path has made one slash of two
        places.at(pathlib.Path(text))


@pytest.mark.parametrize("text", ["runs/a", "/abs/s3:/x", "a:b", "run@750", "./s3://x", "~/x", "x:0.5"])
def test_paths_stay_what_they_were(text):
    assert places.at(text) == pathlib.Path(text)


def test_a_path_upwards_is_resolved_as_the_system_does_and_no_further(tmp_path, monkeypatch):
    (tmp_path / "runs" / "here").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "runs" / "here")
    assert places.at("../other/1") == tmp_path / "runs" / "other" / "1"
    assert places.at("../link/../x") == tmp_path / "elsewhere" / "x"
    assert places.at("../../out") == tmp_path / "out"  # a link that an output would follow stays one
    assert places.at("..") == tmp_path / "runs"


def test_checkpoints_beside_the_current_folder_are_merged_and_read(tmp_path, monkeypatch):
    save_all(tmp_path / "steps", [tree(0), tree(1)])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["merge", "../steps/0", "../steps/1", "--output=../merged"]) == 0
    assert main(["inspect", "--hashes", "../merged"]) == 0
    merged = orbax.load_tree("../merged")
    np.testing.assert_allclose(flat(merged), (flat(tree(0)) + flat(tree(1))) / 2, atol=1e-6)
    assert bits(orbax.load_tree(tmp_path / "merged")) == bits(merged)


@pytest.mark.parametrize(
    "command",
    [
        [*TRAIN, "--run=s3://b/run"],
        [*TRAIN, "--run=new", "--branch_from=s3://b/run@5"],
        [*TRAIN, "--run=new", "--params_from=s3://b/run"],
        [*TRAIN, "--run=new", "--config.data.store=s3://b/store"],
        [*TRAIN, "--run=new", "--config.data.source=text:s3://b/text"],
        [*TRAIN, "--run=new", "--config.data.tokenizer=s3://b/tokenizer.json"],
        ["prepare", CONFIG, "--config.data.store=s3://b/store"],
        ["merge", "--run=s3://b/run", "--curve=linear", "--count=2"],
        ["merge", "s3://b/run/1", "s3://b/run/2", "--output=out"],
        ["merge", "s3://b/steps", "--count=2", "--output=out"],
        ["eval", "--run=s3://b/run"],
        ["inspect", "s3://b/run"],
        ["inspect", "--hashes", "s3://b/run"],
        ["report", "s3://b/run", "s3://b/other"],
    ],
)
def test_every_verb_refuses_it_before_anything_is_made(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WSM_DATA", str(tmp_path / "data"))
    assert main(command) == 2
    printed = capsys.readouterr()
    assert "is no path of a file system" in printed.err and printed.err.count("\n") == 1
    assert "s3://b" in printed.err
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for way in (output.check_free, lambda path: output.unfinished(path).__enter__()):
        with pytest.raises(UsageError, match="s3://b/out is no path of a file system"):
            way("s3://b/out")
    assert list(tmp_path.iterdir()) == []
