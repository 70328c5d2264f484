"""Merging checkpoints: time, bandwidth and memory of ours beside mergekit, AveragedModel and a plain loop.

    python benchmarks/merge.py --peer_python=/path/to/peer/bin/python --previous=/path/to/another/checkout

The peers have an interpreter of their own (without --peer_python only ours is measured):

    python -m venv peer && peer/bin/python -m pip install "mergekit==0.1.5" "torch==2.13.*"

With --previous, another version of this package (a checkout or worktree) does all that ours does, turn by turn.

GPT-2 of 125M and 774M parameters, float32, 4 to 32 inputs, uniform weights; as safetensors, as our merge stream and as
another codebase's Orbax; page cache warm, or dropped file by file. The cases are in ``merge_cases.py``. Every run is a
whole process; the contenders of a case take turns. Baselines are measured in the same rounds: the plain sequential read
of the same files, the plain write of the result's bytes, and the same multiply-add, jitted and donated, on arrays that
are in memory. Rates without the start of a process are taken inside it, after a merge of something small.

A smoke test of all this on tiny checkpoints takes about a minute: --only=tiny --output=/tmp/merge.

Hardware: Linux, 2 cores, 24 GB of memory, 32 GB free under --folder, on the disk to be measured. Time: about 40 minutes
with peers. Expected: ours / it below 1 beside every peer, in time as in memory.
Writes benchmarks/results/merge.{jsonl,png,svg}; big files are removed, also after an error.
benchmarks/results/merge_previous.jsonl is 125M x 8 safetensors beside version 0.1.0 (commit 63ab180); folders in its
commands are shortened.
"""

import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import merge_cases as cases_lib  # beside this file; and small, for a process starts with its parent's peak memory
import merge_inputs
import merge_process
import results_file
from absl import app, flags
from merge_cases import Case

PEER_PYTHON = flags.DEFINE_string("peer_python", "", "interpreter with mergekit; empty = ours only")
PREVIOUS = flags.DEFINE_string("previous", "", "checkout of another version of this package; empty = none")
ONLY = flags.DEFINE_string("only", "M ", "cases measured: a regular expression, found in e.g. 125M x4 stream warm")
ROUNDS = flags.DEFINE_integer("rounds", 0, "rounds of every case; 0 = as the protocol has it", lower_bound=0)
FOLDER = flags.DEFINE_string("folder", None, "where checkpoints are written; none = a temporary folder")
OUTPUT = flags.DEFINE_string("output", "benchmarks/results/merge", "where results go, without suffix")

HERE = Path(__file__).resolve().parent
DISK_SHARE = 1.3  # disk for inputs, times their size: the result and what a writer keeps beside it
FIGURES = ("seconds", "cpu_seconds", "peak_rss", "peak_anonymous")


def contenders(case: Case) -> Iterator[str]:
    """Who takes part, in the order of a round: a previous version right after ours."""
    for name in case.contenders:
        if PEER_PYTHON.value or name not in cases_lib.FROM_PEERS:
            yield name
        if PREVIOUS.value and name in cases_lib.FROM_US:
            yield name + cases_lib.PREVIOUS


def command(contender: str, case: Case, inputs: list[str], folder: Path) -> tuple[list[str], dict[str, str]]:
    """A contender's command line and environment."""
    name, peer = contender.removesuffix(cases_lib.PREVIOUS), contender in cases_lib.FROM_PEERS
    environment = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "XLA_FLAGS", "PYTHONPATH")}
    environment |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    if not peer:  # which of two versions is imported
        environment["PYTHONPATH"] = os.path.abspath(PREVIOUS.value) if name != contender else str(HERE.parent)
    if name == cases_lib.OURS:  # -P: not what lies in the current folder
        return [sys.executable, "-P", "-m", "wsm_jax", "merge", *inputs, f"--output={folder / 'out'}"], environment
    told = {
        "task": cases_lib.TASKS[name],
        **{"size": case.size, "format": case.format, "count": case.count, "inputs": inputs},
        "small": [str(folder / "small" / str(i)) for i in range(2)],
        "weights": cases_lib.weights(name, case.count),
        "output": str(folder / "out"),
    }
    interpreter, script = (PEER_PYTHON.value, "merge_peers.py") if peer else (sys.executable, "merge_worker.py")
    return [interpreter, str(HERE / script), json.dumps(told)], environment


