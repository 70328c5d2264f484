"""Addresses that are no path here: refused in one line, wherever a path is taken, before anything is made."""

import pathlib

import pytest

from wsm_jax import UsageError
from wsm_jax.checkpoints import output
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
