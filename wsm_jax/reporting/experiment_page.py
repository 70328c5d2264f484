"""The page of an experiment: claims.json and records.jsonl of a folder as README.md, index.html and figures."""

import collections
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsm_jax.errors import UsageError
from wsm_jax.io import files
from wsm_jax.reporting import document
from wsm_jax.reporting.document import Page, Picture, Section, Table
from wsm_jax.reporting.effects import Effect, forest, heat_map
from wsm_jax.reporting.tables import signed

Json = Mapping[str, Any]
UNIT = "bits per byte"
NEEDED = {"experiment", "title", "scale", "seeds", "unit", "smallest_effect", "arms", "claims", "differences"}
MOST_LINES, MOST_PANELS = 40, 12  # of a figure
HOW_TO_READ = (
    "Each figure is of test losses, lower is better, with its 95% interval over {over}. A claim is better where it "
    "holds (the whole interval is below zero, and for a primary claim also p after Holm's correction is below 0.05), "
    "worse where the opposite does, equal where the whole interval is within the smallest effect of interest, "
    "else open."
)


def read(folder: Path) -> Json:
    """The claims.json of a folder.

    Raises:
      UsageError: there is none, or it lacks what a page needs.
    """
    claims = files.read_json(folder / "claims.json")
    if not isinstance(claims, dict) or (lacks := sorted(NEEDED - claims.keys())):
        lacks = lacks if isinstance(claims, dict) else sorted(NEEDED)
        raise UsageError(f"{folder / 'claims.json'} has no {lacks[0]!r}; run its sweep again")
    return claims


def write(folder: str | Path) -> Path:
    """Writes README.md, index.html and figures into a folder with claims.json, each whole or not at all.

    Returns:
      the path of README.md.

    Raises:
      UsageError: claims.json is not there or lacks what a page needs.
    """
    folder = Path(folder)
    claims, records = read(folder), files.read_jsonl(folder / "records.jsonl")
    data = [
        name for name in ("claims.json", "records.jsonl", "nats.npz", "documents.json") if (folder / name).is_file()
    ]
    return document.write(page(claims, records, about(folder, claims), data), folder, "README.md", "index.html")


def about(folder: Path, claims: Json, name: str = "") -> list[str]:
    """Paragraphs on a folder: about.md in it, else what its experiment says of itself.

    Args:
      folder: where about.md may be.
      claims: of its claims.json.
      name: of the folder, on a page of another one, to which its links then lead.
    """
    file = folder / "about.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else claims.get("about", "")
    return document.paragraphs(re.sub(r"\]\((?![a-z]+:|[/#])", f"]({name}/", text) if name else text)


def page(claims: Json, records: Sequence[Json], introduction: Sequence[str], data: Sequence[str]) -> Page:
    """The page as data.

    Args:
      claims: of claims.json.
      records: of records.jsonl; for the time that its pieces took.
      introduction: paragraphs before all else.
      data: names of the files that the page is made of.
    """
    ordered = sorted(claims["claims"], key=lambda claim: not claim["primary"])
    groups = {True: "primary", False: "exploratory"} if len({claim["primary"] for claim in ordered}) > 1 else {}
    grouped = [(groups.get(claim["primary"], ""), claim) for claim in ordered]
    pictures = claim_pictures(grouped, claims["smallest_effect"])
    heat_map = _heat_map(claims)
    return Page(
        claims["title"],
        [
            Section("", introduction),
            Section("Claims", [how_to_read(ordered), *pictures, claim_table(ordered)] if ordered else []),
            Section("Over the axes", heat_map),
            Section("Choices", _choices(claims)),
            Section("Arms", _arms(claims, figure=not heat_map)),
            Section("How it was made", _origin(claims, records, data)),
        ],
    )


def how_to_read(claims: Sequence[Json]) -> str:
    """What estimates, intervals and verdicts are."""
    over = dict.fromkeys(claim.get("over") or "seeds and documents" for claim in claims)
    return HOW_TO_READ.format(over=", or ".join(over))


