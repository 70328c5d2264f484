"""``wsm sweep``: what it lists and what it refuses, without a run."""

import json
import subprocess

import pytest

from tests.sweeps.examples import CONFIG, made
from wsm_jax.cli import main, sweep
from wsm_jax.errors import UsageError
from wsm_jax.io import files

MADE = f"""
from wsm_jax.sweeps import Sweep, axis, product
def get_sweep(scale="tiny"):
    rates = axis("config.optimizer.peak_lr", [0.001, 0.002])
    return Sweep("rates", {CONFIG!r}, product(rates, axis("merge.count", [2, 4])))
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rates.py").write_text(MADE)
    return "rates.py"


def refused(capsys, *arguments):
    assert main(["sweep", *arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_dry_run_lists_pieces_with_what_they_take_and_writes_nothing(file, capsys, tmp_path):
    assert main(["sweep", file, "--dry_run", "--json", "--config.model.d_model=64"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["output"] == "runs/rates/tiny"
    names = ["seed0-peak_lr=0.001", "seed0-peak_lr=0.002"]
    assert [(row["index"], row["piece"], row["arms"]) for row in found["pieces"]] == [
        (0, names[0], 3),
        (1, names[1], 3),
    ]
    assert found["pieces"][0]["steps"] == 128 and found["pieces"][0]["tokens"] == 128 * 4 * 32
    assert found["all"]["runs"] == 2 and found["all"]["seconds"] is None
    parameters = 4096 * 64  # at least: the embeddings; a checkpoint holds points and means in float32
    assert found["pieces"][0]["disk"] > 64 * 2 * 4 * parameters
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {file}
    assert main(["sweep", file, "--dry_run", "--only=1"]) == 0
    shown = capsys.readouterr().out
    assert names[1] in shown and names[0] not in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.py"], "wsm: no file nowhere.py"),
        (["rates.py", "--only=2"], "--only: no piece '2'; there are 0 seed0-peak_lr=0.001, 1 seed0-peak_lr=0.002"),
        (["rates.py", "--parallel=0"], "--parallel=0 must be at least 1"),
        (["rates.py", "--submit=slurm", "--hosts=a"], "--submit and --hosts exclude each other"),
        (["rates.py", "--hosts=a", "--shell=ssh {host}"], "--shell='ssh {host}' must have {host} and {command} in it"),
        (["rates.py", "--config=c.py"], "wsm sweep takes no --config=FILE"),
        (["rates.py", "--config.batch_sise=2"], "rates.py: run 'peak_lr=0.001': unknown option --config.batch_sise"),
        (["rates.py", "--config.optimizer.peak_lr=2"], "--config.optimizer.peak_lr is set by the sweep itself"),
        (["rates.py", "--output=rates.py"], "rates.py is no folder"),
        (["rates.py", "--output=s3://b/x"], "s3://b/x is no path of a file system"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_anything_starts(file, capsys, arguments, says, tmp_path):
    assert says in refused(capsys, *arguments)
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {file}


def test_pieces_that_read_different_text_are_refused_before_any_starts(file, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("WSM_DATA", str(tmp_path / "data"))
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number}")
    sources = [f"text:{tmp_path}/{name}" for name in "ab"]
    (tmp_path / file).write_text(MADE.replace('optimizer.peak_lr", [0.001, 0.002]', f'data.source", {sources}'))
    held_out = [f"--config.data.{split}_fraction=0.3" for split in ("validation", "test")]
    line = refused(capsys, file, "--config.data.tokenizer=bpe:300", *held_out)
    assert "read different data, so they would be measured on different documents" in line
    assert not (tmp_path / "runs").exists()


def test_the_folder_of_another_file_is_refused(file, capsys, tmp_path):
    (tmp_path / "out").mkdir()
    files.write_json(tmp_path / "out" / "sweep.json", {"name": "rates", "file": "other.py", "scale": "tiny"})
    line = "wsm: out is the folder of the sweep other.py:tiny; choose another --output"
    assert refused(capsys, file, "--output=out") == line
    files.write_json(tmp_path / "out" / "sweep.json", {"name": "rates", "file": file, "scale": "small"})
    assert "the sweep rates.py:small" in refused(capsys, file, "--output=out", "--dry_run")


def test_pieces_are_chosen_by_number_and_name():
    pieces = made().pieces
    assert [piece.name for piece in sweep.chosen(pieces, ["3,seed3-constant", "3"])] == [
        "seed3-constant",
        "seed4-other",
    ]
    assert sweep.chosen(pieces, []) == list(pieces)
    with pytest.raises(UsageError, match="no piece 'seed5'"):
        sweep.chosen(pieces, ["seed5"])


def test_an_array_of_slurm_has_a_job_for_each_piece(file, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TIME", "1:00:00")
    assert main(["sweep", file, "--submit=slurm", "--dry_run", "--only=1", "--config.data.store=a b"]) == 0
    script = capsys.readouterr().out
    assert {"#SBATCH --array=1", "#SBATCH --time=1:00:00", f"cd {tmp_path}"} <= {
        line.partition(" ||")[0] for line in script.splitlines()
    }
    assert """'--config.data.store=a b' --piece="$SLURM_ARRAY_TASK_ID" ||""" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {file}
