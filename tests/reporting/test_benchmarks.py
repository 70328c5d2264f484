"""The paper's table for two models: groups, overall, differences, what is at chance, what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from wsm_jax import UsageError, cli
from wsm_jax.evaluation import scores
from wsm_jax.evaluation.scores import TaskScore
from wsm_jax.reporting import benchmarks


def score(task, group, accuracy, nats, *, run="wsd", model="step-10", metric="acc", questions=200):
    correct = (np.arange(questions) < round(accuracy * questions)).astype(float).tolist() if metric else []
    facts = {"run": f"/runs/{run}", "shots": 0, "prompt_hash": task}
    noise = np.random.default_rng(0).normal(0, 0.1, questions)
    return TaskScore(
        task=task, group=group, model=model, metric=metric, chance=0.25 if metric else 0.0, correct=correct,
        gold_nats=(nats + noise).tolist(), gold_bytes=[10] * questions, margin=[], facts=facts,
    )  # fmt: skip


TASKS = [
    ("arc", "general knowledge", 0.5),
    ("piqa", "general knowledge", 0.6),
    ("mmlu", "professional knowledge", 0.25),
]


def write(folder, found):
    folder.mkdir(parents=True)
    (folder / scores.FILE).write_text("".join(json.dumps(one.record()) + "\n" for one in found))
    return folder


@pytest.fixture
def folders(tmp_path):
    """Two runs; the second is better by five points of accuracy, but for what is at chance, and 0.1 nats."""
    wsd = [score(task, group, accuracy, 5.0) for task, group, accuracy in TASKS]
    wsm = [
        score(task, group, accuracy + 0.05 * (accuracy > 0.25), 4.9, run="wsm", model="linear-4")
        for task, group, accuracy in TASKS
    ]
    text = [score("wikitext", "language", 0, 7.0, metric="", run=name) for name in ("wsd", "wsm")]
    first, second = tmp_path / "a" / "benchmarks" / "step-10", tmp_path / "b" / "benchmarks" / "linear-4"
    return write(first, [text[0], *wsd]), write(second, [*wsm, text[1], score("alone", "other", 0.5, 1.0)])


def test_the_table_has_the_groups_of_the_paper_and_plain_means(folders):
    found = benchmarks.pair(*folders)
    table = benchmarks.figures(found)
    assert list(table["groups"]) == ["general knowledge", "language", "professional knowledge", "overall"]
    overall = table["groups"]["overall"]
    assert overall["accuracy"]["first"]["value"] == pytest.approx((0.5 + 0.6 + 0.25) / 3)
    assert overall["accuracy"]["difference"]["value"] == pytest.approx(0.1 / 3)
    assert overall["bits_per_byte"]["difference"]["value"] == pytest.approx(-0.01 / np.log(2) * 3 / 4)
    assert overall["bits_per_byte"]["difference"]["stderr"] < 1e-9 < overall["bits_per_byte"]["first"]["stderr"]
    assert "accuracy" not in table["groups"]["language"]
    assert (table["at_chance"], table["only_one"]) == (["mmlu"], ["alone"])
    header, *rows = benchmarks.table(found)
    assert header[1:] == ["general knowledge (2)", "language (1)", "professional knowledge (1)", "overall (4)"]
    assert rows[0][0] == "wsd step-10, accuracy, %" and rows[1][0] == "wsm linear-4, accuracy, %"
    assert rows[2][1].startswith("+5.0 [") and rows[0][2] == "–" and len(rows) == 6
    assert any(line.startswith("Accuracies of mmlu are at chance") for line in benchmarks.remarks(found))
    chance = dataclasses.replace(found, first=[found.first[-1]], second=[found.second[-1]])
    assert any(line.startswith("All accuracies are at chance") for line in benchmarks.remarks(chance))


def test_the_verb_prints_and_writes_it(folders, tmp_path, capsys):
    runs = [str(folder.parent.parent) for folder in folders]
    assert cli.main(["report", "--benchmarks", *runs]) == 0
    printed = capsys.readouterr().out
    page = (tmp_path / "a" / "report" / "benchmarks.md").read_text()
    assert "overall (4)" in printed and "| mmlu | 200 | 0 | 25.0 |" in page and "at chance" in page
    assert cli.main(["report", "--benchmarks", *map(str, folders), "--json", f"--output={tmp_path / 'out'}"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "benchmarks.json").read_text())


def test_what_cannot_be_compared_is_refused(folders, tmp_path):
    with pytest.raises(UsageError, match="has no results of tasks; wsm eval --run="):
        benchmarks.results(str(tmp_path / "a" / "benchmarks" / "step-10" / "nothing"))
    write(tmp_path / "a" / "benchmarks" / "step-20", [score("arc", "language", 0.5, 5.0)])
    with pytest.raises(UsageError, match=r"results of several models; name one of .*step-10, .*step-20"):
        benchmarks.results(str(tmp_path / "a"))
    other = write(tmp_path / "c", [score("other", "language", 0.5, 5.0)])
    with pytest.raises(UsageError, match="no task in common"):
        benchmarks.pair(folders[0], other)
    fewer = write(tmp_path / "d", [score("arc", "general knowledge", 0.5, 5.0, questions=100)])
    with pytest.raises(UsageError, match=r"arc: .* were asked other questions"):
        benchmarks.pair(folders[0], fewer)
    assert cli.main(["report", "--benchmarks", str(folders[0])]) == 2
