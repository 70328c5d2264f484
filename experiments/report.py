"""All pages of the paper's tables and figures as one: every claim first, the paper's figure beside ours.

python -m experiments.report        (writes results/REPORT.md from the pages that are there, of every scale)
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from configs import matrix
from experiments.intervals import CLAIMS, HOLDS
from experiments.protocol import publish, results_root
from wsm_jax.errors import UsageError
from wsm_jax.report import markdown_table
from wsm_jax.run import read_jsonl

NAMES = (
    "tuning",
    "training",
    "wsd_vs_wsm",
    "merge_algorithm",
    "merge_duration",
    "merge_granularity",
    "emulation",
    "gap",
    "combine",
    "continue_training",
    "trajectory",
    "cost",
)


def pages(results: Path, scale: str) -> dict[str, str]:
    """Experiment -> text of its page at a scale, where there is one."""
    places = {name: results / name / scale / "README.md" for name in NAMES}
    return {name: place.read_text() for name, place in places.items() if place.is_file()}


def claims(found: Mapping[str, str], link: str) -> list[list[str]]:
    """Header and rows of all claims about losses; ``link`` is what a row links to, with ``{name}`` in it."""
    rows = [[*CLAIMS, "page"]]
    for name, page in found.items():
        for cells in _claims(page) if name != "trajectory" else ():  # those are of distances
            rows.append([*cells, f"[{name}]({link.format(name=name)})"])
    return rows


def _claims(page: str) -> list[list[str]]:
    """Cells of every table of a page whose first column is headed by a claim."""
    rows, inside = [], False
    for line in page.splitlines():
        if line.startswith("| claim"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("| :"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) != len(CLAIMS):
                raise UsageError(f"a row of claims has not the columns {CLAIMS}: {line!r}; make its page again")
            rows.append(cells)
    return rows


def measures(results: Path, scale: str) -> str:
    """How large the model is, and what the lengths that the pages count in are."""
    size = matrix.SIZES[scale]
    records = (read_jsonl(results / name / scale / "records.jsonl") for name in NAMES)
    parameters = next(found[0]["parameters"] for found in records if found)
    interval = size.steps // matrix.INTERVALS
    return (
        f"{parameters:,} parameters. Lengths are in intervals of {interval} steps; a step is {size.batch_size} "
        f"sequences of {size.context} tokens, a run has {matrix.INTERVALS} intervals, its real decay is the last "
        f"{matrix.DECAY}."
    )


def seconds(results: Path, scale: str) -> dict[str, float]:
    """Experiment -> seconds of its processes together, each on its share of the cores."""
    found = {}
    for name in NAMES:
        records = read_jsonl(results / name / scale / "records.jsonl")
        if records:
            found[name] = sum({r["piece"]: r["piece_seconds"] for r in records}.values())
    return found


def report(results: Path) -> str:
    """The text of the report: for each scale its claims, then its pages with titles two levels down."""
    lines = [
        "# WSM's tables and figures, the paper's beside ours",
        "",
        "The paper is arXiv 2507.17634; its figures are scores on benchmarks, higher is better, without intervals. "
        "Ours are losses in bits per byte, lower is better, first arm minus second, with 95% intervals over seeds. "
        f"{HOLDS}",
    ]
    for scale in matrix.SIZES:
        if not (found := pages(results, scale)):
            continue
        lines += ["", f"## Scale {scale}", "", measures(results, scale), ""]
        lines += markdown_table(claims(found, f"{{name}}/{scale}"))
        taken = seconds(results, scale)
        rows = [["experiment", "minutes of processes"], *([name, f"{s / 60:.0f}"] for name, s in taken.items())]
        lines += ["", *markdown_table([*rows, ["all", f"{sum(taken.values()) / 60:.0f}"]])]
        for name, page in found.items():
            lines.append("")
            for line in page.splitlines():
                titled = f"##{line}" if line.startswith("#") else line
                lines.append(titled.replace("](", f"]({name}/{scale}/") if line.startswith("![") else titled)
    return "\n".join(lines) + "\n"


def write() -> None:
    """Writes the report of the pages that are there."""
    results = results_root()
    publish(results / "REPORT.md", report(results))
    print(f"written: {results}/REPORT.md")


def main() -> int:
    """The command."""
    argparse.ArgumentParser("python -m experiments.report", description=(__doc__ or "").split("\n")[0]).parse_args()
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
