"""Small file systems, and what is said where one is full.

A pytest plugin: a test module asks for the fixture with ``pytest_plugins = ["tests.disks"]``.
"""

import os
import shutil
import subprocess

import pytest

FULL = r"wsm: \S+ (cannot be written: the disk is full, it takes (more than )?[\d.]+ MB and|needs [\d.]+ GB more but)"


@pytest.fixture
def disk(tmp_path):
    """(megabytes) -> a file system of that size."""
    mounted = []

    def mount(megabytes):
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
        mounted.append(place)
        return place

    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def fill(place, spare=0):
    """Takes the room of a file system but for some bytes."""
    free = shutil.disk_usage(place).free - spare
    with (place / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free, 1))
