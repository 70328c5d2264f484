"""The verbs, one after the other, as a user types them: import, inspect, evaluate, merge, search, export, train on."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.interchange.folders import BFLOAT16, NEOX, ROWS, TEXT, arrays, make, same_bits, tensors_of
from tests.runs import SIX_STEPS
from wsm_jax import Run, cli
from wsm_jax.checkpoints import orbax
from wsm_jax.core.trees import named_leaves

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.integration
VALUES = {**NEOX, "vocab_size": ROWS, "use_parallel_residual": False}


def wsm(capsys, *arguments):
    """Status, standard output as JSON where it is that, the last line on standard error."""
    status = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    out = json.loads(printed.out) if printed.out.startswith(("{", "[")) else printed.out
    return status, out, (printed.err.splitlines() or [""])[-1]


@pytest.fixture
def series(tmp_path, monkeypatch):
    """A series of four checkpoints in a folder, the text, and the current folder in which both lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WSM_DATA", str(tmp_path / "data"))
    for step in (100, 200, 300, 400):
        make(tmp_path / "there" / f"step{step}", VALUES, arrays(VALUES, seed=step, dtype=BFLOAT16))
    (tmp_path / "text").mkdir()
    for i, line in enumerate(TEXT[:6]):
        (tmp_path / "text" / f"{i}.txt").write_text(line)
    return tmp_path / "there"


def test_a_series_is_imported_merged_scored_and_exported(series, capsys):
    assert wsm(capsys, "import", series, "--output=run")[0] == 0
    status, facts, _ = wsm(capsys, "inspect", "run", "--json")
    assert (status, facts["merge_steps"], facts["merge_interval"]) == (0, [100, 200, 300, 400], 100)
    status, _, line = wsm(capsys, "eval", "--run=run")
    assert status == 2 and line == "wsm: run was imported and has no data of its own; give it text: --source=text:PATH"
    status, last, _ = wsm(capsys, "eval", "--run=run", "--source=text:text", "--json")
    assert status == 0 and last["documents"] == 6 and last["tokens"] > 6
    assert last["bits_per_byte_low"] < last["bits_per_byte"] < last["bits_per_byte_high"]
    nats = last["loss"] * last["tokens"]
    assert last["bits_per_byte"] == pytest.approx(nats / np.log(2) / sum(map(len, TEXT[:6])))

    assert wsm(capsys, "merge", "--run=run", "--curve=minus_sqrt", "--count=3", "--name=m")[0] == 0
    status, found, _ = wsm(capsys, "merge", "--run=run", "--curve=search", "--count=4", "--source=text:text", "--json")
    assert (status, found["fit"]["source"]) == (0, "text:text") and found["fit"]["last_checkpoint"] == last["loss"]
    status, learned, _ = wsm(
        capsys, "merge", "--run=run", "--curve=learned", "--count=2", "--source=text:text", "--fit_steps=2", "--json"
    )
    assert status == 0 and "split" not in learned["fit"]
    assert wsm(capsys, "eval", "--run=run", "--merged=m", "--source=text:text")[0] == 0

    status, told, _ = wsm(capsys, "export", "--run=run", "--merged=m", "--output=out", "--check", "--json")
    assert status == 0 and told["logits_differ_by"] < 1e-5
    weights = json.loads(Path("out/merge.json").read_text())["weights"]
    inputs = [tensors_of(series / f"step{step}") for step in (200, 300, 400)]
    merged = {
        name: np.tensordot(weights, np.stack([one[name].astype(np.float64) for one in inputs]), 1).astype(np.float32)
        for name in inputs[0]
    }
    written = tensors_of(series.parent / "out")
    for name, expected in merged.items():
        assert written[name].dtype == BFLOAT16
        np.testing.assert_allclose(written[name].astype(np.float32), expected, atol=1e-2)  # half a bfloat16
    card = Path("out/README.md").read_text()
    assert "A merge of 3 checkpoints of `" in card and "- curve: minus_sqrt" in card and "| `400` | 400 |" in card

    for arguments, message in (
        (("merge", "--run=run", "--curve=linear", "--window=1ktok"), "nobody knows how many tokens a step of run was"),
        (("merge", "--run=run", "--curve=linear", "--count=2", "--source=text:text"), "--source goes with --curve="),
        (("merge", "--run=run", "--curve=linear", "--count=2", "--weight_decay_aware"), "needs the rate and the decay"),
        (("import", series, "--output=run"), "run exists; choose another name or remove it"),
        (("import", "EleutherAI/pythia-14m@step9", "--output=hub"), "pip install"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "huggingface_hub", None)
            status, _, line = wsm(capsys, *arguments)
        assert status == 2 and message in line, line


def test_a_run_that_was_trained_here_goes_out_and_comes_back(tiny, capsys, tmp_path, monkeypatch):
    run = tiny.run("trained", **SIX_STEPS)
    monkeypatch.chdir(tmp_path)
    status, told, _ = wsm(capsys, "export", f"--run={run.path}", "--output=out", "--check", "--json")
    assert status == 0 and told["architecture"] == "GPT2LMHeadModel" and told["logits_differ_by"] < 1e-5
    assert wsm(capsys, "import", "out", "--output=back")[0] == 0
    back = named_leaves(orbax.load_tree(Run("back").merge_stream / "1"))
    leaves = named_leaves(orbax.load_tree(run.merge_stream / "6"))
    assert {path for path in back if path not in leaves} == {path for path in back if path.endswith("/bias")}
    same_bits({path: np.asarray(back[path]) for path in leaves}, {p: np.asarray(leaf) for p, leaf in leaves.items()})
    assert Run("back").facts["data"]["tokenizer_hash"] == run.facts["data"]["tokenizer_hash"]

    config = Run("back").config.model
    fields = {f"model__{name}": getattr(config, name) for name in ("bias", "activation", "vocab_size", "context")}
    fields["data__tokenizer"] = str(tmp_path / "back" / "public")
    on = tiny.run("on", params_from=Run("back").merge_stream / "1", **SIX_STEPS, **fields)
    assert on.metrics("train")[0]["loss"] < run.metrics("train")[0]["loss"]