def run(case: Case, folder: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One record a contender."""
    inputs = [str(folder / "inputs" / str(i % case.folders)) for i in range(case.count)]
    records: list[dict[str, Any]] = [
        {
            "kind": "merge",
            **{name: getattr(case, name) for name in ("size", "format", "count", "cache", "folders")},
            "contender": contender,
            "file_bytes": sum(file.stat().st_size for file in merge_process.files(inputs)),
            "input_bytes": 4 * merge_inputs.parameters(case.size) * case.count,
            "command": shlex.join(command(contender, case, inputs, folder)[0]),
            **{name: [] for name in (*FIGURES, "inner_seconds", "cached_before")},
            **facts,
        }
        for contender in contenders(case)
    ]
    for number in range(ROUNDS.value or case.rounds):
        for record in records:
            merge_process.make(case.cache, inputs)
            record["cached_before"].append(merge_process.cached_share(inputs))
            found = merge_process.measure(*command(record["contender"], case, inputs, folder))
            for name in FIGURES:
                record[name].append(getattr(found, name))
            record["inner_seconds"].append(found.answer.get("inner_seconds"))
            if number == 0 and case.format == "safetensors" and (folder / "out").is_dir():
                record |= ours("merge_worker", {"task": "error", "inputs": inputs, "output": str(folder / "out")})
            for path in folder.glob("out*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return records


def ours(script: str, told: dict[str, Any], python: str = sys.executable) -> dict[str, Any]:
    """The answer of a process of a script beside this one."""
    return merge_process.measure([python, str(HERE / f"{script}.py"), json.dumps(told)]).answer


def measure_all(cases: list[Case], folder: Path) -> Iterator[list[dict[str, Any]]]:
    """The records of each case; one format of one size is on disk at a time."""
    found = ours("merge_worker", {"task": "precision", "counts": cases_lib.PRECISION_COUNTS})
    peers = ours("merge_peers", {"task": "versions"}, PEER_PYTHON.value) if PEER_PYTHON.value else {}
    facts = {**found["environment"], "peer_versions": peers, **results_file.provenance()}
    yield [{"kind": "precision", **row, **facts} for row in found["rows"]]
    for size, format in dict.fromkeys((case.size, case.format) for case in cases):
        group = [case for case in cases if (case.size, case.format) == (size, format)]
        count = max(case.folders for case in group)
        needed, free = DISK_SHARE * 4 * count * merge_inputs.parameters(size), shutil.disk_usage(folder).free
        if needed > free:
            sys.exit(f"{folder}: {count} inputs of {size} need {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")
        ours("merge_inputs", {"folder": str(folder), "size": size, "format": format, "count": count})
        for case in group:
            print(case, flush=True)
            yield run(case, folder, facts)
        for name in ("inputs", "small"):
            shutil.rmtree(folder / name)


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    cases = [case for case in cases_lib.CASES if re.search(ONLY.value, str(case))]
    if len(argv) > 1:
        sys.exit(f"unknown argument {argv[1]!r}; options begin with --")
    if not cases:
        sys.exit(f"--only={ONLY.value} leaves no case; merge_cases.py has them")
    if PEER_PYTHON.value and not shutil.which(PEER_PYTHON.value):
        sys.exit(f"--peer_python={PEER_PYTHON.value} is no program; give an interpreter that has mergekit")
    if PREVIOUS.value and not (Path(PREVIOUS.value) / "wsm_jax" / "__init__.py").is_file():
        sys.exit(f"--previous={PREVIOUS.value} has no wsm_jax/; give a checkout of another version of this package")
    if FOLDER.value:
        Path(FOLDER.value).mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="wsm-merge-", dir=FOLDER.value) as folder:
        for found in measure_all(cases, Path(folder).absolute()):
            records += found
            results_file.write(Path(f"{OUTPUT.value}.jsonl"), records)  # what was measured is kept whatever comes
    import merge_report  # beside this file; late, because matplotlib is large

    merge_report.report(Path(OUTPUT.value))


if __name__ == "__main__":
    app.run(main)
