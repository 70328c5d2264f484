"""A run directory: what is in it, and the plan of a run with every duration resolved to steps.

config.json    the configuration as it was given
run.json       what it resolved to: plan, data, decay mask, parent, versions, machine, command
metrics.jsonl  one record a line
checkpoints/   the streams resume/ and merge/
merged/NAME    merged parameters
public/        of an imported model its own configuration and tokenizer
report/        tables and figures
"""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any, NoReturn

from wsm_jax import config as config_lib
from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints.plan import Plan, check, plan
from wsm_jax.config import Config
from wsm_jax.errors import UsageError
from wsm_jax.io import claims, hashes, places, publish
from wsm_jax.io.files import read_json, read_jsonl, write_json

PUBLIC = "public"  # folder of a run that was imported: what lay beside the weights
FORMAT = 1  # of new runs; 0, those that do not say it, padded a vocabulary that was given


class Run:
    """Paths and saved facts of a run directory.

    Raises:
      UsageError: ``path`` holds no run, or one whose config.json or run.json cannot be read.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = places.at(path)
        if not (self.path / "config.json").is_file():
            inside = sorted(self.path.glob("*/run.json"))
            hint = f"did you mean {inside[0].parent}?" if inside else f"wsm train --run={path} makes one"
            if not inside and self.path.is_dir() and any(self.path.iterdir()):
                hint = f"checkpoints of another trainer: wsm merge {path} --count=N --output=OUT"
            raise UsageError(f"{path} is not a run directory: it has no config.json ({hint})")
        self.config = _read_config(self.path / "config.json")
        self.facts: dict[str, Any] = _read_facts(self.path / "run.json")

    @property
    def config_id(self) -> str:
        """Identifies what the run computes, see :func:`wsm_jax.config.config_id`; that of an old run is made now."""
        return self.facts.get("config_id") or config_lib.config_id(self.config)

    @property
    def format(self) -> int:
        """Version of the conventions it was made by, see FORMAT."""
        return self.facts.get("format", 0)

    @property
    def picked(self) -> dict[str, Any]:
        """Fields of the model that its configuration leaves open -> what it was made with."""
        found, before = self.facts.get("picked", {}), config_lib.left_open(self.config.model)
        return {name: found.get(name, value) for name, value in before.items()}

    @property
    def plan(self) -> Plan:
        """Its durations in steps."""
        return plan(self.config)

    @property
    def resume_stream(self) -> Path:
        """Folder of the full states."""
        return resume_stream(self.path)

    @property
    def merge_stream(self) -> Path:
        """Folder of the checkpoints that are merged."""
        return merge_stream(self.path)

    @property
    def tokenizer(self) -> Path | None:
        """The folder with its tokenizer: of an imported run its own, else that of its tokens; None: it has none."""
        if "imported" in self.facts:
            return self.path / PUBLIC if self.facts["data"]["tokenizer_hash"] else None
        stores = self.facts["data"].get("stable") or []
        if not stores:
            return None
        then = places.at(stores[0]["path"])
        now = publish.data_folder(self.config.data.store) / publish.TOKENS / then.name  # where the run has been moved
        return now if now.is_dir() and not then.is_dir() else then

    @property
    def tokenizer_folders(self) -> list[Path]:
        """Where its tokenizer may be, and what goes with it: its own folder, and that which its configuration names."""
        own, named = self.tokenizer, self.config.data.tokenizer
        given = Path(named).expanduser()
        others = [given if given.is_dir() else given.parent] if named and given.exists() else []
        return [*([own] if own else []), *others]

    def merged(self, name: str) -> Path:
        """Folder of the merged parameters of that name."""
        return self.path / "merged" / name

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Records of metrics.jsonl, all or those of one kind (``train``, ``validation``, ...)."""
        records = read_metrics(self.path / "metrics.jsonl")
        return [r for r in records if kind is None or r["kind"] == kind]


class _Facts(dict):
    """What a run or a part of it resolved to, where asking for what is not there names the file and the entry."""

    def __init__(self, values: dict[str, Any], place: str):
        super().__init__({name: _facts(value, f"{place}.{name}") for name, value in values.items()})
        self._place = place

    def __missing__(self, name: str) -> NoReturn:
        raise UsageError(f"{self._place} has no {name!r}: it is damaged, or of another version")


def _facts(value: Any, place: str) -> Any:
    if isinstance(value, list):
        return [_facts(one, f"{place}[{number}]") for number, one in enumerate(value)]
    return _Facts(value, place) if isinstance(value, dict) else value


