"""What lm-eval asks of texts that are judged by more than comparing them: ``tasks/*.yaml`` name these functions.

A filter takes the texts of all questions together, so that they are judged some at a time, and gives a verdict for each
text; the score of a question is the share of its texts that are right.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from wsm_jax.evaluation import mathematics
from wsm_jax.evaluation.execution import probe, programs

Texts = Sequence[Sequence[str]]
Documents = Sequence[Mapping[str, Any]]
RIGHT = "passed"


def humaneval(texts: Texts, documents: Documents) -> list[list[str]]:
    """Runs completions with the tests of HumanEval: ``passed``, or how it failed."""
    return _run("humaneval", texts, documents)


def mbpp(texts: Texts, documents: Documents) -> list[list[str]]:
    """Runs completions with the tests of MBPP: ``passed``, or how it failed."""
    return _run("mbpp", texts, documents)


def math(texts: Texts, documents: Documents) -> list[list[str]]:
    """Compares solutions with the ``answer`` of MATH by what the formulas mean: ``passed`` or ``wrong``."""
    pairs = [(document["answer"], text) for document, some in zip(documents, texts, strict=True) for text in some]
    return _by_question(texts, [RIGHT if same else "wrong" for same in mathematics.equal(pairs)])


def gsm8k(texts: Texts, documents: Documents) -> list[list[str]]:
    """Compares the numbers that solutions of GSM8K end with: ``passed`` or ``wrong``."""
    return [
        [RIGHT if mathematics.same_number(document["answer"], text) else "wrong" for text in some]
        for document, some in zip(documents, texts, strict=True)
    ]


def pass_at_1(document: Mapping[str, Any], results: Texts) -> dict[str, float]:
    """The share of a question's programs that passed."""
    return {"pass_at_1": _share(results)}


def exact_match(document: Mapping[str, Any], results: Texts) -> dict[str, float]:
    """The share of a question's answers that are right."""
    return {"exact_match": _share(results)}


def _run(task: str, texts: Texts, documents: Documents) -> list[list[str]]:
    mechanism = probe.found()
    every = [
        programs.of(task, document, text)
        for document, some in zip(documents, texts, strict=True)
        for text in some
    ]  # fmt: skip
    return _by_question(texts, [str(outcome) for outcome in programs.run_all(every, mechanism)])


def _by_question(texts: Texts, verdicts: Sequence[str]) -> list[list[str]]:
    left = iter(verdicts)
    return [[next(left) for _ in some] for some in texts]


def _share(results: Texts) -> float:
    verdicts = [verdict for some in results for verdict in some]
    return sum(verdict == RIGHT for verdict in verdicts) / len(verdicts)
