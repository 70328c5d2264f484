"""Every command and every Python block of the README and of the docs runs, on the demo's run made short."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import readme
from wsm_jax import cli
from wsm_jax.config import DataConfig
from wsm_jax.data.sources import documents
from wsm_jax.data.store import split_of

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("demo")]  # one demo run serves several files
ROOT = Path(__file__).parent.parent
PAGES = {str(p.relative_to(ROOT)): p.read_text() for p in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if blocks(language, page)]


@pytest.fixture
def place(demo_run, tmp_path_factory):
    """A folder as the README assumes it: configs/, runs/demo-0 (short), docs/, talks.jsonl, questions/."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "tests").symlink_to(ROOT / "tests")
    (folder / "wsm_jax").symlink_to(ROOT / "wsm_jax")
    (folder / "runs").mkdir()
    shutil.copytree(demo_run, folder / "runs" / "demo-0")
    talks = [{"prompt": f"def f{n}(x):\n", "response": f"    return x + {n}\n"} for n in range(300)]
    (folder / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    (folder / "questions").mkdir()
    asked = [{"query": f"def f{n}(x):", "choices": ["return x", "import x"], "gold": n % 2} for n in range(8)]
    blank = {"sentence": "def f(x): return _ + 1", "option1": "x", "option2": "y", "answer": "1"}
    for name, records in (("arc_easy", asked), ("winogrande", [blank] * 4)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "questions" / f"{name}.jsonl").write_text(lines)
    (folder / "docs").mkdir()
    for module in ("argparse.py", "ast.py", "calendar.py", "csv.py", "enum.py", "heapq.py", "shutil.py", "string.py"):
        shutil.copy(Path(os.__file__).parent / module, folder / "docs")
    return folder


def shortened(command: str) -> list[str]:
    """The command as it stands, with the steps and sizes of the short demo."""
    steps = {"1480": "37", "1520": "38", "1560": "39", "1600": "40", "1200": "30"}
    names = {"10x40": "10x1", "10x25-at-1000": "10x2-at-20", "8x20-at-1000": "8x2-at-20", "--every=400": "--every=10"}
    for long, short in {**steps, **names}.items():
        command = command.replace(long, short)
    # As a shell would: runs/{a,b} is runs/a runs/b.
    command = re.sub(r"(\S*)\{(\S+)\}", lambda m: " ".join(m[1] + part for part in m[2].split(",")), command)
    arguments = shlex.split(command)
    if "--config=configs/tiny.py" in arguments:
        arguments += [
            "--config.duration=20steps",
            "--config.schedule.warmup=2steps",
            "--config.checkpoint.merge_interval=2steps",
            "--config.data.tokenizer=bpe:300",
            "--config.data.validation_fraction=0.2",
            "--config.data.test_fraction=0.2",
            "--config.model.context=32",
        ]
    return arguments


@pytest.mark.parametrize("page", pages_with("sh"))
def test_every_shell_command_runs(place, page, short_demo, store, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for command in [line for block in blocks("sh", page) for line in block.strip().splitlines()]:
        arguments = shortened(command)
        if "--config=configs/demo.py" in arguments:
            arguments += short_demo
        assert arguments[0] == "wsm"
        # In this process: a new one for each would spend most of its time on importing and compiling.
        assert cli.main(arguments[1:]) == 0, f"{command}\n{capsys.readouterr().err}"


def test_the_text_to_train_on_has_held_out_documents():
    """The commands run above with larger held-out shares; with the default ones they must, too."""
    names = {
        n for page in PAGES.values() for n in re.findall(r"^wsm train .*data\.source=text:(\S+)", page, re.MULTILINE)
    }
    assert names
    data = DataConfig()
    shares = data.validation_fraction, data.test_fraction
    for name in names:
        assert (ROOT / name).is_dir()
        splits = {split_of(document.text, *shares) for document in documents(f"text:{ROOT / name}")}
        assert splits == {"train", "validation", "test"}, name


@pytest.mark.parametrize("page", pages_with("python"))
def test_every_python_block_runs(place, page):
    for block in blocks("python", page):
        subprocess.run([sys.executable, "-c", block], cwd=place, check=True)


def test_the_pages_with_commands_are_there():
    assert {"README.md", "docs/merging.md", "docs/training.md", "docs/finetuning.md", "docs/generation.md"} <= set(
        pages_with("sh")
    )
    assert {"README.md", "docs/merging.md"} <= set(pages_with("python"))


def test_the_two_commands_are_targets_of_the_makefile():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = re.findall(r"^make (\w+)", PAGES["README.md"], re.MULTILINE)
    assert commands and set(commands) <= set(targets)


def test_links_lead_to_files():
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[page])]
    assert len({page for page, _ in links}) > 5
    for page, link in links:
        assert link.startswith("https://") or ((ROOT / page).parent / link).exists(), (page, link)


@pytest.mark.parametrize("page", readme.PAGES)
def test_the_figures_are_those_of_the_committed_results(page):
    assert readme.render(PAGES[page]) == PAGES[page], "run python -m experiments.readme"
