"""Small faults in ``core/`` and ``merging/``, one at a time, each of which the fast tests must find: ``make mutants``.

Every mutant is a copy of the repository with one line changed. The tests beside it run until the first fails; a mutant
that lives through them is a gap in the tests.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.mutants.faults import MUTANTS

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "results" / "mutants" / "mutants.jsonl"
COPIED = ("wsm_jax", "tests", "experiments", "configs", "pyproject.toml")
LIBRARIES = (
    "jax",
    "flax.nnx",
    "optax",
    "orbax.checkpoint.experimental.v1",
    "safetensors",
    "grain.python",
)


def copied(folder: Path) -> None:
    """A copy of what the tests need, without what they leave behind."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(ROOT / name, folder / name)


class First:
    """A plugin of pytest that keeps the first test that failed."""

    failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called after each phase of a test."""
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        """Called after a file was imported."""
        self.pytest_runtest_logreport(report)


def run_tests(folder: Path, tests: str, answer: Any) -> None:
    """Runs the tests of a copy in a process that has imported the libraries already, and sends the first that fails."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:  # the copy has its own
        del sys.modules[name]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        status = pytest.main(
            ["-q", "-x", "--tb=no", "-p", "no:cacheprovider", *(f"tests/{name}" for name in tests.split())],
            plugins=[first := First()],
        )
    answer.send((int(status), first.failed))
    answer.close()
    os._exit(0)


def tested(folder: Path, tests: str) -> tuple[bool, str]:
    """Whether a test fails in the copy, and which one first."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(folder, tests, theirs))
    process.start()
    theirs.close()
    status, first = ours.recv()
    process.join()
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        raise RuntimeError(f"pytest {tests} ended with status {status}")
    return status != pytest.ExitCode.OK, first


def main() -> int:
    """Tries all mutants, or those whose file matches ``--only``; status 1 where one lives."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="a regular expression on file and change")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON lines, one a mutant")
    options = parser.parse_args()
    chosen = [one for one in MUTANTS if re.search(options.only, f"{one.file} {one.new}")]
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="wsm-mutants-") as place:
        os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": f"{place}/compiled"}
        os.environ |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
        for library in LIBRARIES:
            importlib.import_module(library)
        copied(folder := Path(place) / "copy")
        for number, mutant in enumerate(chosen, 1):
            file = folder / "wsm_jax" / mutant.file
            text = file.read_text()
            if text.count(mutant.old) != 1:
                raise ValueError(f"{mutant.file}: {mutant.old!r} is there {text.count(mutant.old)} times, not once")
            file.write_text(text.replace(mutant.old, mutant.new))
            caught, by = tested(folder, mutant.tests)
            file.write_text(text)
            records.append({**mutant._asdict(), "caught": caught, "by": by.removeprefix("tests/")})
            fate = f"caught by {records[-1]['by']}" if caught else "LIVES"
            print(f"{number:2} {mutant.file:24} {mutant.what:28} {fate}", flush=True)
            if not options.only:
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text("".join(json.dumps(record) + "\n" for record in records))
    lives = sum(not record["caught"] for record in records)
    print(f"{len(records)} mutants, {lives} alive")
    return 1 if lives else 0


if __name__ == "__main__":
    sys.exit(main())
