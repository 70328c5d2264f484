"""Fine-tuning on conversations: a packed batch is the conversations by themselves, and a run is like any other."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runs import SIX_STEPS, assert_same_checkpoints, records
from wsm_jax import Run, cli
from wsm_jax.checkpoints import orbax
from wsm_jax.config import OptimizerConfig
from wsm_jax.core import schedules
from wsm_jax.data import packing
from wsm_jax.data.packing import PackedRows
from wsm_jax.data.tokenizer import load_tokenizer
from wsm_jax.data.tokens import prepare
from wsm_jax.evaluation import evaluate
from wsm_jax.interchange import beside, outgoing
from wsm_jax.io.files import read_json, write_json
from wsm_jax.models import model as model_lib
from wsm_jax.training import optimizer as optimizer_lib
from wsm_jax.training.train_step import make_train_step

TWICE = ("--epochs=2", "--config.optimizer.peak_lr=3e-3")
pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.xdist_group("train")


@pytest.fixture(scope="module")
def talks(tiny):
    file = tiny.folder / "talks.jsonl"
    lines = [{"prompt": f"def f{n}(x):\n", "response": f"    return {'x + ' * (n % 6)}{n}\n"} for n in range(150)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def base(tiny):
    return tiny.run("base", **SIX_STEPS, model__context=48, checkpoint__merge_interval="2steps")


def sft(base, talks, name, *arguments, start="@6"):
    place = base.path.parent / name
    fractions = ["--config.data.validation_fraction=0.1", "--config.data.test_fraction=0.1"]
    command = ["sft", f"--run={place}", f"--params_from={base.path}{start}", f"--data={talks}", "--quiet"]
    assert cli.main([*command, *fractions, "--config.batch_size=4", *arguments]) == 0
    return Run(place)


@pytest.fixture(scope="module")
def tuned(base, talks):
    return sft(base, talks, "tuned", *TWICE)


@pytest.mark.integration
def test_it_is_a_run_like_any_other(base, talks, tuned, capsys):
    store = prepare(tuned.config.data).stable[0][0]
    rows = PackedRows(store, tuned.config.model.context, tuned.config.seed).rows(2)
    assert tuned.config.steps == -(-rows // 4)
    losses = [record["loss"] for record in tuned.metrics("train")]
    assert losses[-1] < losses[0] - 0.5
    assert cli.main(["merge", f"--run={tuned.path}", "--curve=linear", "--count=4", "--name=m"]) == 0
    capsys.readouterr()
    found = []
    for which in (f"--step={tuned.config.steps}", "--merged=m"):
        assert cli.main(["eval", f"--run={tuned.path}", which, "--split=test", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    tokens, learnt = store.tokens("test"), store.learnt("test")
    assert {figures["tokens"] for figures in found} == {int(learnt.sum())} and len(tokens) > learnt.sum()
    # Again, from the merge.
    again = sft(base, talks, "again", start="/../tuned/merged/m")
    assert again.facts["params_from"].endswith("tuned/merged/m")
    assert again.config.optimizer.peak_lr == 0.1 * tuned.config.optimizer.peak_lr


@pytest.mark.integration
def test_stopped_and_resumed_it_is_the_same_bit_for_bit(base, talks, tuned, monkeypatch):
    from wsm_jax.training.signals import StopSignals

    stop = tuned.config.steps // 2
    monkeypatch.setattr(StopSignals, "stopping", lambda self, done: done == stop)
    place = base.path.parent / "tuned-stopped"
    fractions = ["--config.data.validation_fraction=0.1", "--config.data.test_fraction=0.1"]
    command = ["sft", f"--run={place}", f"--params_from={base.path}@6", f"--data={talks}", "--quiet", *fractions]
    command += ["--config.batch_size=4", *TWICE]
    assert cli.main(command) == 75
    monkeypatch.undo()
    assert cli.main(command) == 0
    assert [record["step"] for record in Run(place).metrics("start")] == [0, stop]
    assert_same_checkpoints(tuned, Run(place))
    assert records(Run(place)) == records(tuned)


@pytest.mark.integration
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_packed_batch_has_the_losses_and_gradients_of_its_conversations(tuned, accumulate):
    corpus, config = prepare(tuned.config.data), tuned.config.model
    store = corpus.stable[0][0]
    model = model_lib.build(model_lib.dataclasses.replace(config, vocab_size=corpus.vocab_size))
    params = model.init(jax.random.key(0))
    packed = PackedRows(store, config.context, seed=5)
    batch = {name: np.stack([packed[n][name] for n in range(4)]) for name in packed[0]}
    total, count = 0.0, 0.0
    for row in range(4):
        for segment in range(1, batch["segments"][row].max() + 1):
            here = batch["segments"][row] == segment
            alone = {name: jnp.asarray(batch[name][row][here][None]) for name in ("inputs", "targets")}
            losses = model_lib.loss_per_token(model, params, alone["inputs"], alone["targets"])
            total += float((losses[0] * batch["weights"][row][here]).sum())
            count += batch["weights"][row].sum() if segment == 1 else 0
    rule = optimizer_lib.make(OptimizerConfig(clip_norm=0.0), schedules.constant(1e-3), model.leaves)
    state = {"params": params, "opt_state": rule.init(params), "step": jnp.int32(0), "averages": {}}
    step = jax.jit(make_train_step(model, rule, accumulate=accumulate))
    _, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["loss"], total / count, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs=0"], "--epochs=0 must be at least 1"),
        (["--config.duration=3steps"], "its duration from --epochs"),
        (["--config.nothing=1"], "unknown option --config.nothing"),
        (["--data=nowhere.jsonl"], "chat:nowhere.jsonl matches nothing"),
        (["--params_from={base}@5"], "has no checkpoint of params at step 5"),
        (["--params_from=nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(reference, talks, tmp_path, capsys, arguments, words):
    command = ["sft", f"--run={tmp_path / 'run'}", f"--params_from={reference.path}@6", f"--data={talks}", "--quiet"]
    assert cli.main([*command, *(argument.format(base=reference.path) for argument in arguments)]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_without_a_template_messages_are_refused(reference, tmp_path, capsys):
    file = tmp_path / "talks.jsonl"
    talk = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
    file.write_text(
        "".join(json.dumps({"messages": [*talk, {"role": "user", "content": str(n)}]}) + "\n" for n in range(200))
    )
    assert (
        cli.main(["sft", f"--run={tmp_path / 'r'}", f"--params_from={reference.path}", f"--data={file}", "--quiet"])
        == 2
    )
    assert "need a chat template" in capsys.readouterr().err


@pytest.mark.integration
def test_its_chat_template_goes_with_a_tuned_run(base, talks, tmp_path):
    """Also where the folder that it was tuned with is gone: into evaluations, the next fine-tuning and exports."""
    given = tmp_path / "tokenizer"
    shutil.copytree(base.tokenizer, given, ignore=shutil.ignore_patterns("*.bin", "train", "validation", "test"))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    write_json(given / "tokenizer_config.json", {"chat_template": template, "eos_token": "<|endoftext|>"})
    run = sft(base, talks, "templated", "--epochs=1", f"--config.data.tokenizer={given}")
    read = []
    for _ in range(2):
        place = beside.tokenizer_place(run)
        _, (store,), _ = evaluate.held_out(run, "test", f"chat:{talks}")
        read.append(load_tokenizer(place).decode(store.tokens("train")[:40].tolist()))
        shutil.rmtree(given, ignore_errors=True)
    assert read[0].startswith("user: def f") and read[0] == read[1]
    outgoing.write_beside(run, evaluate.fields_of(run), {}, "float32", tmp_path)
    assert read_json(tmp_path / "tokenizer_config.json")["chat_template"] == template
    assert read_json(tmp_path / "config.json")["eos_token_id"] == load_tokenizer(place).eot


@pytest.mark.integration
def test_the_evaluation_of_conversations_counts_responses(tuned):
    store = prepare(tuned.config.data).stable[0][0]
    chosen = packing.fitting(store, "validation", tuned.config.model.context)
    validation = tuned.metrics("validation")[-1]
    assert validation["documents"] == len(chosen) and np.isfinite(validation["loss"])
    assert orbax.complete_steps(tuned.merge_stream)[-1] == tuned.config.steps
