"""The index of results, REPORT.md and report.html: all folders with a claims.json, and their primary claims."""

import collections
from pathlib import Path

from wsm_jax.errors import UsageError
from wsm_jax.reporting import document, experiment_page
from wsm_jax.reporting.document import Page, Section, Table
from wsm_jax.reporting.effects import VERDICTS
from wsm_jax.reporting.experiment_page import Json


def folders(root: Path) -> list[Path]:
    """The folders under ``root``, one or two levels down, that hold a claims.json, by name."""
    return sorted(file.parent for level in ("*", "*/*") for file in root.glob(f"{level}/claims.json"))


def write(root: str | Path) -> Path:
    """Writes REPORT.md, report.html and their figures into a folder of results, each whole or not at all.

    Its first paragraphs are those of about.md in it; what an experiment says of itself stands under its title.

    Returns:
      the path of REPORT.md.

    Raises:
      UsageError: no results there, or a claims.json that lacks what a page needs.
    """
    root = Path(root)
    found = {folder.relative_to(root).as_posix(): experiment_page.read(folder) for folder in folders(root)}
    if not found:
        raise UsageError(f"{root} has no results, NAME/SCALE/claims.json")
    return document.write(page(root, found), root, "REPORT.md", "report.html")


def page(root: Path, found: dict[str, Json]) -> Page:
    """The index as data.

    Args:
      root: the folder of results.
      found: folder, relative to it -> its claims.
    """
    primary = [(name, claim) for name, claims in found.items() for claim in claims["claims"] if claim["primary"]]
    smallest = max(claims["smallest_effect"] for claims in found.values())
    titles = {name: f"{claims['title']} ({claims['scale']})" for name, claims in found.items()}
    pictures = experiment_page.claim_pictures([(titles[name], claim) for name, claim in primary], smallest)
    links = [f"[{name}]({name}/README.md)" for name, _ in primary]
    reading = experiment_page.how_to_read([claim for _, claim in primary])
    table = experiment_page.claim_table([claim for _, claim in primary], {"experiment": links})
    each = [Section(titles[name], experiment_page.about(root / name, found[name], name)) for name in found]
    return Page(
        "Results",
        [
            Section("", experiment_page.about(root, {})),
            Section("Primary claims", [reading, *pictures, table] if primary else []),
            Section("Experiments", [_overview(found)]),
            *each,
        ],
    )


def _overview(found: dict[str, Json]) -> Table:
    """How many claims of each experiment came out how."""
    rows = []
    for name, claims in found.items():
        verdicts = collections.Counter(claim["verdict"] for claim in claims["claims"])
        counts = [str(verdicts[verdict]) for verdict in VERDICTS]
        link = f"[{claims['title']}]({name}/README.md)"
        rows.append([link, claims["scale"], str(len(claims["seeds"])), str(len(claims["arms"])), *counts])
    return Table(["experiment", "scale", "seeds", "arms", *VERDICTS], rows)
