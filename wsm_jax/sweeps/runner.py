"""Carries a plan out: pieces as processes side by side, then what is made of their records."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsm_jax.config import DataConfig
from wsm_jax.data import tokens
from wsm_jax.errors import UsageError
from wsm_jax.evaluation import evaluate
from wsm_jax.io import disk, files, machine
from wsm_jax.sweeps import claims, records
from wsm_jax.sweeps.declared import Declared
from wsm_jax.sweeps.estimate import Estimator, total
from wsm_jax.sweeps.partial import measured_part
from wsm_jax.sweeps.plan import Piece, Plan
from wsm_jax.sweeps.processes import LOG, Place, side_by_side
from wsm_jax.sweeps.records import Results

SWEEP = "sweep.json"
_TAIL = 8  # lines of the log of a piece that failed


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a sweep ended.

    Attributes:
      failed: piece -> exit status other than 0.
      results: of all pieces that are done; None where there are none.
    """

    failed: dict[str, int]
    results: Results | None

    @property
    def status(self) -> int:
        """The exit status: that of the first piece that failed; 1 of one that a signal ended."""
        status = next(iter(self.failed.values()), 0)
        return status if status >= 0 else 1


def prepare(plan: Plan, pieces: Sequence[Piece]) -> list[Piece]:
    """Those of ``pieces`` that are not done, with all that they need to start.

    Raises:
      UsageError: a folder of another sweep, records that others cannot be paired with, text or disk that is missing.
    """
    check(plan)
    todo = [piece for piece in pieces if not records.is_done(plan, piece)]
    _check_records(plan, todo)
    if todo:
        _prepare(plan, todo)
        files.write_json(plan.output / SWEEP, described(plan))
    count = f"{len(pieces)} pieces, {len(pieces) - len(todo)} of them done"
    _say(f"{plan.experiment.name}: {count}; {len(todo)} to do")
    return todo


def command(plan: Plan, piece: str) -> list[str]:
    """What does one piece, in a process of its own; ``piece`` is its name or number."""
    asked = [plan.declared.text, f"--output={plan.output}", f"--results={plan.results}", *plan.settings]
    return [sys.executable, "-m", "wsm_jax", "sweep", *asked, f"--piece={piece}"]


def run(plan: Plan, pieces: Sequence[Piece], places: Sequence[Place]) -> Outcome:
    """Does what is not done of ``pieces`` and writes the results of all pieces of the plan that are.

    A piece that fails is reported, and the others go on.

    Args:
      plan: of the sweep.
      pieces: those that are asked for.
      places: where they run, one at a time at each.

    Raises:
      UsageError: before any piece starts, as of :func:`prepare`. At the end: records that do not fit together.
      Preempted: a SIGINT or SIGTERM; the same call again goes on.
    """
    failed = _do(plan, prepare(plan, pieces), places)
    done = [piece for piece in plan.pieces if records.is_done(plan, piece)]
    if not done:
        return Outcome(failed, None)
    results = records.gather(plan, done)
    _publish(plan, results)
    return Outcome(failed, results)


def described(plan: Plan) -> dict[str, Any]:
    """What sweep.json says: the declaration, where it stands, and the settings."""
    experiment = plan.experiment
    claims = {
        name: {"statement": claim.statement, "primary": claim.primary, "paper": claim.paper, "unit": claim.unit}
        for name, claim in experiment.claims.items()
    }
    spec = {**dataclasses.asdict(dataclasses.replace(experiment, claims={})), "claims": claims}
    return {
        "name": experiment.name,
        "file": plan.declared.file,
        "scale": plan.declared.scale,
        "spec": spec,
        "settings": list(plan.settings),
    }


def check(plan: Plan) -> None:
    """Raises UsageError where the output folder is that of another sweep, or cannot be written."""
    disk.check_writable(plan.output)
    disk.check_writable(plan.results)
    place = plan.output / SWEEP
    if not place.is_file():
        if (there := plan.output / "config.json").is_file():
            raise UsageError(f"{plan.output} is the folder of a run ({there.name}); choose another --output")
        return
    before = files.read_json(place)
    if not isinstance(before, dict) or not {"name", "file", "scale"} <= set(before):
        raise UsageError(f"{place} is not what wsm sweep writes; choose another --output")
    same = (before["name"], before["scale"]) == (plan.experiment.name, plan.declared.scale)
    if not same or Path(before["file"]).resolve() != Path(plan.declared.file).resolve():
        made = Declared(plan.experiment, before["file"], before["scale"]).text
        raise UsageError(f"{plan.output} is the folder of the sweep {made}; choose another --output")


