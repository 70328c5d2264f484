"""The memory that a process may take: the host's, below the limits of the job it runs in; and how it keeps it."""

import os
import subprocess
import sys

import pytest

from wsm_jax.io import memory

GB = 10**9


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_dot_", ".")).write_text(f"{text}\n")


@pytest.fixture
def machine(tmp_path):
    """A host with 100 GB free, and a function that puts this process in a cgroup."""
    write(tmp_path / "proc", meminfo=f"MemTotal: {200 * GB // 1024} kB\nMemAvailable: {100 * GB // 1024} kB")

    def member(line):
        write(tmp_path / "proc" / "self", cgroup=f"1:name=systemd:/\n{line}")
        return tmp_path / "cgroup"

    return member


def free(tmp_path):
    return memory.free(tmp_path / "proc", tmp_path / "cgroup")


def test_without_cgroups_it_is_the_hosts(machine, tmp_path):
    assert free(tmp_path) == pytest.approx(100 * GB, abs=1024)


def test_the_tightest_limit_around_the_process_counts_and_its_page_cache_is_free(machine, tmp_path):
    root = machine("0::/slurm/job7/step0")
    write(root / "slurm" / "job7" / "step0", memory_dot_max="max", memory_dot_current=5 * GB, memory_dot_stat="file 0")
    limits = {"memory_dot_max": 16 * GB, "memory_dot_current": 9 * GB}
    write(root / "slurm" / "job7", **limits, memory_dot_stat=f"anon {5 * GB}\nfile {4 * GB}")
    write(root / "slurm", memory_dot_max=64 * GB, memory_dot_current=9 * GB, memory_dot_stat="file 0")
    assert free(tmp_path) == 11 * GB
    write(root / "slurm" / "job7", memory_dot_max=4 * GB)
    assert free(tmp_path) == 0


def test_the_older_cgroups(machine, tmp_path):
    folder = machine("4:cpu,memory:/docker/abc") / "memory"
    files = {"memory_dot_usage_in_bytes": 3 * GB, "memory_dot_stat": f"cache 1\ntotal_cache {GB}"}
    write(folder, memory_dot_limit_in_bytes=8 * GB, **files)  # a container sees its own as the root
    assert free(tmp_path) == 6 * GB
    write(folder, memory_dot_limit_in_bytes=9223372036854771712)
    assert free(tmp_path) == pytest.approx(100 * GB, abs=1024)


def test_here():
    assert 10**8 < memory.free() < 10**15


FAULTS = """
import resource, sys
import numpy as np
from wsm_jax.io import memory
memory.machine.has_accelerator = lambda: False  # whatever computes here
if sys.argv[1] == "kept":
    assert memory.keep_heap()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.empty(8 * 10**6).fill(0.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_is_freed_is_kept_and_faults_no_more():
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    plain, kept = (
        int(
            subprocess.run([sys.executable, "-c", FAULTS, how], env=environment, capture_output=True, check=True).stdout
        )
        for how in ("plain", "kept")
    )
    assert kept < plain / 4
    assert not subprocess.run(
        [sys.executable, "-c", "import sys; from wsm_jax.io import memory; sys.exit(memory.keep_heap())"],
        env={**environment, "GLIBC_TUNABLES": "glibc.malloc.arena_max=2"},
    ).returncode
