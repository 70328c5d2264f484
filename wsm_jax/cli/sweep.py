"""``wsm sweep``: many runs and merges from one file, their results and what is claimed of them."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wsm_jax.cli import config_flags
from wsm_jax.cli.arguments import whole
from wsm_jax.config import parse_list
from wsm_jax.errors import UsageError
from wsm_jax.io import memory, places
from wsm_jax.reporting.tables import print_table

if TYPE_CHECKING:
    from wsm_jax.sweeps.plan import Piece, Plan


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    sub.add_argument("file", metavar="FILE[:SCALE]", help="Python with get_sweep(), e.g. experiments/first.py")
    sub.add_argument("--output", metavar="DIR", help="folder of the runs (default: runs/NAME/SCALE)")
    sub.add_argument("--results", metavar="DIR", help="folder of records, claims and page (default: OUTPUT/results)")
    sub.add_argument("--parallel", type=whole, default=2, metavar="N", help="pieces at a time (default: 2)")
    sub.add_argument(
        "--submit",
        choices=("slurm",),
        help="hand the pieces to SLURM as an array and end; the same command without it gathers what they left",
    )
    sub.add_argument("--hosts", default="", metavar="NAME,...", help="machines that do the pieces, one at a time each")
    sub.add_argument(
        "--shell",
        default="ssh {host} {command}",
        metavar="COMMAND",
        help="what runs a command on one of --hosts (default: ssh {host} {command})",
    )
    sub.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PIECES",
        help="comma-separated numbers or names of pieces, as --dry_run lists them; default: all",
    )
    sub.add_argument("--dry_run", action="store_true", help="list the pieces with what they take; writes nothing")
    sub.add_argument("--json", action="store_true", help="print the table as JSON")
    sub.add_argument("--piece", default="", help=argparse.SUPPRESS)  # of the processes that the command starts
    sub.add_argument("--cores", default="", help=argparse.SUPPRESS)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Carries a sweep out, lists what it would do, or does one piece of it in this process."""
    if any(text.split("=")[0] == "--config" for text in settings):
        raise UsageError("wsm sweep takes no --config=FILE: the experiment names it; --config.FIELD=VALUE changes it")
    if options.parallel < 1:
        raise UsageError(f"--parallel={options.parallel} must be at least 1")
    if options.piece:
        return _piece(options, settings)
    _check_places(options)
    import jax

    jax.config.update("jax_platforms", "cpu")  # this process computes nothing; an accelerator is for the pieces
    from wsm_jax.sweeps import processes, runner, slurm

    plan = _plan(options, settings)
    pieces = chosen(plan.pieces, options.only)
    if options.dry_run:
        runner.check(plan)
        if options.submit:
            print(slurm.job(plan, pieces), end="")
        else:
            _show_plan(plan, pieces, options)
        return 0
    if options.submit:
        print(slurm.submit(plan, pieces) or "all pieces are done; the same command without --submit gathers them")
        return 0
    names = parse_list(options.hosts)
    places = processes.hosts(names, options.shell) if names else processes.shares(options.parallel)
    outcome = runner.run(plan, pieces, places)
    if outcome.results is not None:
        _show_results(plan, outcome.results.records, options.json)
    return outcome.status


def _check_places(options: argparse.Namespace) -> None:
    """Raises UsageError for places that exclude each other, or a shell that runs nothing."""
    if options.submit and options.hosts:
        raise UsageError("--submit and --hosts exclude each other: SLURM chooses the machines")
    if options.hosts and not all(name in options.shell for name in ("{host}", "{command}")):
        raise UsageError(f"--shell={options.shell!r} must have {{host}} and {{command}} in it")


def _plan(options: argparse.Namespace, settings: list[str]) -> "Plan":
    sys.path[:0] = [os.getcwd()] * (os.getcwd() not in sys.path and "" not in sys.path)  # for what the file imports
    from wsm_jax.sweeps import declared, plan

    found = declared.load(options.file)
    given = vars(options)
    folders = {name: places.local(given[name]) if given[name] else None for name in _FOLDERS}
    try:
        return plan.make(found, config_flags.load, settings=settings, **folders)
    except UsageError as error:
        raise UsageError(f"{options.file}: {error}") from error


_FOLDERS = ("output", "results")


def _piece(options: argparse.Namespace, settings: list[str]) -> int:
    """Does one piece, as a process that :mod:`wsm_jax.sweeps.runner` has started."""
    if options.cores:
        os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    memory.keep_heap()  # before the libraries begin their threads
    from wsm_jax.sweeps import measure, processes

    processes.end_with_parent()
    plan = _plan(options, settings)
    processes.compile_once(plan.output / "compiled")
    (piece,) = chosen(plan.pieces, [options.piece])
    measure.do(plan, piece)
    return 0


def chosen(pieces: Sequence["Piece"], only: Sequence[str]) -> list["Piece"]:
    """The pieces that ``--only`` names or numbers, each once, in the plan's order; all where it names none.

    Raises:
      UsageError: one that is not there.
    """
    by_name = {piece.name: piece for piece in pieces} | {str(number): piece for number, piece in enumerate(pieces)}
    names = [name for text in only for name in ([text] if text in by_name else parse_list(text))]
    if unknown := next((name for name in names if name not in by_name), None):
        known = ", ".join(f"{number} {piece.name}" for number, piece in list(enumerate(pieces))[:12])
        raise UsageError(f"--only: no piece {unknown!r}; there are {known}{', …' * (len(pieces) > 12)}")
    wanted = {by_name[name].name for name in names} or {piece.name for piece in pieces}
    return [piece for piece in pieces if piece.name in wanted]


# --- what is shown ---------------------------------------------------------------------------------------------------


def _show_plan(plan: "Plan", pieces: Sequence["Piece"], options: argparse.Namespace) -> None:
    from wsm_jax.sweeps import estimate, records

    estimator = estimate.Estimator(plan.runs)
    rows: list[dict[str, Any]] = []
    for number, piece in enumerate(plan.pieces):
        if piece in pieces:
            done = records.is_done(plan, piece)
            found = estimate.DONE if done else estimator(piece)
            rows.append({"index": number, "piece": piece.name, "arms": len(piece.readings), **found._asdict()})
            rows[-1]["state"] = "done" if done else "to do"
    whole = estimate.total(estimate.Estimate(*(row[field] for field in estimate.Estimate._fields)) for row in rows)
    seconds = None if whole.seconds is None else whole.seconds / min(options.parallel, len(pieces))
    whole = whole._replace(seconds=seconds)
    if options.json:
        print(json.dumps({"output": str(plan.output), "pieces": rows, "all": whole._asdict()}, indent=2))
        return
    header = ["piece", "index", "runs", "arms", "steps", "tokens", "disk", "training", "state"]
    shown = [[r["piece"], str(r["index"]), *_cells(r), r["state"]] for r in rows]
    together = {**whole._asdict(), "arms": sum(row["arms"] for row in rows)}
    shown.append(["all", "", *_cells(together), f"{options.parallel} at a time"])
    print_table(header, shown, title=f"{plan.command} --output={plan.output}")


def _cells(row: dict[str, Any]) -> list[str]:
    minutes = "–" if row["seconds"] is None else f"{row['seconds'] / 60:.1f} min"
    counts = [f"{row[name]:,}" for name in ("runs", "arms", "steps", "tokens")]
    return [*counts, f"{row['disk'] / 1e9:.2f} GB", minutes]


def _show_results(plan: "Plan", records: Sequence[dict[str, Any]], as_json: bool) -> None:
    from wsm_jax.sweeps import summary

    found = summary.summary(plan, records)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    summary.show(found)
