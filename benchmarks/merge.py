"""Merging checkpoints: time, bandwidth and memory of ours beside mergekit, AveragedModel and a plain loop.

    python benchmarks/merge.py --peer_python=/path/to/peer/bin/python

The peers have an interpreter of their own (without --peer_python only ours is measured):

    python -m venv peer && peer/bin/python -m pip install "mergekit==0.1.5" "torch==2.13.*"

GPT-2 of 125M and 774M parameters, float32, 4 to 32 inputs, uniform weights; as safetensors, as our merge stream and as
another codebase's Orbax; page cache warm, or dropped file by file. The cases are in ``merge_cases.py``. Every run is a
whole process; the contenders of a case take turns. Baselines are measured in the same rounds: the plain sequential read
of the same files, the plain write of the result's bytes, and the same multiply-add, jitted and donated, on arrays that
are in memory. Rates without the start of a process are taken inside it, after a merge of something small.

A smoke test of all this on tiny checkpoints takes about a minute: --sizes=tiny --output=/tmp/merge.

Hardware: Linux, 2 cores, 24 GB of memory, 32 GB free under --folder, on the disk to be measured. Time: about 40 minutes
with peers. Expected: the goals that are printed below the table, met.
Writes benchmarks/results/merge.{jsonl,png,svg} at the end, merge.jsonl.part before; big files are removed, also after
an error.
"""

import datetime
import json
import os
import platform
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
from absl import app, flags
from merge_cases import Case

PEER_PYTHON = flags.DEFINE_string("peer_python", "", "interpreter with mergekit; empty = ours only")
SIZES = flags.DEFINE_list("sizes", ["125M", "774M"], "tiny, 125M, 774M")
FORMATS = flags.DEFINE_list("formats", ["safetensors", "stream", "orbax"], "formats measured")
COUNTS = flags.DEFINE_list("counts", [], "numbers of inputs measured; empty = all")
ROUNDS = flags.DEFINE_integer("rounds", 0, "rounds of every case; 0 = as the protocol has it", lower_bound=0)
FOLDER = flags.DEFINE_string("folder", "", "where checkpoints are written; empty = a temporary folder")
OUTPUT = flags.DEFINE_string("output", "benchmarks/results/merge", "where results go, without suffix")

HERE = Path(__file__).resolve().parent
DISK_SHARE = 1.3  # disk for inputs, times their size: the result and what a writer keeps beside it
CACHE_SHARE = 0.8  # of the memory that is available: more than that does not stay in the page cache


def selected() -> list[Case]:
    """The cases that the flags ask for."""
    return [
        case
        for case in cases_lib.CASES
        if case.size in SIZES.value
        and case.format in FORMATS.value
        and (not COUNTS.value or str(case.count) in COUNTS.value)
    ]


def task(contender: str, case: Case, inputs: list[str], folder: Path) -> tuple[str, dict[str, Any]]:
    """The script that a contender's process runs, and what it is told."""
    uniform = {"uniform": [1 / case.count] * case.count}
    told: dict[str, Any] = {"inputs": inputs, "weights": uniform, "output": str(folder / "out")}
    ours = {"small": [str(folder / "small" / str(i)) for i in range(2)]}
    if contender in cases_lib.FROM_PEERS:
        name = {"mergekit": "mergekit", "AveragedModel": "averaged", "plain loop": "loop"}[contender.split(",")[0]]
        if contender in (cases_lib.MERGEKIT_WINDOWS, cases_lib.LOOP_WINDOWS):
            name, told["weights"] = f"{name}_windows", cases_lib.window_weights(case.count, cases_lib.CURVES[:1])
        return "merge_peers.py", {"task": name, **told}
    if contender == cases_lib.READ:
        return "merge_worker.py", {"task": "read", "inputs": inputs}
    if contender == cases_lib.WRITE:
        written = 4 * merge_inputs.parameters(case.size)
        return "merge_worker.py", {"task": "write", "bytes": written, "output": told["output"]}
    if contender == cases_lib.MEMORY:
        sizes = {"size": case.size, "format": case.format, "count": case.count, "repeats": 7}
        return "merge_worker.py", {"task": "memory", **sizes}
    if contender == cases_lib.FORTY:
        told["weights"] = cases_lib.window_weights(case.count, cases_lib.CURVES)
    name = "written" if contender == cases_lib.WRITTEN else "engine"
    return "merge_worker.py", {"task": name, **ours, **told}


def command(contender: str, case: Case, inputs: list[str], folder: Path) -> tuple[list[str], dict[str, str]]:
    """A contender's command line and environment."""
    dropped = ("GLIBC_TUNABLES", "XLA_FLAGS", *(["PYTHONPATH"] if contender in cases_lib.FROM_PEERS else []))
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    if contender == cases_lib.OURS:
        return [sys.executable, "-m", "wsm_jax", "merge", *inputs, f"--output={folder / 'out'}"], environment
    script, told = task(contender, case, inputs, folder)
    interpreter = PEER_PYTHON.value if contender in cases_lib.FROM_PEERS else sys.executable
    return [interpreter, str(HERE / script), json.dumps(told)], environment


