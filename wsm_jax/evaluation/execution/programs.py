"""The programs of HumanEval and MBPP, completion and tests together, and many of them run at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

from wsm_jax.errors import UsageError
from wsm_jax.evaluation.execution.mechanism import Mechanism
from wsm_jax.evaluation.execution.sandbox import Limits, Outcome, run
from wsm_jax.evaluation.many import in_threads

Problem = Mapping[str, Any]


def humaneval(problem: Problem, completion: str) -> str:
    """The prompt, its completion, the tests and the call of them, as HumanEval's own code puts them together.

    Args:
      problem: ``prompt``, ``test``, ``entry_point``.
      completion: what the model wrote after the prompt.

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code".
    """
    return f"{problem['prompt']}{completion}\n{problem['test']}\ncheck({problem['entry_point']})\n"


def mbpp(problem: Problem, completion: str) -> str:
    """What the tests need, the completion and the tests.

    Args:
      problem: ``test_list``, and ``test_setup_code`` where there is any.
      completion: a whole program.

    Source: Austin et al. 2021, "Program Synthesis with Large Language Models".
    """
    return "\n".join([problem.get("test_setup_code") or "", completion, *problem["test_list"], ""])


# Task -> its programs; those that model-written code is run for, and the fields that they need.
PROGRAMS = {"humaneval": humaneval, "mbpp": mbpp}
FIELDS = {"humaneval": ("prompt", "test", "entry_point"), "mbpp": ("test_list",)}


def of(task: str, problem: Problem, completion: str) -> str:
    """The program of a task's problem and a completion.

    Raises:
      UsageError: the problem lacks a field.
    """
    if missing := [name for name in FIELDS[task] if name not in problem]:
        raise UsageError(f"a problem of {task} has no field {missing[0]!r} (it has: {', '.join(problem)})")
    return PROGRAMS[task](problem, completion)


def run_all(
    programs: Sequence[str],
    mechanism: Mechanism,
    limits: Limits | None = None,
    *,
    workers: int | None = None,
    quiet: bool = False,
) -> list[Outcome]:
    """Runs programs, each in a process of its own, some at a time, and shows how far it is.

    Args:
      programs: texts.
      mechanism: what keeps each of them in.
      limits: what each may take.
      workers: how many run at a time; default: one for each processor.
      quiet: without the bar.

    Raises:
      Unusable: the sandbox stopped working; no program is counted as failed for that.
    """
    return in_threads(
        lambda program: run(program, mechanism, limits), programs, workers=workers, unit="program", quiet=quiet
    )
