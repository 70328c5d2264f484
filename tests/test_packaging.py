"""What an installation brings: the light one, its extras, requirements.txt; and what a verb says that lacks one."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wsm_jax import UsageError
from wsm_jax.cli import extras

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def brought(extra: str) -> Iterator[str]:
    """The requirements of an extra, with those of the extras that it names."""
    for line in PROJECT["optional-dependencies"][extra]:
        if named := re.fullmatch(r"wsm-jax\[(.*)\]", line):
            for other in named[1].split(","):
                yield from brought(other)
        else:
            yield line


def library(requirement: str) -> str:
    """``tensorflow-datasets>=4.9`` -> ``tensorflow_datasets``, as it is imported."""
    return re.split(r"[<>=\[~!]", requirement)[0].replace("-", "_")


def test_the_requirements_are_the_full_set():
    listed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert sorted(listed) == sorted({*PROJECT["dependencies"], *brought("all")})
    assert {*brought("all")} <= {*brought("dev")}


def test_verbs_name_the_extras_as_they_are_declared():
    for extra, modules in extras.MODULES.items():
        declared = [line for line in PROJECT["optional-dependencies"][extra] if not line.startswith("wsm-jax[")]
        assert [library(line) for line in declared] == list(modules)
    light = {library(line) for line in PROJECT["dependencies"]}
    assert not light & {name for modules in extras.MODULES.values() for name in modules}
    for verb, named in extras.VERBS.items():
        assert {*named.split(",")} <= {*PROJECT["optional-dependencies"]}, verb


# --- without the extras ----------------------------------------------------------------------------------------------

# A process in which the libraries of all extras are missing; then what it is asked to run.
LIGHT = """
import sys
from wsm_jax.cli import extras, main
MISSING = {name for modules in extras.MODULES.values() for name in modules}
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Without())
"""
ROOMS = """
import importlib, pkgutil, wsm_jax
for room in ("core", "io", "parallel", "checkpoints", "merging"):
    package = importlib.import_module(f"wsm_jax.{room}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
for name in {*wsm_jax.__all__} - {"Evaluation", "paired_difference"}:
    getattr(wsm_jax, name)
"""


def light(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIGHT + program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_light_install_imports_the_method_and_merges(tmp_path):
    for i in (0, 1):
        (tmp_path / f"{i}").mkdir()
        save_file({"w": np.full((2, 3), i, np.float32)}, tmp_path / f"{i}" / "model.safetensors")
    inputs, output = [str(tmp_path / "0"), str(tmp_path / "1")], str(tmp_path / "out")
    verbs = f"""
assert main(["merge", *{inputs!r}, "--output={output}", "--json"]) == 0
assert main(["inspect", {output!r}, "--json"]) == 0
assert main(["weights", "--curve=linear", "--count=3", "--json"]) == 0
"""
    done = light(ROOMS + verbs)
    assert done.returncode == 0, done.stderr
    (merged,) = Path(output).glob("*.safetensors")
    np.testing.assert_array_equal(load_file(merged)["w"], np.full((2, 3), 0.5, np.float32))
    assert json.loads(done.stdout.splitlines()[-1])["count"] == 3


def test_a_verb_says_which_extra_it_lacks(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    run = str(tmp_path / "run")
    verbs = {
        ("train", f"--run={run}", "--config=configs/tiny.py"): ("ml_collections", "train"),
        ("prepare", "--config=configs/tiny.py"): ("ml_collections", "data"),
        ("eval", f"--run={run}"): ("grain", "eval"),
        ("report", run): ("grain", "eval,plots"),
        ("weights", "--curve=linear", "--count=3", "--plot=x.png"): ("matplotlib", "plots"),
    }
    done = light(f"sys.exit(sum(main(verb) != 2 for verb in {list(verbs)!r}))")
    said = [f'wsm: wsm {v[0]} needs {lacks}: pip install "wsm-jax[{extra}]"' for v, (lacks, extra) in verbs.items()]
    assert done.stderr.splitlines() == said
    assert done.returncode == 0


def test_tasks_need_an_extra_that_the_verb_as_a_whole_does_not():
    says = re.escape('wsm eval needs lm_eval: pip install "wsm-jax[harness]"')
    with pytest.raises(UsageError, match=says), extras.named("eval"):
        raise ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval")


def test_a_library_that_no_extra_brings_is_a_fault_of_the_program():
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"), extras.named("train"):
        raise ModuleNotFoundError("No module named 'nowhere_at_all'", name="nowhere_at_all")
