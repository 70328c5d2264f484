"""The page of error messages quotes those that the source has."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [line for line in re.findall(r"^\| `(.+?)` \|", PAGE, re.MULTILINE) if "…" in line or " " in line]
GAP = "\0"  # what a message fills in


def texts(node: ast.AST) -> str:
    """The text of a string, its fields gaps; "" of what is none."""
    if isinstance(node, ast.JoinedStr):
        return "".join(GAP if isinstance(part, ast.FormattedValue) else texts(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (texts(node.left) or GAP) + (texts(node.right) or GAP)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


MESSAGES = [
    text.replace("\n", " ")
    for file in sorted((ROOT / "wsm_jax").rglob("*.py"))
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    if len(text := texts(node)) > 12
]


def is_said(line: str) -> bool:
    """Whether what stands between the gaps of a line is in one message, in its order."""
    parts = line.split("…")
    longest, whole = max(parts, key=len), re.compile(".*?".join(map(re.escape, parts)))
    return any(longest in message and whole.search(message) for message in MESSAGES)


def test_the_page_quotes_many():
    assert len(QUOTED) > 150 and len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize("line", QUOTED)
def test_a_quoted_message_is_in_the_source(line):
    assert is_said(line), line


def test_a_message_that_is_gone_would_be_found():
    assert not is_said("is not a message of this program; …")
