"""Steps told from names: of checkpoints that were given, and in a folder that holds one checkpoint for each step."""

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wsm_jax.checkpoints import storage
from wsm_jax.checkpoints.torch_file import SUFFIXES
from wsm_jax.errors import UsageError
from wsm_jax.io import places

UNFINISHED = ".orbax-checkpoint-tmp"  # Orbax's mark of a save that is under way, or was killed
# The words that a step follows, the surest first: in `ep=1-step=500` and `step500-tokens2B` it is 500.
_WORDS = ("steps?", "(?:checkpoint|ckpt|iter|iteration|update|batch|ba)", "(?:epoch|ep)")


def step_in(name: str) -> int | None:
    """The step in a name: ``500``, ``checkpoint-500``, ``step500-unsharded``, ``ep=1-step=500``, ``ckpt_500.pt``."""
    name = name.removesuffix(Path(name).suffix) if Path(name).suffix in SUFFIXES else name
    if re.fullmatch("[0-9]{1,18}", name):
        return int(name)
    for word in _WORDS:
        if found := re.findall(rf"(?:^|[^a-z]){word}[-_=.]?([0-9]{{1,18}})(?![0-9])", name, re.IGNORECASE):
            return int(found[-1])
    return None


def step_of(path: str | os.PathLike) -> int | None:
    """The step of a checkpoint by its path: that of its folder, else of the folder around it (``500/default``)."""
    found = (step_in(name) for name in reversed(Path(path).parts[-2:]))
    return next((step for step in found if step is not None), None)


def series_of(path: str | os.PathLike) -> str:
    """The path without what tells checkpoints of one series apart: the numbers in the name that has the step."""
    parts = list(Path(path).parts)
    for place in range(len(parts) - 1, max(len(parts) - 3, -1), -1):
        if step_in(parts[place]) is not None:
            parts[place] = re.sub("[0-9]+", "#", parts[place])
            break
    return "/".join(parts)


def sorted_series(paths: Sequence[str]) -> list[str]:
    """The paths with the checkpoints of each series oldest first, in the places that the series has."""
    ordered = list(paths)
    places: dict[str, list[int]] = {}
    for place, path in enumerate(paths):
        if step_of(path) is not None:
            places.setdefault(series_of(path), []).append(place)
    for members in places.values():
        oldest_first = sorted((paths[place] for place in members), key=lambda path: step_of(path) or 0)
        for place, path in zip(members, oldest_first, strict=True):
            ordered[place] = path
    return ordered


def common_steps(paths: Sequence[str]) -> list[int] | None:
    """The steps of checkpoints of one series, oldest first; None where their names tell no such steps."""
    steps = [step_of(path) for path in paths]
    known = [step for step in steps if step is not None]
    one_series = len({series_of(path) for path in paths}) == 1
    increasing = all(a < b for a, b in itertools.pairwise(known))
    return known if len(known) == len(paths) and one_series and increasing else None


def are_even(steps: Sequence[int]) -> bool:
    """Whether neighbours are equally far from each other."""
    return len({b - a for a, b in itertools.pairwise(steps)}) < 2


# --- a folder of steps -----------------------------------------------------------------------------------------------


class Folder(NamedTuple):
    """What lies in a folder of steps.

    Attributes:
      path: the folder.
      checkpoints: step -> its complete checkpoint, ascending.
      left_out: names of the folders that look like steps and hold no complete checkpoint, e.g. saves under way.
    """

    path: Path
    checkpoints: dict[int, Path]
    left_out: list[str]


def look_into(path: str | os.PathLike, item: str | None = None) -> Folder:
    """The steps in a folder, whoever wrote it: a checkpoint is the folder of its step, or the one folder inside.

    Args:
      path: the folder.
      item: which of several checkpoints inside a step is meant.

    Raises:
      UsageError: no such folder, two checkpoints for one step, or several inside one without an ``item``.
    """
    root = places.at(path)
    if not root.is_dir():
        raise UsageError(f"{path} is no folder of checkpoints" + ("" if root.exists() else "; nothing is there"))
    found: dict[int, Path] = {}
    left_out = []
    for folder in sorted(child for child in root.iterdir() if child.is_dir() or child.suffix in SUFFIXES):
        step = step_in(folder.name.split(UNFINISHED)[0])
        if step is None:
            continue
        checkpoint = None if UNFINISHED in folder.name else _checkpoint_in(folder, item)
        if checkpoint is None:
            left_out.append(folder.name)
        elif step in found:
            raise UsageError(f"{found[step]} and {checkpoint} are both of step {step}; name the checkpoints one by one")
        else:
            found[step] = checkpoint
    return Folder(root, dict(sorted(found.items())), left_out)


