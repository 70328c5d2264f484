"""``wsm report``: tables and figures of runs, the page of an experiment, or the index of results."""

import argparse
import json
import sys
from pathlib import Path

from wsm_jax.errors import UsageError
from wsm_jax.io import places
from wsm_jax.reporting.tables import print_table


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    sub.add_argument(
        "runs",
        nargs="+",
        metavar="RUN|RESULTS",
        help="the constant run first, then runs branched from it; or a folder with claims.json: writes its README.md; "
        "or a folder of such folders: writes RESULTS/REPORT.md",
    )
    sub.add_argument("--output", metavar="DIR", help="default: RUN/report of the first run")
    sub.add_argument(
        "--benchmarks",
        action="store_true",
        help="two models that wsm eval --tasks has scored, the second against the first: runs, or folders of results",
    )
    sub.add_argument("--learned", action="store_true", help="add a merge whose weights are learned on validation")
    sub.add_argument("--json", action="store_true", help="print the table as JSON")


def run(options: argparse.Namespace, settings: list[str]) -> None:
    """Writes the report of the runs, the page of an experiment or the index of results."""
    if options.benchmarks:
        _benchmarks(options)
        return
    first = places.at(options.runs[0])
    if not (first / "config.json").is_file() and any(
        [*first.glob(f"{level}claims.json")] for level in ("", "*/", "*/*/")
    ):
        _results(options, first)
        return
    from wsm_jax.checkpoints.run import Run
    from wsm_jax.io import disk
    from wsm_jax.reporting import comparison
    from wsm_jax.reporting import report as report_lib

    runs = [Run(path) for path in options.runs]
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    output = places.at(options.output or runs[0].path / "report")
    comparison.check(runs[0], runs[1:])
    disk.check_writable(output)  # what cannot be written is not computed
    result = comparison.compare(runs[0], runs[1:], learned=options.learned, say=say)
    folder = report_lib.write(result, output)
    if options.json:
        print(json.dumps(report_lib.to_json(result), indent=2))
        return
    header, *rows = report_lib.table(result)
    print_table(header, rows, title="test loss, nats per token")
    print("\n".join(report_lib.findings(result)))
    print(f"report: {folder}/report.md and report.html")


def _benchmarks(options: argparse.Namespace) -> None:
    from wsm_jax.io import disk
    from wsm_jax.reporting import benchmarks

    if len(options.runs) != 2 or options.learned:
        raise UsageError("--benchmarks goes with two runs or folders of results, and not with --learned")
    found = benchmarks.pair(*map(benchmarks.results, options.runs))
    output = places.at(options.output or places.at(options.runs[0]) / "report")
    disk.check_writable(output)
    page = benchmarks.write(found, output)
    if options.json:
        print(json.dumps(benchmarks.figures(found), indent=2))
        return
    header, *rows = benchmarks.table(found)
    print_table(header, rows)
    print("\n".join(benchmarks.remarks(found)))
    print(f"report: {page}")


def _results(options: argparse.Namespace, folder: Path) -> None:
    from wsm_jax.reporting import experiment_page, index_page

    given = {"a second folder": options.runs[1:], "--output": options.output, "--learned": options.learned}
    if wrong := [name for name, value in {**given, "--json": options.json}.items() if value]:
        raise UsageError(f"{wrong[0]} goes with runs, but {folder} has no config.json")
    page = experiment_page if (folder / "claims.json").is_file() else index_page
    print(f"report: {page.write(folder)}")