def _check_records(plan: Plan, todo: Sequence[Piece]) -> None:
    """Raises UsageError for records that are there, and with which those that are to come cannot be paired."""
    environment = machine.environment()
    known = {name: environment[name] for name in ("wsm_jax", "versions", "python")}  # the machine is known to pieces
    here = {piece.seed: known for piece in todo}
    for piece in plan.pieces:
        if piece not in todo and records.is_done(plan, piece):
            records.check(plan, files.read_jsonl(piece.folder / records.RECORDS), here)


def _prepare(plan: Plan, todo: Sequence[Piece]) -> None:
    """Makes the tokens that the pieces read, once for all, and looks for the disk that they need."""
    _check_documents([(piece, [run.config.data for run in piece.runs.values()]) for piece in todo])
    needed = total(map(Estimator(plan.runs), todo)).disk
    there = sum(disk.disk_bytes(run.path / "checkpoints") for piece in todo for run in piece.runs.values())
    plan.output.mkdir(parents=True, exist_ok=True)
    disk.check_disk(plan.output, needed - there, "choose another --output, or raise checkpoint.merge_interval")


def _check_documents(pieces: Sequence[tuple[Piece, Sequence[DataConfig]]]) -> None:
    """Raises UsageError where pieces would be measured on different documents: their losses cannot be compared."""
    made: list[tuple[DataConfig, list[str]]] = []

    def documents(config: DataConfig) -> list[str]:
        known = [hashes for other, hashes in made if other == config]
        if not known:
            stores = evaluate.held_out_stores(tokens.prepare(config, progress=True), "test")
            made.append((config, [store.hash for store in stores]))
        return known[0] if known else made[-1][1]

    first: list[str] = []
    for piece, configs in pieces:
        widest = max(map(documents, configs), key=len)
        if (first := first or widest) != widest:
            raise UsageError(
                f"{pieces[0][0].name} and {piece.name} read different data, so they would be measured on different "
                "documents; give all runs the same data"
            )


def _do(plan: Plan, todo: Sequence[Piece], places: Sequence[Place]) -> dict[str, int]:
    """Does pieces side by side; the exit status of those that failed."""
    commands = {piece.name: command(plan, piece.name) for piece in todo}
    folders = {piece.name: piece.folder for piece in todo}
    failed: dict[str, int] = {}
    start, count = time.perf_counter(), 0

    def ended(name: str, status: int) -> None:
        nonlocal count
        count += 1
        minutes = (time.perf_counter() - start) / 60
        left = minutes / count * (len(todo) - count)
        if not status:
            _say(f"[{count}/{len(todo)}] {name}; {minutes:.1f} minutes so far, about {left:.1f} to go")
            return
        failed[name] = status
        _say(f"[{count}/{len(todo)}] {name} ended with {status}: {_last_line(folders[name] / LOG)}")

    side_by_side(commands, folders, places, ended)
    for name, status in failed.items():
        tail = (folders[name] / LOG).read_text(errors="replace").strip().splitlines()[-_TAIL:]
        _say("\n  ".join([f"failed: {name}, exit status {status}; {folders[name] / LOG} ends with", *tail]))
    return failed


def _last_line(log: Path) -> str:
    return next(iter(log.read_text(errors="replace").strip().splitlines()[-1:]), "it said nothing")


def _publish(plan: Plan, results: Results) -> None:
    """Writes what is committed: records, nats, documents, claims, page."""
    records.write(plan.results, results)
    experiment = measured_part(plan.experiment, results.records, _say)
    claims.write(experiment, plan.results)
    from wsm_jax.reporting import experiment_page  # late: matplotlib is large, and pieces do without it

    experiment_page.write(plan.results)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
