"""The committed pages, their report and the README's section of them."""

import importlib
import json
import pathlib

import pytest

from experiments import readme, report
from wsm_jax import run

ROOT = pathlib.Path(__file__).parent.parent
COMMITTED = sorted(file.parent for file in (ROOT / "results").glob("*/*/records.jsonl"))


def test_the_report_and_the_readme_take_the_pages_up(tmp_path):
    table = (
        "| claim | difference |  | the paper |\n| :-- | --: | --: | --: |\n| a is better | -0.1 ± 0.05 | holds | 1 |\n"
    )
    page = f"# Title\n\n{table}\n![x](x.png)\n"
    for scale, names in {"small": report.NAMES, "tiny": report.NAMES[:4]}.items():
        for name in names:
            (tmp_path / name / scale).mkdir(parents=True)
            (tmp_path / name / scale / "README.md").write_text(page)
            record = {"piece": "seed0", "piece_seconds": 600.0, "parameters": 1234}
            (tmp_path / name / scale / "records.jsonl").write_text(json.dumps(record) + "\n")
    text = report.report(tmp_path)
    assert text.count("\n### Title") == len(report.NAMES) + 4 and "![x](emulation/small/x.png)" in text
    assert "## Scale small" in text and "## Scale tiny" in text and "Scale medium" not in text
    assert "| a is better | -0.1 ± 0.05 | holds | 1 | [gap](gap/small) |" in text
    assert "[trajectory]" not in text  # those are of distances
    assert "\n1,234 parameters. Lengths are in intervals of 20 steps; a step is 8 sequences of 128 tokens" in text
    lines = readme.paper_section(tmp_path, ["small", "tiny"])
    assert "| claim | small | tiny | the paper | page |" in lines
    assert "| a is better | -0.1 ± 0.05, holds | -0.1 ± 0.05, holds | 1 | [training](results/training) |" in lines
    assert "| a is better | -0.1 ± 0.05, holds | not run | 1 | [gap](results/gap) |" in lines
    assert "its real decay is the last 16. 120 minutes of processes, two at a time on two cores." in "\n".join(lines)
    other = (tmp_path / "training" / "tiny" / "README.md").read_text()
    (tmp_path / "training" / "small" / "README.md").write_text(other.replace("a is better", "a (12) is better"))
    lines = readme.paper_section(tmp_path, ["small", "tiny"])  # what was chosen differs, the claim does not
    assert "| a is better | -0.1 ± 0.05, holds | -0.1 ± 0.05, holds | 1 | [training](results/training) |" in lines


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_a_committed_page_is_what_its_records_give(folder):
    experiment = importlib.import_module(f"experiments.{folder.parent.name}").EXPERIMENT
    page = experiment.present(run.read_jsonl(folder / "records.jsonl"))
    assert "\n".join(page.lines) + "\n" == (folder / "README.md").read_text()
    assert {f"{name}.{form}" for name in page.figures for form in ("png", "svg")} <= {p.name for p in folder.iterdir()}


def test_the_committed_report_is_what_the_pages_give():
    assert len(COMMITTED) > 10
    assert report.report(ROOT / "results") == (ROOT / "results" / "REPORT.md").read_text()
