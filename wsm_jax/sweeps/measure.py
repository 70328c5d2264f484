"""One piece, in this process: trains what is missing, merges in one pass, measures every arm."""

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.checkpoints.orbax import PARAMS
from wsm_jax.checkpoints.run import Run
from wsm_jax.evaluation import domains
from wsm_jax.evaluation.evaluate import Evaluation, Evaluator
from wsm_jax.io import files, machine, memory
from wsm_jax.merging import offline
from wsm_jax.merging.spec import MergeSpec
from wsm_jax.sweeps import records, windows
from wsm_jax.sweeps.plan import Piece, Plan
from wsm_jax.sweeps.records import Record, Results
from wsm_jax.sweeps.runs import PlannedRun
from wsm_jax.training.loop import train


def do(plan: Plan, piece: Piece) -> None:
    """Does a piece that is not done, and leaves its records.

    Raises:
      UsageError: as :func:`wsm_jax.training.loop.train`; records of the same seed that it could not be paired with.
      NonFiniteError, Preempted: as there.
    """
    clock = time.perf_counter()
    with _alone(piece.folder):
        if records.is_done(plan, piece):
            return
        others = [other for other in plan.pieces if other.seed == piece.seed and records.is_done(plan, other)]
        here = {piece.seed: {name: machine.environment()[name] for name in records.SAME}}
        for other in others:
            records.check(plan, files.read_jsonl(other.folder / records.RECORDS), here)
        for run in piece.runs.values():
            _say(f"run {run.name}")
            _trained(piece, run)
        _say(f"measuring {len(piece.readings)} arms")
        found = measured(plan, piece)
        seconds = round(time.perf_counter() - clock, 1)
        whole = [{**record, "piece_seconds": seconds} for record in found.records]
        records.write_piece(plan, piece, Results(whole, found.nats, found.documents))
        _say(f"done in {seconds:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time does a piece; another waits, and finds it done."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


# --- training --------------------------------------------------------------------------------------------------------


def _trained(piece: Piece, run: PlannedRun) -> None:
    """Trains a run to its end, if it is not there."""
    if orbax.complete_steps(run_lib.resume_stream(run.path))[-1:] == [run.plan.steps]:
        return  # to open it again would read its state
    origin = str(_origin(piece, run)) if run.params_from else ""
    train(run.config, run.path, branch_from=run.branch_from, params_from=origin, quiet=True)


def _origin(piece: Piece, run: PlannedRun) -> Path:
    """The checkpoint whose parameters a run starts with: one that is there, or a merge among those of its run."""
    reading = piece.readings[run.params_from]
    spec = windows.spec(reading)
    if reading.window is None and reading.item == PARAMS:
        return spec.inputs[0].path
    place = Run(reading.run.path).merged(f"start-of-{run.path.name}")
    if not orbax.is_checkpoint(place):
        offline.merge_checkpoints(spec.paths, spec.weights, place, item=spec.items, metadata=reading.record)
    return place


# --- measuring -------------------------------------------------------------------------------------------------------


def measured(plan: Plan, piece: Piece) -> Results:
    """The results of every arm of a piece whose runs are trained, without ``piece_seconds``."""
    specs = {name: windows.spec(reading) for name, reading in piece.readings.items()}
    evaluations = evaluated(specs, domains.evaluators(_widest(piece), plan.experiment.measure))
    rows, nats, documents = [], {}, {}
    for name, found in evaluations.items():
        own, documents = records.of_test(found)
        record = _record(plan, piece, name, found, records.bits_per_byte(own, documents))
        nats[records.key(record)] = own
        rows.append(record)
    return Results(rows, nats, documents)


def _widest(piece: Piece) -> Run:
    """The run that reads most sources: on those all arms are measured."""
    runs = [Run(run.path) for run in piece.runs.values()]
    return max(runs, key=lambda run: len({one["hash"] for part in _parts(run) for one in part}))


def _parts(run: Run) -> list[list[Record]]:
    return [run.facts["data"][name] for name in ("stable", "switch")]


def evaluated(specs: Mapping[str, MergeSpec], evaluators: Mapping[str, Evaluator]) -> dict[str, dict[str, Evaluation]]:
    """What each merge gives on every split and domain; all merges come from one pass over what they read."""
    # A piece beside others has its share of the memory as it has of the cores.
    share = len(os.sched_getaffinity(0)) / (os.cpu_count() or 1)
    merges = offline.in_memory(specs, room=int(offline.ROOM * share * memory.free()))
    return {name: {split: evaluate(params) for split, evaluate in evaluators.items()} for name, params in merges}


def _record(plan: Plan, piece: Piece, name: str, found: Mapping[str, Evaluation], test: Mapping[str, float]) -> Record:
    """The record of an arm, complete but for ``piece_seconds``."""
    reading, experiment = piece.readings[name], plan.experiment
    run = Run(reading.run.path)
    validation = {
        split.removeprefix("validation/"): one.bits_per_byte
        for split, one in found.items()
        if split.startswith("validation/")
    }
    return {
        "experiment": experiment.name,
        "scale": plan.declared.scale,
        "arm": name,
        "run": reading.run.name,
        "seed": piece.seed,
        "step": reading.step,
        "tokens": run_lib.tokens_read(run.facts, reading.step),
        "axes": dict(experiment.arms[name].axes),
        "merge": reading.record,
        "validation": _mean(validation),
        "validation_domains": validation,
        "test": _mean(test),
        "domains": dict(test),
        "config_id": run.config_id,
        **{fact: run.facts[fact] for fact in ("config_hash", "data_hash", "parameters")},
        "piece": piece.name,
        **machine.environment(),
        "command": plan.command,
    }


def _mean(losses: Mapping[str, float]) -> float:
    """Over domains, each of which counts alike however long its documents are."""
    return sum(losses.values()) / len(losses)