def run(case: Case, folder: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One record a contender."""
    inputs = [str(folder / "inputs" / str(i % case.folders)) for i in range(case.count)]
    bytes_read = sum(file.stat().st_size for file in merge_process.files(inputs))
    if case.cache == "warm" and bytes_read > CACHE_SHARE * available_memory():
        print(f"left out: {bytes_read / 1e9:.0f} GB do not stay in the page cache of this machine")
        return []
    contenders = [c for c in case.contenders if PEER_PYTHON.value or c not in cases_lib.FROM_PEERS]
    records = [
        {
            "kind": "merge",
            **{name: getattr(case, name) for name in ("size", "format", "count", "cache", "folders")},
            "contender": contender,
            "file_bytes": bytes_read,
            "input_bytes": 4 * merge_inputs.parameters(case.size) * case.count,
            "command": shlex.join(command(contender, case, inputs, folder)[0]),
            **{name: [] for name in ("seconds", "inner_seconds", "cpu_seconds", "peak_rss", "peak_anonymous")},
            "cached_before": [],
            **facts,
        }
        for contender in contenders
    ]
    for number in range(ROUNDS.value or case.rounds):
        for record in records:
            merge_process.make(case.cache, inputs)
            record["cached_before"].append(merge_process.cached_share(inputs))
            found = merge_process.measure(*command(record["contender"], case, inputs, folder))
            for name in ("seconds", "cpu_seconds", "peak_rss", "peak_anonymous"):
                record[name].append(getattr(found, name))
            record["inner_seconds"].append(found.answer.get("inner_seconds"))
            if number == 0 and case.format == "safetensors" and (folder / "out").is_dir():
                record |= worker({"task": "error", "inputs": inputs, "output": str(folder / "out")})
            clean(folder)
    return records


def worker(told: dict[str, Any]) -> dict[str, Any]:
    """The answer of one of our processes."""
    return merge_process.measure([sys.executable, str(HERE / "merge_worker.py"), json.dumps(told)]).answer


def clean(folder: Path) -> None:
    """Removes what contenders wrote."""
    for path in folder.glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_inputs(folder: Path, size: str, format: str, count: int) -> None:
    """Writes the checkpoints of a size and format; by a process, which takes its memory with it.

    Raises:
      SystemExit: too little disk.
    """
    needed = DISK_SHARE * 4 * count * merge_inputs.parameters(size)
    free = shutil.disk_usage(folder).free
    if needed > free:
        sys.exit(f"{folder}: {count} inputs of {size} need {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free")
    merge_process.measure([sys.executable, str(HERE / "merge_inputs.py"), str(folder), size, format, str(count)])


def available_memory() -> int:
    """Bytes that programs and page cache may take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def provenance(environment: dict[str, Any]) -> dict[str, Any]:
    """What the figures depend on besides the code."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    peers = {}
    if PEER_PYTHON.value:
        peers = merge_process.measure([PEER_PYTHON.value, str(HERE / "merge_peers.py"), '{"task": "versions"}']).answer
    return {
        "versions": environment["versions"],
        "peer_versions": peers,
        "benchmark": shlex.join(sys.argv),
        "machine": {
            "cpu": next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), ""),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "system": platform.platform(),
            "load_before": os.getloadavg()[0],
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def measure_all(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of all cases; one format of one size is on disk at a time."""
    found = worker({"task": "precision", "counts": cases_lib.PRECISION_COUNTS})
    facts = provenance(found["environment"])
    yield from ({"kind": "precision", **row, **facts} for row in found["rows"])
    chosen = selected()
    for size, format in dict.fromkeys((case.size, case.format) for case in chosen):
        group = [case for case in chosen if (case.size, case.format) == (size, format)]
        print(f"{size}, {format}: writing {max(case.folders for case in group)} inputs", flush=True)
        write_inputs(folder, size, format, max(case.folders for case in group))
        for case in group:
            print(f"{size}, {format}: {case.count} inputs, {case.cache}", flush=True)
            yield from run(case, folder, facts)
        for name in ("inputs", "small"):
            shutil.rmtree(folder / name)


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    if len(argv) > 1:
        sys.exit(f"unknown argument {argv[1]!r}; options begin with --")
    if not selected():
        sys.exit("no case is left; --sizes, --formats or --counts ask for what merge_cases.py does not have")
    if PEER_PYTHON.value and not shutil.which(PEER_PYTHON.value):
        sys.exit(f"--peer_python={PEER_PYTHON.value} is no program; give an interpreter that has mergekit")
    if FOLDER.value:
        Path(FOLDER.value).mkdir(parents=True, exist_ok=True)
    if not PEER_PYTHON.value:
        print("No --peer_python: measuring ours only.")
    output = Path(OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="wsm-merge-", dir=FOLDER.value or None) as folder,
        open(f"{output}.jsonl.part", "w") as file,
    ):
        for record in measure_all(Path(folder)):
            print(json.dumps(record), file=file, flush=True)  # at once: what was measured is kept whatever comes
    os.replace(f"{output}.jsonl.part", f"{output}.jsonl")
    import merge_report  # beside this file; late, because matplotlib is large

    merge_report.report(output)


if __name__ == "__main__":
    app.run(main)
