"""Two models on the same tasks, in the shape of the paper's Table 1: groups, overall, and bits per byte beside them."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wsm_jax.errors import UsageError
from wsm_jax.evaluation import scores
from wsm_jax.evaluation.scores import TaskScore, Value
from wsm_jax.io import places
from wsm_jax.io.files import write_json, write_text
from wsm_jax.reporting.tables import markdown_table, signed

NAME = "benchmarks"  # of the files
ACCURACY, BITS = "accuracy, %", "bits per byte"


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two models and the tasks that both were asked.

    Attributes:
      names: what they are called.
      first, second: their scores, task by task.
      alone: tasks that only one of them was asked.
    """

    names: tuple[str, str]
    first: Sequence[TaskScore]
    second: Sequence[TaskScore]
    alone: Sequence[str]


def results(path: str) -> Path:
    """The folder of results that a user names: itself, or the only one of a run.

    Raises:
      UsageError: none there, or several.
    """
    folder = places.local(path)
    if (folder / scores.FILE).is_file():
        return folder
    there = sorted(file.parent for file in [*folder.glob(f"{NAME}/*/{scores.FILE}"), *folder.glob(f"*/{scores.FILE}")])
    if len(there) == 1:
        return there[0]
    if not there:
        raise UsageError(f"{path} has no results of tasks; wsm eval --run={path} --tasks=... makes them")
    raise UsageError(f"{path} has results of several models; name one of {', '.join(map(str, there))}")


def pair(one: Path, other: Path) -> Pair:
    """The scores in two folders of results.

    Raises:
      UsageError: no task in common, or one that was asked otherwise.
    """
    found = [{score.task: score for score in scores.read(folder)} for folder in (one, other)]
    common = [name for name in found[0] if name in found[1]]
    if not common:
        raise UsageError(f"{one} has {', '.join(found[0])}, {other} has {', '.join(found[1])}: no task in common")
    for name in common:
        scores.differences(found[1][name], found[0][name])
    alone = sorted({*found[0]} ^ {*found[1]})
    names = [_name(next(iter(each.values()))) for each in found]
    ordered = [score.task for members in scores.groups(found[0][name] for name in common).values() for score in members]
    first, second = ([each[name] for name in ordered] for each in found)
    return Pair((names[0], names[1]), first, second, alone)


def _name(score: TaskScore) -> str:
    return f"{Path(str(score.facts.get('run', ''))).name} {score.model}".strip()


def figures(found: Pair) -> dict[str, Any]:
    """JSON-ready: for each group and overall the two models and the second minus the first, paired by question."""
    members = {name: [score.task for score in each] for name, each in scores.groups(found.first).items()}
    members["overall"] = [score.task for score in found.first]
    table = {}
    for group, tasks in members.items():
        both = [(one, other) for one, other in zip(found.first, found.second, strict=True) if one.task in tasks]
        table[group] = {"tasks": tasks, **_figures(both)}
    return {"models": list(found.names), "groups": table, "at_chance": at_chance(found), "only_one": list(found.alone)}


def _figures(both: Sequence[tuple[TaskScore, TaskScore]]) -> dict[str, Any]:
    found = {}
    for figure, of in _OF.items():
        measured = [(a, b) for a, b in both if of(a) is not None]
        if measured:
            deltas = [scores.differences(b, a)[figure] for a, b in measured]
            values = [[of(score) for score in each] for each in zip(*measured, strict=True)]
            named = dict(zip(("first", "second", "difference"), map(scores.mean, [*values, deltas]), strict=True))
            found[figure] = {
                name: {"value": value.value, "stderr": scores.known(value.stderr)} for name, value in named.items()
            }
    return found


_OF: dict[str, Callable[[TaskScore], Any]] = {
    "accuracy": lambda score: score.accuracy,
    "bits_per_byte": lambda score: score.bits_per_byte,
}


def at_chance(found: Pair) -> list[str]:
    """The tasks on which neither model's accuracy is known to differ from guessing."""
    both = zip(found.first, found.second, strict=True)
    return [one.task for one, other in both if one.is_chance and other.is_chance]


def table(found: Pair) -> list[list[str]]:
    """The paper's table: a column for each group and one for all; a block of three rows for each figure."""
    groups = figures(found)["groups"]
    rows = [["", *(f"{name} ({len(each['tasks'])})" for name, each in groups.items())]]
    for figure, label, scale, digits in (("accuracy", ACCURACY, 100, 1), ("bits_per_byte", BITS, 1, 4)):
        for which, name in (("first", found.names[0]), ("second", found.names[1]), ("difference", "difference")):
            cells = [_cell(each.get(figure, {}).get(which), scale, digits, which) for each in groups.values()]
            rows.append([f"{name}, {label}", *cells])
    return rows


def _cell(value: dict[str, float] | None, scale: float, digits: int, which: str) -> str:
    if value is None:
        return "–"
    one = Value(scale * value["value"], scale * (value["stderr"] if value["stderr"] is not None else float("nan")))
    if which == "difference":
        return signed(one.value, *one.interval, digits=digits)
    return f"{one.value:.{digits}f} ± {one.stderr:.{digits}f}"


def task_table(found: Pair) -> list[list[str]]:
    """Each task by itself."""
    first, second = found.names
    rows = [["task", "questions", "shots", "chance, %", *(f"{name}, {label}" for label in (ACCURACY, BITS)
                                                        for name in (first, second, "difference"))]]  # fmt: skip
    for one, other in zip(found.first, found.second, strict=True):
        measured = _figures([(one, other)])
        cells = [
            _cell(measured.get(figure, {}).get(which), scale, digits, which)
            for figure, scale, digits in (("accuracy", 100, 1), ("bits_per_byte", 1, 4))
            for which in ("first", "second", "difference")
        ]
        chance = f"{100 * one.chance:.1f}" if one.metric else "–"
        rows.append([one.task, f"{one.questions:,}", str(one.facts.get("shots", "")), chance, *cells])
    return rows


def remarks(found: Pair) -> list[str]:
    """What a reader has to know of the table."""
    lines = [
        "± is the standard error over questions; differences are second minus first, paired by question, with 95% "
        "intervals over questions. Another seed of either run would move them, too."
    ]
    measured = [score.task for score in found.first if score.metric]
    if chance := at_chance(found):
        what = "All accuracies are" if len(chance) == len(measured) else f"Accuracies of {', '.join(chance)} are"
        lines.append(f"{what} at chance for both models; read the bits per byte of the gold answers there.")
    if found.alone:
        lines.append(f"Left out, as only one of the two was asked: {', '.join(found.alone)}.")
    return lines


def write(found: Pair, folder: Path) -> Path:
    """Writes ``benchmarks.md`` and ``benchmarks.json`` into a folder, made if missing; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{NAME}.md"
    lines = ["# Benchmarks", "", f"{found.names[0]} beside {found.names[1]}.", "", *markdown_table(table(found)), ""]
    lines += [line for remark in remarks(found) for line in (remark, "")]
    lines += ["## Tasks", "", *markdown_table(task_table(found)), ""]
    write_text(page, "\n".join(lines))
    write_json(folder / f"{NAME}.json", figures(found))
    return page
