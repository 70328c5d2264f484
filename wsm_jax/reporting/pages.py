"""Pages of experiments, DIR/NAME/SCALE/README.md beside their records.jsonl, gathered in DIR/REPORT.md.

DIR/outline.json, where it is there, says what the report is called and which pages it has, in which order; without it
it has all, by name. Records with ``piece`` and ``piece_seconds`` say how long a page took. A table whose first column's
heading begins with ``claim`` is one of claims; those come first.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsm_jax.errors import UsageError
from wsm_jax.io.files import read_json, read_jsonl, write_json, write_text
from wsm_jax.reporting.tables import markdown_table


@dataclasses.dataclass(frozen=True)
class Outline:
    """What a report has.

    Attributes:
      title: of the report.
      introduction: what stands before the first table.
      pages: names of the experiments, in order.
      scales: scale -> a sentence on it, in order.
      apart: experiments whose claims stand on their page alone, e.g. because they are of another quantity.
    """

    title: str
    introduction: str
    pages: Sequence[str]
    scales: Mapping[str, str]
    apart: Sequence[str] = ()


def read_outline(root: Path) -> Outline:
    """The outline in a folder of pages; without one all pages, by name. Scales that it lacks come last.

    Raises:
      UsageError: it is malformed, or there are no pages.
    """
    places = [place.parent for place in root.glob("*/*/README.md") if (place.parent / "records.jsonl").is_file()]
    if not places:
        raise UsageError(f"{root} has no pages, NAME/SCALE/README.md beside records.jsonl")
    file = root / "outline.json"
    if file.is_file():
        outline = _outline(file)
        if not set(outline.pages) & {place.parent.name for place in places}:
            raise UsageError(f"{file} names none of the pages there are: {places[0].parent.name}, ...")
    else:
        outline = Outline("Results", "", sorted({place.parent.name for place in places}), {})
    more = sorted({place.name for place in places if place.parent.name in outline.pages} - set(outline.scales))
    return dataclasses.replace(outline, scales={**outline.scales, **dict.fromkeys(more, "")})


def _outline(file: Path) -> Outline:
    value: Any = read_json(file)
    texts = lambda found: isinstance(found, list) and all(isinstance(text, str) for text in found)  # noqa: E731
    try:
        outline = Outline(**value)
        scales = outline.scales
        good = texts(outline.pages) and texts(outline.apart) and isinstance(scales, dict) and texts([*scales.values()])
        if not good:
            raise TypeError("pages and apart are lists of names, scales a text for each name")
    except TypeError as error:
        fields = ", ".join(field.name for field in dataclasses.fields(Outline))
        raise UsageError(f"{file} must be an object with {fields} ({error})") from error
    return outline


def write_outline(root: Path, outline: Outline) -> None:
    """Writes what :func:`read_outline` reads."""
    write_json(root / "outline.json", dataclasses.asdict(outline))


def pages(root: Path, scale: str, outline: Outline) -> dict[str, str]:
    """Experiment -> text of its page at a scale, where there is one."""
    places = {name: root / name / scale / "README.md" for name in outline.pages}
    return {name: place.read_text(encoding="utf-8") for name, place in places.items() if place.is_file()}


def claims(page: str) -> dict[tuple[str, ...], list[list[str]]]:
    """Header -> rows of the tables of a page whose first column's heading begins with ``claim``.

    Raises:
      UsageError: a row has not the columns of its table.
    """
    found: dict[tuple[str, ...], list[list[str]]] = {}
    header: tuple[str, ...] = ()
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| claim"):
            header = ("claim", *cells[1:])
            found.setdefault(header, [])
        elif not line.startswith("|"):
            header = ()
        elif header and not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            if len(cells) != len(header):
                raise UsageError(
                    f"a row of claims has not the columns {', '.join(header)}: {line!r}; make its page again"
                )
            found[header].append(cells)
    return found


def seconds(root: Path, scale: str, outline: Outline) -> dict[str, float]:
    """Experiment -> seconds of its processes together, each on its share of the cores; those that say it."""
    found = {}
    for name in outline.pages:
        records = read_jsonl(root / name / scale / "records.jsonl")
        pieces = {r["piece"]: r["piece_seconds"] for r in records if {"piece", "piece_seconds"} <= {*r}}
        found |= {name: sum(pieces.values())} if pieces else {}
    return found


def minutes(seconds: float) -> str:
    """Whole minutes, as text."""
    return f"{max(seconds / 60, 1):.0f}" if seconds >= 30 else "< 1"


def report(root: Path, outline: Outline | None = None) -> str:
    """The text of the report: for each scale its claims, its times, then its pages with titles two levels down.

    Args:
      root: the folder of the pages.
      outline: default: the one that is there.

    Raises:
      UsageError: no pages there, or a table of claims that cannot be read.
    """
    outline = outline or read_outline(root)
    lines = [f"# {outline.title}", *(["", outline.introduction] if outline.introduction else [])]
    for scale, sentence in outline.scales.items():
        if not (found := pages(root, scale, outline)):
            continue
        lines += ["", f"## Scale {scale}", *(["", sentence] if sentence else [])]
        for table in _all_claims(found, scale, outline):
            lines += ["", *markdown_table(table)]
        taken = seconds(root, scale, outline)
        rows = [["experiment", "minutes of processes"], *([name, minutes(s)] for name, s in taken.items())]
        lines += ["", *markdown_table([*rows, ["all", minutes(sum(taken.values()))]])]
        for name, page in found.items():
            lines += ["", *_moved(page, f"{name}/{scale}")]
    return "\n".join(lines) + "\n"


def _moved(page: str, folder: str) -> list[str]:
    """The lines of a page with its titles two levels down and its links from the folder above that of ``folder``."""
    lines, code = [], False
    for line in page.splitlines():
        code ^= line.lstrip().startswith("```")
        if not code:
            line = re.sub(r"\]\((?![a-z]+:|[/#])", f"]({folder}/", f"##{line}" if line.startswith("#") else line)
        lines.append(line)
    return lines


def _all_claims(found: Mapping[str, str], scale: str, outline: Outline) -> list[list[list[str]]]:
    """Tables of all claims, one for each set of columns, with the page of each claim in the last column."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for name, page in found.items():
        for header, rows in claims(page).items() if name not in outline.apart else ():
            tables.setdefault(header, []).extend([*cells, f"[{name}]({name}/{scale})"] for cells in rows)
    return [[[*header, "page"], *rows] for header, rows in tables.items()]


def write(root: Path) -> Path:
    """Writes REPORT.md into a folder of pages and returns its path; raises what :func:`report` raises."""
    write_text(root / "REPORT.md", report(root))
    return root / "REPORT.md"
