"""Tables and values as text: in a terminal and in Markdown."""

import math
from collections.abc import Sequence
from typing import Any


def listed(value: Any) -> str:
    """A value on one line: numbers of a list shortened, long lists by their ends."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {listed(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        shown = [listed(entry) for entry in value]
        return ", ".join(shown if len(shown) <= 12 else [*shown[:5], "…", *shown[-5:]])
    return f"{value:.6g}" if isinstance(value, float) else text(value)


def text(value: Any) -> str:
    """A number with its thousands marked or to five places; other values as they are."""
    if isinstance(value, float):
        return f"{value:.5f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def signed(value: float, low: float = math.nan, high: float = math.nan, digits: int = 4) -> str:
    """A difference with its sign and, where it is known, its interval: ``−0.0123 [−0.0200, −0.0046]``."""
    shown = [f"{number:+.{digits}f}".replace("-", "−") for number in (value, low, high)]
    return shown[0] if math.isnan(low) or math.isnan(high) else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Prints a table; the first column is text, the others are numbers."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for name in header:
        shown.add_column(name, justify="left" if name == header[0] else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console = Console(markup=False)  # a path may hold brackets
    # Redirected to a file there is no width to keep to, and wrapped columns are hard to read back.
    (console if console.is_terminal else Console(width=160, markup=False)).print(shown)


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; the first row is the header, the first column is text, the others are numbers."""
    header, *body = rows
    rule = [":--", *["--:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *body)]
