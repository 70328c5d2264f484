"""Completions of HumanEval and MBPP: the program that is run for each, and many of them."""

import pytest

from wsm_jax.errors import UsageError
from wsm_jax.evaluation.execution import probe, programs
from wsm_jax.evaluation.execution.errors import Unusable

HUMAN = {
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate('a') == 'aa'\n",
}
BASIC = {"test_list": ["assert double(2) == 4"], "test_setup_code": "two = 2"}


def test_completions_pass_or_fail_by_their_tests():
    human = ["    return x + x\n", "    return None\n", "    return x * 2", "    return"]
    basic = ["def double(x):\r\n    return two * x", "def double(x):\n    return x", "def triple(x): return 3 * x"]
    texts = [programs.of("humaneval", HUMAN, text) for text in human]
    texts += [programs.of("mbpp", BASIC, text) for text in basic]
    outcomes = programs.run_all(texts, probe.found(), workers=3, quiet=True)
    assert [outcome.failure for outcome in outcomes] == ["", "AssertionError"] * 2 + ["", "AssertionError", "NameError"]


def test_a_problem_without_a_field_is_named():
    with pytest.raises(UsageError, match="a problem of humaneval has no field 'entry_point'"):
        programs.of("humaneval", {"prompt": "", "test": ""}, "")


def test_tasks_that_run_code_are_those_with_programs():
    assert programs.PROGRAMS.keys() == programs.FIELDS.keys() == probe.TASKS


def test_a_sandbox_that_stops_working_ends_all(monkeypatch):
    def breaks(*_):
        raise Unusable("it is gone")

    monkeypatch.setattr(programs, "run", breaks)
    with pytest.raises(Unusable, match="it is gone"):
        programs.run_all([""] * 3, probe.found(), quiet=True)