def effect(value: Json, name: str, group: str = "") -> Effect:
    """A claim or difference as it is drawn; an interval that is not known is NaN."""
    low, high = (math.nan if end is None else end for end in value["interval"] or (None, None))
    return Effect(name, value["estimate"], low, high, value["verdict"], group)


def claim_pictures(claims: Sequence[tuple[str, Json]], smallest: float) -> list[Picture]:
    """A forest plot of claims for each unit that they have.

    Args:
      claims: (heading, claim), in order; those of one heading stand together.
      smallest: losses within it are called equal.
    """
    units: dict[str, list[Effect]] = collections.defaultdict(list)
    for group, claim in claims:
        if claim["estimate"] is not None:  # the losses define it
            units[claim["unit"]].append(effect(claim, claim["statement"], group))
    pictures = []
    for number, (unit, effects) in enumerate(units.items(), 1):
        band = smallest if unit == UNIT else 0.0
        figure = forest(effects, unit=unit, smallest=band, sides=("holds", "opposite"))
        grey = f"; grey: within ±{band:g}, called equal" if band else ""
        name = f"claims_{number}" if number > 1 else "claims"
        pictures.append(Picture(name, figure, f"The claims, in {unit}, with 95% intervals{grey}."))
    return pictures


def claim_table(claims: Sequence[Json], more: Mapping[str, Sequence[str]] | None = None) -> Table:
    """The claims with their p values.

    Args:
      claims: one a row.
      more: further columns: heading -> cells.
    """
    columns = {
        "claim": [c["statement"] + ("" if c["unit"] == UNIT else f" ({c['unit']})") for c in claims],
        "estimate [95%]": [_figures(c) for c in claims],
        "p": [_p(c["p"]) for c in claims],
        "p (Holm)": [_p(c["p_holm"]) for c in claims],
        "verdict": [c["verdict"] for c in claims],
        "the paper": [c["paper"] or "–" for c in claims],
        **(more or {}),
    }
    shown = {name: cells for name, cells in columns.items() if name != "the paper" or {*cells} - {"–"}}
    return Table([*shown], [*zip(*shown.values(), strict=True)])


def _figures(value: Json) -> str:
    if value["estimate"] is None:
        return "not defined"
    found = effect(value, "")
    return signed(found.estimate, found.low, found.high)


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _choices(claims: Json) -> list[str | Table]:
    header = ["choice", *(f"seed {seed}" for seed in claims["seeds"]), "lowest mean validation loss"]
    rows = []
    for choice in claims.get("choices", ()):
        best = min(choice["validation"], key=choice["validation"].get)
        chosen = [choice["chosen"].get(str(seed), "–") for seed in claims["seeds"]]
        rows.append(
            [f"{choice['choice']} (of {len(choice['of'])})", *chosen, f"{best}, {choice['validation'][best]:.4f}"]
        )
    return ["The arm with the lowest validation loss, for each seed by itself.", Table(header, rows)] if rows else []


def _arms(claims: Json, *, figure: bool) -> list[str | Table | Picture]:
    """The table of arms, each beside the first, and a forest plot of the differences if they need one."""
    arms, differences = claims["arms"], _differences(claims)
    domains = [*dict.fromkeys(domain for arm in arms for domain in arm["domains"])]
    reference = arms[0]["arm"] if arms else ""
    header = ["arm", "test loss", *domains, f"minus {reference} [95%]", "verdict"]
    rows = []
    for arm in arms:
        minus = differences.get(arm["arm"])
        losses = [arm["mean"], *(arm["domains"].get(domain, {}).get("mean") for domain in domains)]
        cells = ["–" if loss is None else f"{loss:.4f}" for loss in losses]
        rows.append([arm["arm"], *cells, *([_figures(minus), minus["verdict"]] if minus else ["–", "–"])])
    blocks: list[str | Table | Picture] = [Table(header, rows)] if rows else []
    if figure and 0 < len(differences) <= MOST_LINES:
        effects = [effect(value, name) for name, value in differences.items()]
        smallest = claims["smallest_effect"]
        caption = f"Test loss of each arm minus that of {reference}, with 95% intervals; grey: within ±{smallest:g}."
        drawn = forest(effects, unit=f"minus {reference}, {claims['unit']}", smallest=smallest)
        blocks.append(Picture("differences", drawn, caption))
    return blocks