# Of what run.json holds, what other modules count on; a run of an earlier version may lack some.
_FACT_TYPES: dict[str, Any] = {
    **dict.fromkeys(("branch_from", "params_from"), str | None),
    **dict.fromkeys(("data_hash", "config_hash", "config_id"), str),
    **dict.fromkeys(("parameters", "steps", "tokens_per_step", "merge_interval"), int),
    **dict.fromkeys(("tokens_at_branch", "longest_resume_interval"), int),
    **dict.fromkeys(("data", "decay_mask", "picked", "imported"), dict),
    "branch_step": int | None,
    "branch_points": list,
}


def _read_facts(path: Path) -> dict[str, Any]:
    facts = read_json(path)
    if not isinstance(facts, dict) or "data_hash" not in facts or "branch_step" not in facts:
        raise UsageError(f"{path} is not what wsm train writes, an object with data_hash and branch_step among others")
    for name, kind in _FACT_TYPES.items():
        if name in facts and not isinstance(facts[name], kind):
            raise UsageError(f"{path}: {name} is a {type(facts[name]).__name__}, which wsm train does not write")
    return _Facts(facts, str(path))


_GIVEN = ("duration", "batch_size", "model", "data", "schedule", "optimizer", "checkpoint")


def _read_config(path: Path) -> Config:
    try:
        values = read_json(path)
        for name in _GIVEN if isinstance(values, dict) else ():
            if name not in values:  # its default may not be what the run was made with
                raise UsageError(f"{name} is missing, which wsm train writes")
        return config_lib.from_dict(values)
    except UsageError as error:
        raise UsageError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, each with ``kind`` and ``step``.

    Raises:
      UsageError: as :func:`wsm_jax.io.files.read_jsonl`, or a record without them.
    """
    records = read_jsonl(path)
    for number, record in enumerate(records, 1):
        if not isinstance(record.get("kind"), str) or not isinstance(record.get("step"), int):
            raise UsageError(f"{path}: record {number} has no kind and step, as those of wsm train have")
    return records


def resume_stream(path: str | os.PathLike) -> Path:
    """Folder of the full states under the run directory ``path``."""
    return places.at(path) / "checkpoints" / "resume"


def merge_stream(path: str | os.PathLike) -> Path:
    """Folder of the parameters to merge under the run directory ``path``."""
    return places.at(path) / "checkpoints" / "merge"


def is_claimed(path: Path) -> bool | None:
    """Whether a process trains the run at ``path``; None where that cannot be told, e.g. without locks."""
    return claims.is_claimed(path)


def claimed(path: Path) -> contextlib.AbstractContextManager[None]:
    """Holds the run directory, made if missing: one process writes it at a time.

    Raises:
      UsageError: another process trains the run.
    """
    return claims.claimed(path, f"{path} is being trained by another process; wait for it or use another --run")


def begin(path: Path, config: Config, facts: dict[str, Any]) -> None:
    """Writes config.json and run.json, or checks that the run that is there is the same one.

    Of a run that goes on, the free fields in config.json may change, and ``branch_points`` in run.json, see
    :func:`resumed_plan`.

    Raises:
      UsageError: the folder holds a run whose configuration differs, naming the first field.
    """
    if _has_begun(path):
        check_same(path, config, facts)
        saved = Run(path).facts
        free = {name: facts[name] for name in ("branch_points", "longest_resume_interval") if name in facts}
        if {**saved, **free} != saved:
            write_json(path / "run.json", {**saved, **free})
        if read_json(path / "config.json") != (now := config_lib.to_dict(config)):
            write_json(path / "config.json", now)  # evaluations of the run look for its data where they are now
        return
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "run.json", {**facts, "hashes": hashes.KIND})  # every checkpoint of this run has them
    write_json(path / "config.json", config_lib.to_dict(config))  # last: its presence makes the folder a run


def source_of(path: Path, parent: Run | None) -> Run | None:
    """The run whose conventions that at ``path`` keeps: itself, its parent where it begins as a branch, or none."""
    return Run(path) if _has_begun(path) else parent


def check_config(path: Path, config: Config) -> None:
    """Raises UsageError where there is a run at ``path`` that was made with another configuration."""
    if not _has_begun(path):
        return
    old = {name: value for name, (value, _) in config_lib.flat_fields(Run(path).config).items()}
    free = config_lib.free_fields()
    for name, (value, _) in config_lib.flat_fields(config).items():
        if old[name] != value and name not in free:
            raise UsageError(
                f"{path} was made with {name}={old[name]!r}, now it is {value!r}; "
                "use another --run, or --branch_from to start from one of its checkpoints"
            )


def check_states(path: str | os.PathLike, config: Config) -> None:
    """Raises UsageError where the run at ``path`` has more than training from its newest full state can explain.

    A kill takes at most the state that was being written, and what was saved then ends before the next one. Else states
    were removed, and training would begin long before what is there and write it anew.
    """
    if not _has_begun(places.at(path)):
        return
    run = Run(path)
    start = (orbax.complete_steps(run.resume_stream) or [run.facts.get("branch_step") or 0])[-1]
    interval = longest_resume_interval(path, plan(config))
    coming = [*range((start // interval + 1) * interval, run.plan.steps, interval), run.plan.steps]
    saved = orbax.complete_steps(run.merge_stream)
    reached = max([*saved, *(record["step"] for record in run.metrics("train"))], default=0)
    if len(coming) > 1 and reached > coming[1]:
        raise UsageError(
            f"{path} came to step {reached}, but the newest full state that it has is of step {start}; training from "
            f"there would replace what is saved. Use another --run, or remove {path} to train it anew"
        )


def resumed_plan(path: str | os.PathLike, config: Config) -> Plan:
    """The plan of ``config`` with the branch points that the run at ``path`` was ever given.

    A state that was to be kept for ever is kept, also when a later command does not name it.

    Raises:
      UsageError: as :func:`plan`, of a new run as :func:`wsm_jax.checkpoints.plan.check` too, or ``path`` is a file.
    """
    made = plan(config)
    place = places.at(path)
    if place.exists() and not place.is_dir():
        raise UsageError(f"{path} is a file, not the folder of a run; use another --run")
    if not _has_begun(places.at(path)):
        check(config)
        return made
    run = Run(path)
    before = run.facts.get("branch_points", run.plan.branch_points)
    return dataclasses.replace(made, branch_points=tuple(sorted({*before, *made.branch_points})))


def longest_resume_interval(path: str | os.PathLike, made: Plan) -> int:
    """The longest interval, in steps, at which the run at ``path`` ever saved its full state; ``made`` is its plan now.

    A kill after a change of ``checkpoint.resume_interval`` leaves states at the interval of before.
    """
    if not _has_begun(places.at(path)):
        return made.resume_interval
    run = Run(path)
    return max(made.resume_interval, run.plan.resume_interval, run.facts.get("longest_resume_interval", 0))


def _has_begun(path: Path) -> bool:
    """Whether there is a run with something to lose: a checkpoint, a merge or records of its training.

    One that came no further than its first files, e.g. because its data did not fit, has nothing.
    """
    if not (path / "config.json").is_file():
        return False
    saved = any(map(orbax.complete_steps, (resume_stream(path), merge_stream(path))))
    trained = any(record["kind"] == "train" for record in read_metrics(path / "metrics.jsonl"))
    return saved or trained or any((path / "merged").glob("*"))


def check_same(path: Path, config: Config, facts: dict[str, Any]) -> None:
    """Raises UsageError where the run at ``path`` was made with another configuration, branch or data."""
    check_config(path, config)
    saved = Run(path).facts
    for name in ("branch_from", "branch_step", "params_from", "data_hash"):
        before, now = saved.get(name), facts.get(name)
        if name.endswith("_from") and before and now:
            if not _is_there(before) or _resolved(before) == _resolved(now):
                continue
        if before != now:
            raise UsageError(f"{path} was made with {name}={before!r}, now it is {now!r}")


def _resolved(place: str) -> str:
    """RUN@STEP, or a checkpoint, with every link and ``..`` of its path resolved."""
    path, at, step = place.rpartition("@")
    is_run = at and orbax.is_step(step)
    return f"{places.at(path).resolve()}@{step}" if is_run else str(places.at(place).resolve())


def _is_there(place: str) -> bool:
    """Whether the folder of RUN@STEP, or of a checkpoint, is where it was; it may have been moved since."""
    return any(places.at(path).exists() for path in (place, place.rpartition("@")[0] or place))


def tokens_read(facts: dict[str, Any], step: int) -> int:
    """Tokens that the parameters of a run have read up to a step, its parents' part with them.

    Args:
      facts: of run.json.
      step: not before the branch.
    """
    branched = facts["branch_step"] or 0
    before = facts.get("tokens_at_branch", branched * facts["tokens_per_step"])  # as large batches as now, if not said
    return before + (step - branched) * facts["tokens_per_step"]
