"""Whether answers are right: numbers of GSM8K, formulas of MATH."""

import subprocess
import sys
import time
from decimal import Decimal

import pytest

from wsm_jax.evaluation import mathematics


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She has 3 + 4 = <<3+4=7>>7 left.\n#### 7", 7),
        ("#### 1,234", 1234),
        ("#### $5.50 each, 3 of them", Decimal("5.5")),
        ("#### -3.", -3),
        ("It is 4, or rather 18.", 18),
        ("It costs $1,000.00.", 1000),
        ("####", None),
        ("no number", None),
        ("5 #### none", None),
    ],
)
def test_the_answer_of_a_solution_in_words(text, expected):
    assert mathematics.number(text) == expected


def test_numbers_are_compared_by_value():
    assert mathematics.same_number("#### 18", "so 18.00 dollars")
    assert not mathematics.same_number("#### 18", "so 180 dollars")
    assert not mathematics.same_number("no number", "no number")


@pytest.mark.integration
def test_formulas_are_compared_by_what_they_mean():
    pairs = {
        ("\\frac{1}{2}", "so the answer is $0.5$"): True,
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "It is $\\boxed{(3, \\pi/2)}$."): True,
        ("x^2+2x+1", "\\boxed{(x+1)^2}"): True,
        ("\\frac{1}{2}", "\\boxed{\\frac{1}{3}}"): False,
        ("5", "no answer"): False,
        ("5", ""): False,
    }
    assert mathematics.equal(list(pairs), workers=1, quiet=True) == list(pairs.values())
    assert mathematics.equal([]) == []


@pytest.mark.integration
def test_an_answer_that_takes_forever_is_wrong_and_the_next_is_judged():
    judge = mathematics.Judge(seconds=3.0)
    try:
        first = judge._process.pid
        start = time.monotonic()
        assert not judge("9^{9^{9^{9}}}", "\\boxed{9^{9^{9^{9}}} + 1}")
        assert time.monotonic() - start < 30
        assert judge("2", "\\boxed{2}")
        judge._process.kill()
        assert not judge("2", "\\boxed{2}") and judge("2", "\\boxed{2}")
        assert judge._process.pid != first
    finally:
        judge.close()


def test_without_the_library_it_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as error:
        mathematics.equal([("1", "1")], quiet=True)
    assert error.value.name == "math_verify"


def test_a_process_that_does_not_start_is_no_verdict(monkeypatch):
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: real([sys.executable, "-c", ""], **rest))
    with pytest.raises(RuntimeError, match="does not start"):
        mathematics.Judge(seconds=1.0)
