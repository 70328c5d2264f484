"""Tasks of lm-eval over files of JSON lines: those in ``tasks/`` beside this file, and any other by name or by file."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsm_jax.errors import UsageError
from wsm_jax.io.files import json_lines

FOLDER = Path(__file__).parent / "tasks"
ENDINGS = (".jsonl.gz", ".jsonl")
_HEADING = re.compile(r"^(?= = [^=\n]+ = ?$)", re.MULTILINE)  # of the first order, as WikiText writes it


class Benchmark(NamedTuple):
    """What one name stands for.

    Attributes:
      name: as it was asked for.
      tasks: of lm-eval; several of a group.
      whole: the task or the group, for lm-eval.
    """

    name: str
    tasks: list[Any]
    whole: Any

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What its file says beside what lm-eval reads: ``group``, ``score``, ``gold``."""
        return self.tasks[0].config.metadata or {}


def packaged() -> list[str]:
    """The tasks that come with this package."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load(names: Sequence[str], data: Path | None) -> list[Benchmark]:
    """Tasks with their questions.

    Args:
      names: of tasks, groups and tags, or task files of lm-eval.
      data: folder of the files that the packaged tasks read; None: all names are lm-eval's own, which reads the hub.

    Raises:
      UsageError: no task, one that is not known or asked for twice; a file that is not there or not as the task needs
        it; the hub does not answer.
    """
    from lm_eval.tasks import TaskManager

    if not names:
        raise UsageError(f"--tasks names no task; packaged are {', '.join(packaged())}")
    if data is not None and not data.is_dir():
        raise UsageError(f"--tasks_data={data} is no folder")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant, such as data that are read here
    metadata: Any = {"tasks_data": str(data)} if data is not None else {}
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)
    if data is None or not {*names} <= {*manager.all_tasks, *(name for name in names if Path(name).is_file())}:
        own = None if data is None else str(FOLDER)
        manager = TaskManager(include_path=own, metadata=metadata)
    for name in names:
        if name not in manager.all_tasks and not Path(name).is_file():
            raise UsageError(
                f"unknown task {name!r}; packaged are {', '.join(packaged())}, which need --tasks_data=DIR, and "
                "lm_eval ls tasks lists those of the hub"
            )
    found = [one for name in names for one in _load(manager, name, data)]
    every = [task.task_name for one in found for task in one.tasks]
    if twice := sorted({name for name in every if every.count(name) > 1}):
        raise UsageError(f"--tasks names {twice[0]} twice, perhaps as a part of a group")
    return found


def _load(manager: Any, name: str, data: Path | None) -> list[Benchmark]:
    try:
        loaded = manager.load([name])
    except UsageError as error:
        raise UsageError(f"task {name}: {error}") from error
    except Exception as error:  # a task is a program of somebody else, and so is the way to the hub
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        local = "; --tasks_data=DIR reads it from files" if data is None and name in packaged() else ""
        raise UsageError(f"task {name} cannot be read: {reason}{local}") from error
    if name in loaded["groups"]:
        group = loaded["groups"][name]
        return [Benchmark(name, group.get_all_tasks(), group)]
    return [Benchmark(one, [task], task) for one, task in loaded["tasks"].items()]


def read(*, tasks_data: str, files: Mapping[str, Sequence[str]], columns: Sequence[str], **_: Any) -> dict[str, Any]:
    """The data of a packaged task, which its file names as ``custom_dataset``.

    Args:
      tasks_data: the folder.
      files: split -> names of the file without ``.jsonl.gz`` or ``.jsonl``; the first that is there is read.
      columns: fields that each record has.

    Returns:
      split -> ``datasets.Dataset`` of those columns.

    Raises:
      UsageError: naming the file: not there, a line that is not JSON or lacks a field, no record, mixed kinds.
    """
    from datasets import Dataset

    found = {}
    for split, names in files.items():
        path = _find(Path(tasks_data), names)
        records = [_checked(record, columns, f"{path} line {number}") for number, record in json_lines(path)]
        if not records:
            raise UsageError(f"{path} holds no records; it needs JSON lines with {', '.join(columns)}")
        try:
            found[split] = Dataset.from_list(records)
        except (ValueError, TypeError, OverflowError) as error:  # Arrow's are of these
            raise UsageError(f"{path}: a field is not of one kind in all records ({error})") from error
    return found


def _find(folder: Path, names: Sequence[str]) -> Path:
    places = [folder / f"{name}{ending}" for name in names for ending in ENDINGS]
    for place in places:
        if place.is_file():
            return place
    raise UsageError(f"{folder} has no {' or '.join(f'{name}.jsonl.gz' for name in names)} (or .jsonl without .gz)")


def _checked(record: Any, columns: Sequence[str], where: str) -> dict[str, Any]:
    have = list(record) if isinstance(record, dict) else []
    if missing := [name for name in columns if name not in have]:
        raise UsageError(f"{where} has no field {missing[0]!r} (it has: {', '.join(have) or 'none'})")
    return {name: record[name] for name in columns}


def articles(dataset: Any) -> Any:
    """Texts cut before each heading of the first order; what is only space is left out."""
    from datasets import Dataset

    parts = [part for record in dataset for part in _HEADING.split(record["text"]) if part.strip()]
    return Dataset.from_list([{"text": part} for part in parts])
