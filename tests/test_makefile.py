"""``make`` finds a Python that runs, and its targets are those that the documents name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = ("python3", "python3.13", "python3.12", "python3.11", "python")


@pytest.mark.parametrize("works", ["python3", "python3.12", "python3.11"])
def test_a_python_that_is_there_and_fails_is_passed_over(tmp_path, works):
    """As pyenv's shims of versions that are not chosen."""
    for name in NAMES:
        body = f'exec {sys.executable} "$@"' if name == works else "echo 'command not found' >&2; exit 127"
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL", "VENV")}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    command = ["make", "--dry-run", "setup", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{works} -c ") and f"\n{works} -m venv " in done.stdout


@pytest.mark.parametrize(("target", "extras"), [("demo", "train,plots"), ("setup", "dev"), ("test-plan", "dev,tpu")])
def test_each_environment_gets_its_extras_by_uv_or_else_by_pip(tmp_path, target, extras):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL", "VENV")}
    command = ["make", "--dry-run", target, f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    (install,) = (line for line in done.stdout.replace("\\\n", "").splitlines() if "uv pip install" in line)
    assert install.count(f"-e '.[{extras}]'") == 2
    subprocess.run(["sh", "-n", "-c", install], check=True)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_the_targets_that_are_named_are_there(page):
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE))
    assert named and named <= targets
