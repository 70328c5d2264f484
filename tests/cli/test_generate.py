"""``wsm generate``: what it prints, as a process too, and what it refuses before it reads a weight."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import jax.numpy as jnp
import pytest

from wsm_jax import Run, cli
from wsm_jax.checkpoints import orbax
from wsm_jax.data.tokenizer import load_tokenizer
from wsm_jax.evaluation import evaluate

ROOT = Path(__file__).parent.parent.parent
FIXTURE = ROOT / "tests" / "fixtures" / "version_0_1"
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def run(store, tmp_path, monkeypatch):
    """A small run, the one that version 0.1 wrote, on a machine that made its tokens anew; its data are in the root."""
    monkeypatch.chdir(ROOT)
    with tarfile.open(FIXTURE / "run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    (then,) = facts["data"]["stable"]
    then["path"] = str(tmp_path / "elsewhere" / Path(then["path"]).name)
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    found = Run(tmp_path / "run")
    evaluate.model_and_data(found)  # writes the store, and with it the tokenizer
    assert evaluate.tokenizer_place(found).parent == store / "tokens"
    return found


def told(run: Run, capsys, *arguments: str) -> tuple[int, str, str]:
    """Status, text and the last line on stderr."""
    status = cli.main(["generate", f"--run={run.path}", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, (printed.err.splitlines() or [""])[-1]


@pytest.mark.integration
def test_text_comes_the_same_by_itself_as_json_and_from_a_file(run, tmp_path, capsys):
    status, text, _ = told(run, capsys, "--prompt=import", "--max_tokens=9")
    assert status == 0 and text.endswith("\n") and len(text) > 3
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("import", "def f(x):\n    re")))
    status, lines, _ = told(run, capsys, f"--prompts={file}", "--max_tokens=9", "--json")
    first, second = map(json.loads, lines.splitlines())
    assert (status, first["prompt"], first["text"]) == (0, "import", text[:-1])
    assert (first["tokens"], first["finish"]) == (9, "length") and second["text"]
    _, both, _ = told(run, capsys, f"--prompts={file}", "--max_tokens=9")
    assert both == f"{first['text']}\n{second['text']}\n"

    stop = first["text"][2:4]
    _, cut, _ = told(run, capsys, "--prompt=import", "--max_tokens=9", f"--stop={stop}", "--json")
    assert json.loads(cut)["finish"] == "stop"
    assert json.loads(cut)["text"] == first["text"][: first["text"].index(stop)]


@pytest.mark.integration
def test_conversations_are_written_by_the_template_beside_the_tokenizer(run, tmp_path, capsys):
    status, _, line = told(run, capsys, "--prompt=a", "--chat")
    assert status == 2 and "there is no chat template beside the tokenizer" in line
    place = evaluate.tokenizer_place(run)
    config = place / "tokenizer_config.json"
    try:
        config.write_text(json.dumps({"chat_template": CHAT}))
        status, text, _ = told(run, capsys, "--prompt=a", "--chat", "--max_tokens=4", "--json")
        assert status == 0 and json.loads(text)["tokens"] == 4
        config.write_text(json.dumps({"chat_template": "{{ raise_exception('no system role') }}"}))
        status, _, line = told(run, capsys, "--prompt=a", "--chat")
        assert status == 2 and "refuses the messages: no system role" in line
    finally:
        config.unlink()


def test_what_is_bad_is_refused_in_one_line_before_a_weight_is_read(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "load", lambda *_: pytest.fail("weights were read"))
    long, context = "x y z " * 200, run.config.model.context
    tokens = len(load_tokenizer(evaluate.tokenizer_place(run)).encode(long)) + 1
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    for arguments, message in [
        (["--prompt=a", "--max_tokens=0"], "max_tokens is 0; it must be at least 1"),
        (["--prompt=a", "--temperature=-1"], "temperature is -1.0; it must be at least 0"),
        (["--prompt=a", "--top_p=0"], "top_p is 0.0; it must be above 0"),
        (["--prompt=a", "--top_k=-2"], "top_k is -2"),
        (["--prompt=a", "--batch_size=0"], "batch_size is 0"),
        (["--prompt=a", "--stop="], "--stop= is empty"),
        (["--prompt=a", "--stop", ""], "is empty"),
        (["--prompt=a", "--step=13"], "has no checkpoint of params at step 13; it has"),
        (["--prompt=a", "--merged=none"], "has no merge 'none'"),
        ([f"--prompt={long}"], f"the prompt has {tokens} tokens, {tokens - context + 1} more than leave room"),
        ([f"--prompts={file}"], "prompts.jsonl line 2 has neither a string 'prompt' nor 'messages'"),
        ([f"--prompts={file}.no"], "is not there; prompts are JSON lines"),
        ([], "one of the arguments --prompt --prompts is required"),
    ]:
        status, text, line = told(run, capsys, *arguments)
        assert (status, text) == (2, "") and message in line, (arguments, line)


@pytest.mark.integration
def test_logits_that_are_not_finite_end_with_status_3(run, capsys):
    tree = orbax.load_tree(run.merge_stream / "12")
    tree["blocks"]["mlp"]["up"]["kernel"] = tree["blocks"]["mlp"]["up"]["kernel"].at[1, 0, 0].set(jnp.nan)
    orbax.save_tree(run.merged("bad"), tree)
    status, text, line = told(run, capsys, "--prompt=a", "--merged=bad")
    assert (status, text) == (3, "") and "after prompt 1: leaf blocks/mlp/up/kernel" in line and "bad" in line


@pytest.mark.integration
def test_a_process_streams_draws_that_a_seed_repeats(run):
    command = [sys.executable, "-m", "wsm_jax", "generate", f"--run={run.path}", "--prompt=def ", "--max_tokens=12"]
    command += ["--temperature=0.9", "--top_k=50", "--top_p=0.95", "--seed=3"]
    first, second = (
        subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, check=False) for _ in range(2)
    )
    assert first.returncode == 0, first.stderr.decode()
    assert first.stdout == second.stdout and first.stdout.decode().endswith("\n")
    shutil.rmtree(run.merge_stream)
    shutil.rmtree(run.resume_stream)
    gone = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert (gone.returncode, gone.stdout) == (2, "") and "holds no complete checkpoint" in gone.stderr
