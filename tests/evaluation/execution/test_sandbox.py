"""Programs in a sandbox: what they may do, what they are kept from, and what is said of how they ended."""

import os
from pathlib import Path

import pytest

from experiments import execution
from wsm_jax.evaluation.execution import confine
from wsm_jax.evaluation.execution.errors import Unusable
from wsm_jax.evaluation.execution.sandbox import Limits, Outcome, run

QUICK = Limits(seconds=1.0, memory=96 << 20, disk=1 << 20)


def test_a_program_passes_that_runs_to_its_last_line(holding):
    assert run("print(sum(range(10)))", holding) == Outcome(True, output="45")
    assert run("", holding).passed


@pytest.mark.parametrize(
    ("program", "failure", "detail"),
    [
        ("assert 1 == 2, 'no'", "AssertionError", "no"),
        ("def f(:", "SyntaxError", "invalid syntax (<program>, line 1)"),
        ("raise SystemExit(0)", "SystemExit", "0"),
        ("import os; os._exit(0)", "exit", "it ended before its last line"),
        ("import os; os.closerange(0, 64); os._exit(0)", "exit", "it ended before its last line"),
        ("while True: pass", "timeout", "it had 1 s"),
        ("class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd", "Odd", ""),
        ("import numpy", "ModuleNotFoundError", "No module named 'numpy'"),
        ("input()", "EOFError", "EOF when reading a line"),
    ],
)  # fmt: skip
def test_a_failure_has_a_name(holding, program, failure, detail):
    outcome = run(program, holding, QUICK)
    assert (outcome.passed, outcome.failure, outcome.detail) == (False, failure, detail)


@pytest.mark.integration
def test_no_attack_has_its_way(holding):
    found = execution.attacks(holding, QUICK)
    assert found.keys() == execution.ATTACKS.keys()
    assert {name: one["outcome"] for name, one in found.items() if not one["contained"]} == {}
    for name, how in {
        "an endless loop": "timeout",
        "sleeping": "timeout",
        "a fork bomb that goes on": "timeout",
        "a fork bomb of 100": "OSError",
        "leaving early with status 0": "exit",
    }.items():
        assert found[name]["outcome"].startswith(how), (name, found[name])


@pytest.mark.integration
def test_nothing_outlives_a_parent_that_is_killed(holding):
    assert execution.left_of_a_killed_parent(holding) == set()


def test_the_user_is_not_root_and_has_a_folder_that_vanishes(holding):
    program = "import os, tempfile; print(os.getuid(), os.getcwd())\nwith open('a', 'w') as file: file.write('a')\n"
    program += "with tempfile.TemporaryDirectory() as folder: open(folder + '/b', 'w').close()\nprint(os.listdir())"
    outcomes = [run(program, holding) for _ in range(2)]
    users, folders = zip(*(outcome.output.split()[:2] for outcome in outcomes), strict=True)
    assert all(outcome.passed and outcome.output.endswith("['a']") for outcome in outcomes), outcomes
    assert "0" not in users and (len({*users}) == 2 if os.getuid() == 0 else {*users} == {str(os.getuid())})
    assert holding.in_memory or not any(map(os.path.exists, folders))


def test_what_is_left_of_a_program_is_nothing(holding, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = execution.descendants(os.getpid())
    run("import os; os.mkdir('closed', 0o300); open('closed/file', 'w').close()\nwhile True: pass", holding, QUICK)
    assert execution.descendants(os.getpid()) == before
    assert list(tmp_path.iterdir()) == []


def test_a_sandbox_that_does_not_begin_judges_nothing(holding, monkeypatch):
    monkeypatch.setattr("wsm_jax.evaluation.execution.mechanism._inside", lambda: "raise OSError('no namespaces here')")
    with pytest.raises(Unusable, match="no namespaces here"):
        run("", holding)


def test_limits_are_of_one_process():
    assert Limits(memory=1, disk=2, threads=3).of_process(counts=True)["RLIMIT_NPROC"] == 5
    assert "RLIMIT_NPROC" not in Limits().of_process(counts=False)


def test_the_part_inside_needs_the_standard_library_alone():
    source = Path(confine.__file__).read_text()
    assert "wsm_jax" not in source and len(source.encode()) < 100_000  # of 128 kB that an argument may have
