"""The merge benchmark: what it measures of a process and of the page cache, its ratios, all of it on tiny inputs."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
MB = 10**6


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def module(name):
    return importlib.import_module(name)


def python(program):
    return [sys.executable, "-c", program]


# --- one process -----------------------------------------------------------------------------------------------------


def test_time_memory_and_answer_of_a_process():
    program = "import time; x = b'1' * 200_000_000; time.sleep(0.3); print('{\"a\": 1}'); print('done')"
    found = module("merge_process").measure(python(program))
    assert found.seconds > 0.3
    assert 0 < found.cpu_seconds < found.seconds
    assert 200 * MB < found.peak_anonymous < 230 * MB
    assert found.peak_rss >= found.peak_anonymous
    assert found.answer == {"a": 1}


def test_mapped_files_are_resident_and_not_anonymous(tmp_path):
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", 800 * MB)  # more than these tests take themselves, which a child starts with
    program = (
        f"import mmap, time; f = open({str(tmp_path / 'file')!r}, 'rb');"
        "m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); m.find(b'2'); time.sleep(0.1)"
    )
    found = module("merge_process").measure(python(program))
    assert found.peak_rss > 800 * MB
    assert found.peak_anonymous < 50 * MB


def test_a_process_that_fails_is_named_with_what_it_said():
    with pytest.raises(SystemExit, match=r"(?s)-c.*ended with 1.*ZeroDivisionError"):
        module("merge_process").measure(python("1 / 0"))


# --- page cache ------------------------------------------------------------------------------------------------------


def test_the_page_cache_is_made_cold_and_warm():
    process = module("merge_process")
    # In the repository: the folder for temporary files may be memory, which nothing can be dropped from.
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".page-cache-") as folder:
        (Path(folder) / "a").mkdir()
        for name in ("a/1", "a/2"):
            (Path(folder) / name).write_bytes(os.urandom(4 * 2**20 + 1))
        process.make("cold", [folder])
        assert process.cached_share([folder]) == 0
        assert process.read([folder, folder]) == 4 * (4 * 2**20 + 1)
        process.make("warm", [folder])
        assert process.cached_share([folder]) == 1


# --- protocol and ratios ---------------------------------------------------------------------------------------------


def test_the_windows_end_at_the_newest_checkpoint():
    assert module("merge_cases").windows(16) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert module("merge_cases").windows(8) == [1, 2, 3, 4, 5, 6, 7, 8]
    weights = module("merge_cases").window_weights(16, ("linear", "cosine"))
    assert len(weights) == 16
    for name, vector in weights.items():
        length = int(name.split("-")[-1])
        assert len(vector) == 16
        assert vector[: 16 - length] == [0.0] * (16 - length)
        assert all(vector[16 - length :])
        np.testing.assert_allclose(sum(vector), 1.0)


def test_checkpoints_have_the_parameters_of_gpt2():
    inputs = module("merge_inputs")
    assert inputs.parameters("125M") == 124_439_808  # as the model cards of gpt2 and gpt2-large count them
    assert inputs.parameters("774M") == 774_030_080
    assert sum(int(np.prod(shape)) for shape in inputs.shapes("125M", "stream").values()) == 124_373_760


def record(contender, *, seconds=(1.0,), inner=(None,), rss=MB, size="125M", count=4, cache="cold"):
    case = {"kind": "merge", "size": size, "format": "safetensors", "count": count, "cache": cache}
    case["contender"] = contender
    took = {"seconds": list(seconds), "inner_seconds": list(inner), "cpu_seconds": list(seconds)}
    memory = {"peak_rss": [rss] * len(seconds), "peak_anonymous": [rss] * len(seconds)}
    return case | took | memory | {"input_bytes": 10**9}


def test_ours_is_held_against_its_like_round_by_round():
    report, before = module("merge_report"), ", previous version"
    rounds = (1.0, 4.0, 4.0)  # a slow disk in two of three rounds meets both: only the ratios within the rounds count
    ours = record("wsm merge", seconds=[0.5 * r for r in rounds])
    engine = record("merge_many, one merge", seconds=rounds, inner=[1.2 * r for r in rounds])
    read = record("plain read", seconds=[9.0] * 3, inner=rounds)
    loop = record("plain loop", seconds=rounds, inner=[9.0] * 3)
    earlier = record("merge_many, one merge" + before, seconds=[9.0] * 3, inner=[2.4 * r for r in rounds])
    elsewhere = record("mergekit", seconds=rounds, count=8)
    found = [ours, engine, read, loop, earlier, elsewhere]
    assert [report.ratio(r, found) for r in found] == [None, None, *map(pytest.approx, (1.2, 0.5, 0.5)), None]


# --- all of it -------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # a minute; the merges that it times are tested by themselves
def test_the_benchmark_runs_on_tiny_checkpoints(tmp_path):
    command = [sys.executable, "benchmarks/merge.py", "--only=tiny", "--rounds=1", f"--previous={ROOT}"]
    folders = [f"--folder={tmp_path / 'work'}", f"--output={tmp_path / 'results' / 'merge'}"]
    done = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "work").iterdir()) == []
    assert {p.name for p in (tmp_path / "results").iterdir()} == {"merge.jsonl", "merge.png", "merge.svg"}

    records = [json.loads(line) for line in (tmp_path / "results" / "merge.jsonl").read_text().splitlines()]
    cases = module("merge_cases")
    expected = [
        (case.format, case.count, case.cache, name)
        for case in cases.CASES
        for contender in case.contenders
        for name in (contender, f"{contender}, previous version")
        if case.size == "tiny" and contender not in cases.FROM_PEERS
        if name == contender or contender in cases.FROM_US
    ]
    merges = [r for r in records if r["kind"] == "merge"]
    assert [(r["format"], r["count"], r["cache"], r["contender"]) for r in merges] == expected
    for r in merges:
        assert all(r[name][0] > 0 for name in ("seconds", "cpu_seconds", "peak_rss", "peak_anonymous")), r
        assert r["contender"].startswith(cases.OURS) or 0 < r["inner_seconds"][0] < r["seconds"][0], r
        assert r["cache"] == "cold" or r["cached_before"] == [1.0], r
        assert {"versions", "machine", "date", "benchmark", "command"} <= r.keys()
    errors = [r["max_error"] for r in merges if "max_error" in r]
    assert len(errors) == 4  # wsm merge and merge_checkpoints, of both versions
    assert max(errors) < 1e-8  # of values of about 0.02

    for r in (r for r in records if r["kind"] == "precision"):
        assert r["float32_result"] < 3e-7
        assert r["same_dtype_result"] < 3e-7 if r["dtype"] == "float32" else 1e-4 < r["same_dtype_result"] < 2e-3


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--only=huge", "leaves no case"),
        ("--peer_python=/nowhere", "is no program"),
        ("--previous=/nowhere", "has no wsm_jax/"),
        ("x", "unknown argument"),
    ],
)
def test_flags_that_ask_for_nothing_are_refused(flag, words):
    done = subprocess.run([sys.executable, "benchmarks/merge.py", flag], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
