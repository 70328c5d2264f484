"""What lm-eval is told of texts, and the task files that ask for it."""

from importlib import import_module
from pathlib import Path

import jinja2
import pytest
import yaml

from wsm_jax.evaluation import mathematics, verdicts
from wsm_jax.evaluation.execution import probe

TASKS = Path(verdicts.__file__).parent / "tasks"
JUDGED = ("gsm8k", "humaneval", "math500", "mbpp")


class Loader(yaml.SafeLoader):
    """Reads ``!function module.name`` as the function."""


def _function(loader: Loader, node: yaml.ScalarNode):
    module, name = str(loader.construct_scalar(node)).rsplit(".", 1)
    return getattr(import_module(module), name) if module.startswith(verdicts.__name__) else name


Loader.add_constructor("!function", _function)


@pytest.mark.parametrize("name", JUDGED)
def test_a_task_file_agrees_with_the_functions_that_it_names(name):
    task = yaml.load((TASKS / f"{name}.yaml").read_text(), Loader)
    assert task["task"] == name
    assert task.get("unsafe_code", False) == (name in probe.TASKS)
    [[judge]] = [each["filter"] for each in task["filter_list"]]
    assert callable(judge["filter_fn"])
    scores = task["process_results"]({}, [["passed", "wrong"]])
    assert scores == {task["metadata"]["score"]: 0.5} and [*scores] == [one["metric"] for one in task["metric_list"]]
    for example in task.get("fewshot_config", {}).get("samples", []):
        assert {*example} <= {*task["dataset_kwargs"]["columns"]}
    assert len(task.get("fewshot_config", {}).get("samples", [])) == task.get("num_fewshot", 0)


def test_prompts_of_mbpp_keep_their_lines():
    task = yaml.load((TASKS / "mbpp.yaml").read_text(), Loader)
    problem = {
        "text": "Add.",
        "test_list": ["assert f(1) == 2", "assert f(2) == 3"],
        "code": "def f(x):\r\n  return x + 1",
    }
    prompt, target = (jinja2.Template(task[name]).render(problem) for name in ("doc_to_text", "doc_to_target"))
    assert prompt.endswith("tests:\n\nassert f(1) == 2\nassert f(2) == 3\n[BEGIN]")  # lm-eval keeps the last newline
    assert target == "def f(x):\n  return x + 1\n[DONE]"


def test_texts_of_a_question_are_judged_together(monkeypatch):
    documents = [{"answer": "#### 2"}, {"answer": "#### 3"}]
    texts = [["it is 2", "it is 3"], ["#### 3"]]
    assert verdicts.gsm8k(texts, documents) == [["passed", "wrong"], ["passed"]]
    monkeypatch.setattr(mathematics, "equal", lambda pairs: [gold in text for gold, text in pairs])
    assert verdicts.math(texts, [{"answer": "2"}, {"answer": "3"}]) == [["passed", "wrong"], ["passed"]]


def test_programs_are_run():
    document = {"test_list": ["assert one() == 1"]}
    found = verdicts.mbpp([["def one(): return 1", "def one(): return 2"]], [document])
    assert found == [["passed", "AssertionError"]]
    human = {"prompt": "def one():\n", "test": "def check(f): assert f() == 1", "entry_point": "one"}
    assert verdicts.humaneval([["    return 1"]], [human]) == [["passed"]]
