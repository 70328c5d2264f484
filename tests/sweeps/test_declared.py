"""Files that declare a sweep, and what is said of those that do not."""

import pytest

from wsm_jax.errors import UsageError
from wsm_jax.sweeps import declared

MADE = """
from wsm_jax.sweeps import Arm, Claim, Experiment, RunSpec, Sweep, axis, difference
def made(scale, **fields):
    return Experiment("e", scale, "c.py", **{"runs": {"r": RunSpec()}, "arms": {"a": Arm("r")}, **fields})
"""


def file(folder, text):
    place = folder / "file.py"
    place.write_text(MADE + text)
    return str(place)


def test_a_scale_is_the_one_asked_for_else_the_default(tmp_path):
    text = file(tmp_path, "def get_sweep(scale='small'): return made(scale)")
    assert [declared.load(name).scale for name in (text, f"{text}:tiny")] == ["small", "tiny"]
    assert declared.load(f"{text}:tiny").experiment.title == "tiny"
    assert declared.load(text).text == f"{text}:small"


def test_a_sweep_becomes_an_experiment(tmp_path):
    text = file(tmp_path, "def get_sweep(): return Sweep('s', 'c.py', axis('merge.count', [2, 4]))")
    found = declared.load(text)
    assert list(found.experiment.arms) == ["last", "count=2", "count=4"] and found.text == text


@pytest.mark.parametrize(
    ("text", "scale", "says"),
    [
        ("", "", "has no get_sweep"),
        ("def get_sweep(): return 3", "", "must return an Experiment or a Sweep, not a int"),
        ("def get_sweep(): return made('')", ":tiny", "takes no scale"),
        ("def get_sweep(scale): return made(scale)", "", "needs a scale"),
        ("def get_sweep(scale='a'): return {'a': made('')}[scale]", ":b", "file.py:b: KeyError: 'b'"),
        ("1 / 0", "", "file.py: ZeroDivisionError: division by zero"),
        ("def", "", "file.py: SyntaxError"),
        ("raise SystemExit(4)", "", "the file ended the program"),
        ("def get_sweep(): return made('', arms={})", "", "file.py: e: arms is empty"),
        (
            "def get_sweep(): return Sweep('s', 'c.py', axis('merge.count', []))",
            "",
            "file.py: axis 'merge.count' has no",
        ),
        (
            "def get_sweep():\n    c = {\n'x': Claim('', difference('a', 'b')),\n'x': Claim('', difference('a', 'b'))}",
            "",
            "file.py:8: 'x' is there twice in one dictionary",
        ),
        (
            "def get_sweep(): return made('', claims={'c': Claim('', difference('a', 'b'))})",
            "",
            "file.py: e: claim 'c', 'b' is not an arm or a choice; there are a",
        ),
    ],
)
def test_a_file_that_declares_none_is_one_line(tmp_path, text, scale, says):
    with pytest.raises(UsageError, match=says) as error:
        declared.load(file(tmp_path, text) + scale)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"no file .*nowhere.py; write FILE\[:SCALE\]"):
        declared.load(f"{tmp_path}/nowhere.py:tiny")
