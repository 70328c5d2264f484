"""``wsm eval --tasks``: questions in, records out, for one merge and for many; what is refused; a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from lm_eval.api.instance import Instance

from tests.evaluation.questions import ARTICLES, CONTEXT, QUESTIONS, command, read, write
from tests.runs import ended, stop_when
from wsm_jax import Run, cli
from wsm_jax.checkpoints import integrity, orbax
from wsm_jax.data.tokenizer import Tokenizer
from wsm_jax.evaluation import benchmark, evaluate, language, scorer, task_files
from wsm_jax.evaluation.harness import LanguageModel
from wsm_jax.evaluation.journal import Journal
from wsm_jax.parallel import sharding


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write(tmp_path_factory.mktemp("harness"))


def make_model(run: Run, **options: Any) -> LanguageModel:
    model = LanguageModel(evaluate.model_of(run), language.of(run), sharding.make_mesh(), **options)
    model.answer_with(evaluate.load(run, run.merge_stream / "300"), "tiny")
    return model


@pytest.mark.integration
def test_a_checkpoint_is_scored_and_written_in_both_formats(place, tmp_path, capfd, monkeypatch):
    tasks = "--tasks=arc_easy,winogrande,mmlu,wikitext"
    monkeypatch.chdir(tmp_path)  # which is in no repository of git, and git would say so
    assert cli.main(command(place, tmp_path, tasks)) == 0
    printed, said = capfd.readouterr()
    assert "fatal" not in said
    assert "step-300" in printed and f"results: {tmp_path / 'step-300'}" in printed.replace("\n", "")
    found = read(tmp_path / "step-300")
    assert [(name, r["questions"], r["shots"], r["group"]) for name, r in found.items()] == [
        ("arc_easy", 12, 0, "general knowledge"),
        ("winogrande", 4, 0, "language"),
        ("mmlu", 8, 5, "professional knowledge"),
        ("wikitext", 2, 0, "language"),
    ]
    one = found["arc_easy"]
    assert (one["metric"], one["chance"], one["version"]) == ("acc_norm", pytest.approx(1 / 3), 1.0)
    assert (one["bos"], one["dtype"], one["truncated"], one["cut"]) == ("none", "float32", 0, "from the left")
    assert one["tokenizer_hash"] == Run(place / "run").facts["data"]["tokenizer_hash"] and len(one["prompt_hash"]) == 16
    assert one["bits_per_byte_stderr"] > 0 and one["gold_margin_stderr"] > 0 and found["wikitext"]["metric"] == ""
    assert found["mmlu"]["truncated"] == 8 and "gold_margin" not in found["mmlu"]  # five examples are longer than 64
    assert sum(found["wikitext"]["by_question"]["gold_bytes"]) == len(ARTICLES[0]["text"]) - 2

    (file,) = (tmp_path / "step-300").glob("results_*.json")
    theirs = json.loads(file.read_text())
    assert theirs["results"]["arc_easy"]["acc_norm,none"] == one["accuracy"]
    assert theirs["results"]["arc_easy"]["acc_norm_stderr,none"] == pytest.approx(one["accuracy_stderr"])
    assert theirs["results"]["wikitext"]["bits_per_byte,none"] == pytest.approx(found["wikitext"]["bits_per_byte"])
    (file,) = (tmp_path / "step-300").glob("samples_arc_easy_*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    gold = [float(sample["resps"][sample["doc"]["gold"]][0][0]) for sample in samples]
    np.testing.assert_allclose(one["by_question"]["gold_nats"], [-value for value in gold], rtol=1e-6)
    assert [sample["gold_nats"] for sample in samples] == one["by_question"]["gold_nats"]
    assert not [*tmp_path.glob(".*")]

    # Again with fewer questions of one task, in other batches: it is replaced, the others stay.
    assert cli.main(command(place, tmp_path, "--tasks=arc_easy", "--limit=5", "--batch_tokens=1", "--json")) == 0
    (printed,) = json.loads(capfd.readouterr().out)
    again = read(tmp_path / "step-300")
    assert list(again) == ["winogrande", "mmlu", "wikitext", "arc_easy"] and printed["questions"] == 5
    first, second = one["by_question"]["gold_nats"][:5], again["arc_easy"]["by_question"]["gold_nats"]
    np.testing.assert_allclose(first, second, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tasks=piqa"], "task piqa: {data} has no piqa_validation.jsonl.gz or piqa.jsonl.gz (or .jsonl"),
        pytest.param(  # lm-eval reads all its task files to know it
            ["--tasks=arc_easy,no_such"],
            "unknown task 'no_such'; packaged are arc_challenge, arc_easy, ",
            marks=pytest.mark.integration,
        ),
        (["--tasks=arc_easy,arc_easy"], "--tasks names arc_easy twice"),
        (["--tasks=,"], "--tasks names no task; packaged are arc_challenge"),
        (["--tasks=arc_easy", "--tasks_data={data}/none"], "--tasks_data={data}/none is no folder"),
        (["--tasks=arc_easy", "--limit=0"], "--limit=0 must be at least 1"),
        (["--tasks=mmlu", "--shots=9"], "--shots=9: task mmlu has 6 examples at most"),
        (["--tasks=arc_easy", "--shots=12"], "--shots=12: task arc_easy has 11 examples at most"),
        (["--tasks=arc_easy", "--batch_tokens=0"], "--batch_tokens=0 must be at least 1"),
        (["--tasks=arc_easy", "--curves=linear"], "--curves=C,... and --counts=N,... go together"),
        (["--tasks=arc_easy", "--curves=linear", "--counts=2,x"], "--counts: 'x' is no whole number"),
        (["--tasks=arc_easy", "--curves=linear", "--counts=9"], "9 every 100 steps up to 300 begin at step -500"),
        (["--tasks=arc_easy", "--merged=none"], "has no merge 'none'"),
        (["--limit=3"], "--tasks_data goes with --tasks"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_before_any_weight_is_read(place, tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.setattr(evaluate, "load", None)
    arguments = [argument.format(data=place / "data") for argument in arguments]
    assert cli.main(command(place, tmp_path, *arguments)) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert says.format(data=place / "data") in line, line


def test_a_file_that_does_not_fit_its_task_is_named_with_the_line(place, tmp_path, capsys):
    for text, says in (
        ('{"query": "a", "choices": ["b"]}', "arc_easy.jsonl line 1 has no field 'gold' (it has: query, choices)"),
        ('{"query": "a"', "arc_easy.jsonl line 1 is not JSON"),
        ("", "arc_easy.jsonl holds no records; it needs JSON lines with query, choices, gold"),
        ('{"query": "a", "choices": ["b"], "gold": 0}\n{"query": 1, "choices": ["b"], "gold": 0}', "not of one kind"),
    ):
        (tmp_path / "arc_easy.jsonl").write_text(text)
        assert cli.main([*command(place, tmp_path, "--tasks=arc_easy"), f"--tasks_data={tmp_path}"]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.integration
def test_values_that_are_not_finite_end_with_status_3(place, tmp_path, capsys):
    run = Run(place / "run")
    tree = orbax.load_tree(run.merge_stream / "300")
    tree["final_norm"]["scale"] = tree["final_norm"]["scale"].at[0].set(jnp.nan)
    orbax.save_tree(run.merged("bad"), tree)
    integrity.seal(run.merged("bad"), {orbax.PARAMS: []})
    assert cli.main(command(place, tmp_path, "--tasks=arc_easy", "--merged=bad")) == 3
    assert "bad: leaf final_norm/scale has 1 of" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


@pytest.mark.integration
def test_texts_are_made_up_to_a_stop_and_prompts_are_cut_from_the_left(place):
    run = Run(place / "run")
    model = make_model(run)
    how = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    long = "a walk " * 60
    requests = [
        Instance(request_type="generate_until", doc={}, arguments=(text, {**how, **more}), idx=0)
        for text, more in (("A small step", {}), (long, {}), ("A small step", {"max_gen_toks": 4}), ("", {}))
    ]
    made = model.generate_until(requests)
    assert len(made) == 4 and made[0].startswith(made[2]) and all("\n" not in text for text in made)
    assert model.was_cut([(long, how)]) and not model.was_cut([("A small step", how)])
    stop = made[0][2:4]
    (cut,) = model.generate_until(
        [Instance("generate_until", {}, ("A small step", {**how, "until": [stop]}), 0)]
    )  # fmt: skip
    assert cut == made[0][: made[0].index(stop)]
    with pytest.raises(ValueError, match=r"draws its texts \(do_sample\)"):
        model.generate_until([Instance("generate_until", {}, ("a", {"do_sample": True, "temperature": 1.0}), 0)])


@pytest.mark.integration
def test_an_answer_longer_than_the_context_is_scored_in_windows_every_token_once(place):
    run = Run(place / "run")
    model = make_model(run)
    text = "A small step, a long walk, number 7 of many. " * 8
    ids = language.of(run).tokenizer.encode(text)
    assert len(ids) > 2 * CONTEXT
    (rolling,) = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    (asked,) = model.loglikelihood([Instance("loglikelihood", {}, ("", text), 0)], disable_tqdm=True)
    assert asked[0] == pytest.approx(rolling, abs=1e-3) and model.was_cut([("", text)])
    assert sum(len(pair.answer) for pair in model._windows([0], ids)) == len(ids)


def test_the_tokens_before_a_text_are_those_of_the_tokenizer_and_never_twice(place):
    import tokenizers
    from tokenizers.processors import TemplateProcessing

    run = Run(place / "run")
    plain = language.of(run)
    assert make_model(run).tok_encode("A step") == plain.tokenizer.encode("A step")
    raw = tokenizers.Tokenizer.from_str(plain.tokenizer._json())
    raw.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", plain.first)])
    model = make_model(run)
    model.language = language.Language(Tokenizer(raw), plain.first)
    ids = [plain.first, *plain.tokenizer.encode("A step")]
    assert model.tok_encode("A step") == model.tok_encode("<|endoftext|>A step") == ids
    assert model._encode_pair("A step", " small") == (ids, plain.tokenizer.encode(" small"))
    seen = []
    model.scores = lambda requests: seen.extend(requests) or [scorer.Found(0.0, True)]
    model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("A step",), 0)])
    assert seen == [([plain.first], plain.tokenizer.encode("A step"))] and model.facts()["bos"] == "<|endoftext|>"


def test_what_is_finished_is_not_asked_again_and_other_parameters_are(place, tmp_path, monkeypatch):
    run = Run(place / "run")
    kept = Journal(tmp_path / "requests.jsonl")
    model = make_model(run, kept=kept)
    requests = [([1, 2], [3]), ([1, 2], [4, 5])]
    first = model.scores(requests)
    kept.close()
    counts = []
    score = scorer.score
    monkeypatch.setattr(
        scorer, "score", lambda m, p, d, pairs, **o: counts.append(len(pairs)) or score(m, p, d, pairs, **o)
    )
    kept = Journal(tmp_path / "requests.jsonl")
    again = make_model(run, kept=kept)
    assert again.scores([*requests, ([1], [7])])[:2] == first
    again.answer_with(evaluate.load(run, run.merge_stream / "200"), "other")
    assert again.scores(requests) != first
    kept.close()
    assert counts == [1, 2]


# --- processes -------------------------------------------------------------------------------------------------------


def start(*arguments: str, devices: int = 1) -> subprocess.Popen[str]:
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(
        [sys.executable, "-m", "wsm_jax", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def same_answers(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert list(first) == list(second)
    for name, record in first.items():
        for values, others in zip(record["by_question"].values(), second[name]["by_question"].values(), strict=True):
            np.testing.assert_allclose(values, others, atol=1e-4)


@pytest.mark.integration
def test_a_kill_in_the_middle_and_the_same_command_again(place, tmp_path, monkeypatch, capsys):
    many = [{**QUESTIONS[i % 12], "query": f"Question: Is {i} a walk?\nAnswer:"} for i in range(600)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "arc_easy.jsonl").write_text("".join(json.dumps(one) + "\n" for one in many))
    output = tmp_path / "killed"
    arguments = [*command(place, output, "--tasks=arc_easy", "--batch_tokens=32"), f"--tasks_data={tmp_path / 'data'}"]

    def finished() -> int:
        files = [*output.glob(".unfinished-*/requests.jsonl")]
        return files[0].read_text().count("\n") if files else 0

    status, _ = stop_when(start(*arguments), lambda: finished() >= 100, signal.SIGKILL)
    assert status == -signal.SIGKILL and 100 <= (before := finished()) < 1700
    assert [path.name[:11] for path in output.iterdir()] == [".unfinished"]  # no result that is not whole

    counts, score = [], scorer.score
    monkeypatch.setattr(
        scorer, "score", lambda m, p, d, pairs, **o: counts.append(len(pairs)) or score(m, p, d, pairs, **o)
    )
    assert cli.main(arguments) == 0
    assert counts[0] + before in range(1790, 1811)  # of 1,800 options; the last line may have been cut
    assert [path.name for path in output.iterdir()] == ["step-300"]
    assert cli.main([*arguments, f"--output={tmp_path / 'whole'}"]) == 0
    same_answers(read(output / "step-300"), read(tmp_path / "whole" / "step-300"))


@pytest.mark.integration
def test_many_merges_are_scored_in_one_go_and_compared_with_the_first(place, tmp_path, capsys):
    arguments = ["--tasks=arc_easy,winogrande", "--curves=linear,minus_sqrt", "--counts=2,3"]
    assert cli.main(command(place, tmp_path / "many", *arguments)) == 0
    printed = capsys.readouterr().out
    names = [f"{curve}-{count}x100-at-300" for curve in ("linear", "minus_sqrt") for count in (2, 3)]
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == sorted(names)
    assert f"difference to {names[0]}, paired by question" in printed
    first, last = (read(tmp_path / "many" / name) for name in (names[0], names[-1]))
    assert "difference" not in first["arc_easy"] and last["arc_easy"]["steps"] == [100, 200, 300]
    told = last["arc_easy"]["difference"]
    assert told["to"] == names[0] and told["bits_per_byte_stderr"] > 0
    assert told["bits_per_byte"] == pytest.approx(
        last["arc_easy"]["bits_per_byte"] - first["arc_easy"]["bits_per_byte"]
    )

    run = f"--run={place / 'run'}"
    assert cli.main(["merge", run, "--curve=minus_sqrt", "--count=3"]) == 0
    assert cli.main(command(place, tmp_path / "one", "--tasks=arc_easy,winogrande", f"--merged={names[-1]}")) == 0
    same_answers(last, read(tmp_path / "one" / names[-1]))


@pytest.mark.integration
def test_several_devices_answer_as_one(place, tmp_path):
    tasks = "--tasks=arc_easy,mmlu,wikitext"
    assert cli.main(command(place, tmp_path / "one", tasks)) == 0
    status, printed = ended(start(*command(place, tmp_path / "four", tasks), devices=4))
    assert status == 0, printed
    same_answers(read(tmp_path / "one" / "step-300"), read(tmp_path / "four" / "step-300"))


@pytest.mark.integration
def test_another_process_that_evaluates_the_same_is_named(place, tmp_path, capsys):
    about = [["arc_easy"], None, None, "step-300"]
    with benchmark.kept(tmp_path, *about):
        status, printed = ended(start(*command(place, tmp_path, "--tasks=arc_easy")))
    assert status == 2 and f"another process evaluates the same into {tmp_path}" in printed


@pytest.mark.integration
def test_programs_that_the_model_wrote_run_where_that_is_allowed(place, tmp_path, capsys):
    test = "def check(f):\n    assert f(2) == 4\n"
    problem = {"task_id": "0", "prompt": "def double(x):\n", "entry_point": "double", "test": test}
    (tmp_path / "humaneval.jsonl").write_text(
        json.dumps({**problem, "canonical_solution": "    return 2 * x\n"}) + "\n"
    )
    asked = [*command(place, tmp_path / "out", "--tasks=humaneval"), f"--tasks_data={tmp_path}"]
    assert cli.main(asked) == 2
    assert "humaneval and mbpp run programs that the model wrote; --allow_code_execution" in capsys.readouterr().err
    assert cli.main([*asked, "--allow_code_execution"]) == 0
    found = read(tmp_path / "out" / "step-300")["humaneval"]
    assert (found["accuracy"], found["group"]) == (0.0, "code")
    assert found["sandbox"]["mechanism"] in ("bubblewrap", "landlock") and found["bits_per_byte"] > 0


def test_a_task_that_would_run_programs_without_a_sandbox_is_refused(place, tmp_path, capsys):
    file = tmp_path / "own.yaml"
    text = (task_files.FOLDER / "humaneval.yaml").read_text()
    lines = [
        line
        for line in text.splitlines()
        if not line.startswith(("process_results", "filter", "  - name", "    filter"))
    ]
    file.write_text("\n".join(lines).replace("task: humaneval", "task: own").replace("pass_at_1", "exact_match"))
    (tmp_path / "humaneval.jsonl").write_text(
        '{"task_id": "0", "prompt": "x", "entry_point": "x", "canonical_solution": "x", "test": "x"}\n'
    )
    asked = [*command(place, tmp_path / "out", f"--tasks={file}"), f"--tasks_data={tmp_path}", "--allow_code_execution"]
    assert cli.main(asked) == 2
    assert "task own runs programs that the model wrote, without a sandbox" in capsys.readouterr().err


def test_the_packaged_tasks_are_those_of_the_documentation():
    page = (Path(__file__).parent.parent.parent / "docs" / "benchmarks.md").read_text()
    assert [name for name in task_files.packaged() if f"| `{name}` |" not in page] == []
