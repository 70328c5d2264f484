"""Whether the claims come out alike elsewhere: the pages of two folders of results, side by side.

python -m experiments.replication results THEIRS        (a table in the terminal; --output=DIR also writes a page there)

The claims of the paper's tables and figures that both folders have at a scale, by the difference of losses with its 95%
interval and its verdict. Runs of the same seeds on another processor, or with another version of a library, round
differently, and part; on the same machine with the same versions they come out bit for bit the same.
"""

import argparse
import sys
from pathlib import Path

from configs import matrix
from experiments import report
from experiments.intervals import CLAIMS, general
from experiments.protocol import Page, Record, publish
from experiments.seeds import machines
from wsm_jax.errors import UsageError, ended
from wsm_jax.io.files import read_jsonl
from wsm_jax.reporting import pages
from wsm_jax.reporting.tables import markdown_table

FOLDERS = ("first", "second")


def measure(folders: tuple[Path, Path], scale: str) -> list[Record]:
    """A record for each claim that both folders have: page, claim, and from each its difference, verdict and machines.

    Raises:
      UsageError: a folder has no claims at this scale, or they have none in common.
    """
    found, records = [_claims(folder, scale) for folder in folders], []
    command = f"python -m experiments.replication {folders[0]} {folders[1]} --scale={scale}"
    for key, first in found[0].items():
        if second := found[1].get(key):
            claim = first["claim"] if first["claim"] == second["claim"] else general(first["claim"])
            told = {"page": key[0], "claim": claim, "scale": scale, "command": command}
            records.append({**told, "first": first, "second": second})
    if not records:
        raise UsageError(f"{folders[0]} and {folders[1]} have no claim in common at --scale={scale}")
    return records


def _claims(folder: Path, scale: str) -> dict[tuple[str, str], Record]:
    """(page, claim without what was chosen) -> the claim, its difference, verdict and machines."""
    outline, found = report.outline(folder), {}
    for name, text in pages.pages(folder, scale, outline).items():
        rows = pages.claims(text).get(tuple(CLAIMS), []) if name not in outline.apart else []
        made_on = machines(read_jsonl(folder / name / scale / "records.jsonl")) if rows else ""
        for claim, difference, verdict, _ in rows:
            own = {"claim": claim, "difference": difference, "verdict": verdict, "machine": made_on}
            found[name, general(claim)] = own
    if not found:
        raise UsageError(f"{folder} has no claims at --scale={scale}: no pages such as wsd_vs_wsm/{scale}/README.md")
    return found


def present(records: list[Record]) -> Page:
    """How many claims come out alike, then all of them, those with another verdict first."""
    verdicts = [{r[name]["verdict"] for name in FOLDERS} for r in records]
    changed = [r for r, found in zip(records, verdicts, strict=True) if len(found) > 1]
    alike = [r for r, found in zip(records, verdicts, strict=True) if len(found) == 1]
    opposite = sum(len(found) > 1 and "undecided" not in found for found in verdicts)
    same = sum(r["first"]["difference"] == r["second"]["difference"] for r in records)
    inside = sum(_within(r["first"], r["second"]) for r in records)
    of = {name: ", and ".join(dict.fromkeys(r[name]["machine"] for r in records)) for name in FOLDERS}
    lines = [
        f"# The claims of {records[0]['scale']}, run twice",
        "",
        f"The first: {of['first']}. The second: {of['second']}. Losses in bits per byte, first arm minus second, with "
        "95% intervals over the same seeds. What was chosen on validation, of which a claim speaks, may differ. "
        f"`{records[0]['command']}`",
        "",
        f"* {len(records)} claims are in both; {_number(same, 'has')} the same figures.",
        f"* {_number(len(alike), 'has')} the same verdict; "
        f"{_number(len(changed) - opposite, 'is')} decided in one and undecided in the other; "
        f"{_number(opposite, 'is')} reversed.",
        f"* The second's mean is within the first's interval for {inside} of {len(records)}.",
    ]
    for title, some in {"With another verdict:": changed, "With the same verdict:": alike}.items():
        lines += ["", title, "", *_table(some)] if some else []
    return Page(lines, {})


def _table(records: list[Record]) -> list[str]:
    rows = [["of two arms", "first", "", "second", "", "page"]]
    for r in records:
        cells = [r[name][field] for name in FOLDERS for field in ("difference", "verdict")]
        rows.append([r["claim"], *cells, r["page"]])
    return list(markdown_table(rows))


def _number(count: int, verb: str) -> str:
    return f"{count} {verb if count == 1 else {'has': 'have', 'is': 'are'}[verb]}"


def _within(first: Record, second: Record) -> bool:
    """Whether the second's mean lies in the first's interval."""
    (mean, half), (other, _) = (map(float, found["difference"].split(" ± ")) for found in (first, second))
    return abs(mean - other) <= half


def main() -> int:
    """The command."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m experiments.replication", description=__doc__, formatter_class=shape)
    parser.add_argument("first", type=Path, help="a folder of pages, such as results")
    parser.add_argument("second", type=Path, help="another one")
    parser.add_argument("--scale", default="small", choices=list(matrix.SIZES), help="default: small")
    parser.add_argument("--output", type=Path, help="folder of the page, DIR/README.md with DIR/records.jsonl")
    options = parser.parse_args()
    records = measure((options.first, options.second), options.scale)
    page = present(records)
    if options.output:
        publish(page, records, options.output)
    else:
        print("\n".join(page.lines))
    return 0


if __name__ == "__main__":
    sys.exit(ended("replication", main))
