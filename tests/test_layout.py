"""What a linter does not check of the layout: the length of functions. (import-linter has the direction of imports.)"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "wsm_jax"
MOST_LINES = 80


def test_no_function_is_longer_than_a_screen_or_two():
    long = [
        f"{file.relative_to(PACKAGE.parent)}:{node.lineno} {node.name}: {lines} lines"
        for file in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MOST_LINES
    ]
    assert long == []


def test_what_is_too_long_would_be_found():
    """The rooms are where the test above looks, and some function is long enough to count lines by."""
    lengths = [
        (node.end_lineno or 0) - node.lineno + 1
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    assert len(lengths) > 500 and max(lengths) > 40