def _differences(claims: Json) -> dict[str, Json]:
    """Arm -> its difference to the first."""
    return {difference["claim"]: difference for difference in claims["differences"]}


def _heat_map(claims: Json) -> list[str | Table | Picture]:
    """The differences over the axes of a sweep, where it has two or more; further axes make small multiples."""
    differences = _differences(claims)
    arms = [arm for arm in claims["arms"] if arm["arm"] in differences and arm["axes"]]
    most = max((len(arm["axes"]) for arm in arms), default=0)
    arms = [arm for arm in arms if len(arm["axes"]) == most]
    fields = _fields([arm["axes"] for arm in arms])
    if len(fields) < 2:
        return []
    values = {field: {str(arm["axes"][field]) for arm in arms} for field in fields}
    # Names make the panels, and the axis with most values goes across.
    named = lambda field: not any(value[0].isdigit() for value in values[field])  # noqa: E731
    *others, rows, columns = sorted(fields, key=lambda field: (not named(field), len(values[field])))
    cells = {}
    for arm in arms:
        axes = arm["axes"]
        panel = ", ".join(f"{_short(field)} {axes[field]}" for field in others)
        cells[panel, str(axes[rows]), str(axes[columns])] = effect(differences[arm["arm"]], arm["arm"])
    if len({panel for panel, _, _ in cells}) > MOST_PANELS:
        return []
    reference, smallest = claims["arms"][0]["arm"], claims["smallest_effect"]
    figure = heat_map(cells, rows=_short(rows), columns=_short(columns), unit=f"minus {reference}, {claims['unit']}")
    caption = (
        f"Test loss minus that of {reference} over {_short(rows)} and {_short(columns)}; framed: the lowest; "
        f"in brackets: open, or within ±{smallest:g}."
    )
    return [Picture("heat_map", figure, caption)]


def _fields(points: Sequence[Json]) -> list[str]:
    """The axes that vary: two where two tell all points apart (a window is a count and an interval), else all."""
    fields = [field for field in (points[0] if points else ()) if len({str(point[field]) for point in points}) > 1]
    for pair in itertools.combinations(fields, 2):
        if len({tuple(str(point[field]) for field in pair) for point in points}) == len(points):
            return [*pair]
    return fields


def _short(field: str) -> str:
    return field.rpartition(".")[2]


def _origin(claims: Json, records: Sequence[Json], data: Sequence[str]) -> list[str | Table]:
    pieces = {record["piece"]: record["piece_seconds"] for record in records if {"piece", "piece_seconds"} <= {*record}}
    documents = claims.get("documents", {})
    facts = {
        "scale": claims["scale"],
        "seeds": ", ".join(map(str, claims["seeds"])),
        "parameters": f"{claims['parameters']:,}" if claims.get("parameters") else "",
        "test documents": ", ".join(f"{name} {count}" for name, count in documents.items()),
        "left out": ", ".join(f"{name} {count}" for name, count in claims.get("left_out", {}).items() if count),
        "time": f"{sum(pieces.values()) / 60:.0f} minutes of processes, {len(pieces)} pieces" if pieces else "",
        "machine": "; ".join(claims.get("machines", ())),
        "versions": "; ".join(map(_version, claims.get("versions", ()))),
        "command": f"`{claims['command']}`" if claims.get("command") else "",
        "data": ", ".join(f"[{name}]({name})" for name in data),
    }
    return [Table(["", "value"], [[name, value] for name, value in facts.items() if value], numbers=False)]


def _version(value: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in value.items()) if isinstance(value, dict) else str(value)