def _checkpoint_in(folder: Path, item: str | None) -> Path | None:
    """The complete checkpoint that a folder or a file is, or that the folder inside it is."""
    if storage.is_checkpoint(folder):
        return folder
    if not folder.is_dir():
        return None
    inside = [child for child in sorted(folder.iterdir()) if child.is_dir() and storage.is_checkpoint(child)]
    if len(inside) > 1:
        inside = [child for child in inside if child.name == item] or inside
    if len(inside) > 1:
        names = ", ".join(child.name for child in inside)
        raise UsageError(f"{folder} holds several checkpoints, {names}; say which one to read, --item=NAME")
    return inside[0] if inside else None


def choose(
    folder: Folder,
    *,
    count: int | None = None,
    interval: int | None = None,
    window: str | None = None,
    last_step: int | None = None,
) -> list[int]:
    """The steps of a window, ascending; it is count x interval long, as that of a run.

    Without ``interval`` (and without both ``window`` and ``count``, which give one) the checkpoints are those that
    there are, evenly spaced or not: the newest ``count``, or all less than ``window`` before the newest.

    Args:
      folder: where they are.
      count: how many.
      interval: steps between them; others in between are left out.
      window: length, ``8000steps``.
      last_step: the newest; default: the newest there is.

    Raises:
      UsageError: a value that is out of range or contradicts the others, a checkpoint that is missing.
    """
    for name, value in (("count", count), ("interval", interval)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be a whole number of at least 1, got {value}")
    there = list(folder.checkpoints)
    if not there:
        storage.open_source(folder.path).close()  # says what is there instead
        raise UsageError(f"{folder.path} is itself a checkpoint and holds no steps; leave --count and the like out")
    has = f"it has {_listed(there)}"
    last = there[-1] if last_step is None else last_step
    if last not in folder.checkpoints:
        raise UsageError(f"{folder.path} has no checkpoint at step {last}; {has}")
    if window is not None:
        length = _length(window)
        if count and interval and length != count * interval:
            raise UsageError(f"window={window} is not count={count} x interval={interval}; give two of the three")
        unit = interval or count
        if unit and (length % unit or not length):
            raise UsageError(f"window={window} is no multiple of {'interval' if interval else 'count'}={unit}")
        if unit is None:
            return [step for step in there if last - length < step <= last] or [last]
        interval, count = interval or length // unit, count or length // unit
    earlier = [step for step in there if step <= last]
    if interval is None:
        if count and count > len(earlier):
            raise UsageError(f"count={count}, but {folder.path} has only {len(earlier)} up to step {last}; {has}")
        return earlier[-count:] if count else earlier
    if count is None:
        steps = itertools.takewhile(folder.checkpoints.__contains__, range(last, -1, -interval))
        return sorted(steps)
    wanted = range(last - (count - 1) * interval, last + 1, interval)
    missing = next((step for step in reversed(wanted) if step not in folder.checkpoints), None)
    if missing is not None:
        needs = f"{count} every {interval} steps up to {last}"
        raise UsageError(f"{folder.path} has no checkpoint at step {missing} (needed: {needs}); {has}")
    return list(wanted)


def _length(window: str) -> int:
    match = re.fullmatch(r"\s*([0-9]{1,18})\s*steps?\s*", window)
    if match is None or not int(match[1]):
        raise UsageError(
            f"window={window!r}: a folder of checkpoints knows neither tokens nor the length of the run; give steps, "
            "e.g. --window=8000steps"
        )
    return int(match[1])


def _listed(steps: Sequence[int]) -> str:
    if len(steps) > 12:
        return f"{len(steps)}, from {steps[0]} to {steps[-1]}"
    return ", ".join(map(str, steps))
