"""``wsm eval`` on checkpoints that are damaged or not finite: one line, and the status that says which."""

import json
import re
import shutil
import tarfile
from pathlib import Path

import jax.numpy as jnp
import pytest

from wsm_jax import Run, cli
from wsm_jax.checkpoints import orbax

ROOT = Path(__file__).parent.parent.parent
FIXTURE = ROOT / "tests" / "fixtures" / "version_0_1"


@pytest.fixture
def run(store, tmp_path, monkeypatch):
    """A small run, the one that version 0.1 wrote; its data are named relative to the root of the repository."""
    monkeypatch.chdir(ROOT)
    with tarfile.open(FIXTURE / "run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return Run(tmp_path / "run")


def evaluate(run, capsys, *arguments):
    """Status and the one line on stderr, beside the note that the run, of an earlier version, has no hashes."""
    status = cli.main(["eval", f"--run={run.path}", "--json", *arguments])
    printed = capsys.readouterr()
    *notes, line = printed.err.splitlines()
    assert printed.out == "" and line.startswith("wsm: "), printed
    assert all(re.match("note: .* has no hashes", note) for note in notes), printed
    return status, line


def test_parameters_that_are_not_finite_end_with_status_3_and_name_the_leaf(run, capsys):
    tree = orbax.load_tree(run.merge_stream / "12")
    tree["blocks"]["mlp"]["up"]["kernel"] = tree["blocks"]["mlp"]["up"]["kernel"].at[1, 0, 0].set(jnp.nan)
    orbax.save_tree(run.merged("bad"), tree)
    status, line = evaluate(run, capsys, "--merged=bad")
    assert status == 3
    assert f"{run.merged('bad')}: leaf blocks/mlp/up/kernel has 1 of" in line


@pytest.mark.parametrize("stream", ["merge", "resume"])
def test_a_chunk_that_is_cut_is_refused(run, capsys, stream):
    if stream == "resume":  # where a step is in both streams, the merge stream's is evaluated
        shutil.rmtree(run.merge_stream / "12")
    folder = run.path / "checkpoints" / stream / "12" / "params"
    files = folder.glob("*/c/**/*" if stream == "merge" else "d/*")
    chunk = max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-7])
    status, line = evaluate(run, capsys, "--step=12")
    assert status == 2
    assert str(folder.parent) in line and any(word in line for word in ("damaged", "cannot be read", "unreadable"))


def test_answers_are_measured_given_their_prompts(run, tmp_path, capsys):
    file = tmp_path / "answers.jsonl"
    items = [("import ", "os"), ("a", " = b"), ("x " * 5000, "left out")]
    file.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in items))
    assert cli.main(["eval", f"--run={run.path}", "--json", f"--answers={file}"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["answers"] == str(file) and "split" not in figures
    assert (figures["documents"], figures["left_out"], figures["bytes"]) == (2, 1, len("os = b"))
    assert 1 < figures["bits_per_byte"] < 20 and figures["bits_per_byte_stderr"] > 0

    file.write_text('{"prompt": "a"}\n')
    status, line = evaluate(run, capsys, f"--answers={file}")
    assert status == 2 and "answers.jsonl line 1 has no string field 'answer'" in line
