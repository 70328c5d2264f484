"""The committed pages, their report and the README's section of them."""

import importlib
import json
import pathlib

import pytest

from experiments import readme, report
from wsm_jax import cli
from wsm_jax.io.files import read_jsonl
from wsm_jax.reporting import pages

ROOT = pathlib.Path(__file__).parent.parent.parent
# Those of `all` have no page, but a sentence of the README.
COMMITTED = sorted(f.parent for f in (ROOT / "results").glob("*/*/records.jsonl") if f.parts[-3] != "all")


def test_the_report_and_the_readme_take_the_pages_up(tmp_path, capsys):
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
    pages.write_outline(tmp_path, report.outline(tmp_path))
    assert cli.main(["report", str(tmp_path)]) == 0
    assert f"report: {tmp_path}/REPORT.md" in capsys.readouterr().out
    text = (tmp_path / "REPORT.md").read_text()
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


def page(root: pathlib.Path, name: str, scale: str, text: str) -> None:
    (root / name / scale).mkdir(parents=True)
    (root / name / scale / "README.md").write_text(text)
    (root / name / scale / "records.jsonl").write_text(json.dumps({"piece": "a", "piece_seconds": 90.0}) + "\n")


def outline(**changed) -> str:
    return json.dumps({"title": "T", "introduction": "", "pages": ["c"], "scales": {}, "apart": [], **changed})


def test_links_titles_and_code_of_a_page(tmp_path):
    text = "# T\n\nsee [x](x.md), ![a](a.png), [web](https://e/x.png), [top](#t)\n\n```\n# a comment [i](j)\n```\n"
    page(tmp_path, "mine", "small", text + "\n| claim | by |\n| --- | --- |\n| so | 1 |\n")
    (tmp_path / "mine" / "small" / "records.jsonl").write_text('{"loss": 1.0}\n')  # says nothing of time
    lines = pages.report(tmp_path).splitlines()
    assert "see [x](mine/small/x.md), ![a](mine/small/a.png), [web](https://e/x.png), [top](#t)" in lines
    assert "### T" in lines and "# a comment [i](j)" in lines
    assert lines.count("| so | 1 | [mine](mine/small) |") == 1 and "| --- | --- | [mine](mine/small) |" not in lines
    assert [pages.minutes(seconds) for seconds in (29, 30, 90, 91)] == ["< 1", "1", "2", "2"]


def test_a_folder_without_an_outline_has_all_its_pages_in_the_report(tmp_path):
    page(tmp_path, "mine", "large", "# Mine\n\n| claim | by |\n| :-- | --: |\n| it works | 1 |\n")
    page(
        tmp_path,
        "after",
        "large",
        "# After\n\n| claim of it | by | if |\n| :-- | --: | --: |\n| it is later | 2 | so |\n",
    )
    page(tmp_path, "mine", "huge", "# Mine\n")
    (tmp_path / "notes" / "x").mkdir(parents=True)
    (tmp_path / "notes" / "x" / "README.md").write_text("no records beside it\n")
    lines = pages.report(tmp_path).splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        *("# Results", "## Scale huge", "### Mine", "## Scale large", "### After", "### Mine"),
    ]
    tables = [line for line in lines if line.endswith(("| page |", "/large) |"))]
    assert tables == [
        "| claim | by | if | page |",
        "| it is later | 2 | so | [after](after/large) |",
        "| claim | by | page |",
        "| it works | 1 | [mine](mine/large) |",
    ]
    assert "| all | 3 |" in lines and "no records beside it" not in lines


def test_a_scale_that_the_outline_lacks_comes_last(tmp_path):
    for scale in ("a", "b"):
        page(tmp_path, "mine", scale, "# Mine\n")
    page(tmp_path, "other", "c", "# Other\n")
    pages.write_outline(tmp_path, pages.Outline("T", "Of mine.", ("mine",), {"b": "It is long."}))
    text = pages.report(tmp_path)
    assert text.startswith("# T\n\nOf mine.\n\n## Scale b\n\nIt is long.\n")
    assert "## Scale a" in text and "Other" not in text


@pytest.mark.parametrize(
    "make, arguments, said",
    [
        (lambda root: None, [], "is not a run directory: it has no config.json"),
        (lambda root: (root / "outline.json").write_text(outline(scales=["b"])), [], "scales a text for each name"),
        (
            lambda root: (root / "outline.json").write_text(outline(pages=None)),
            [],
            "pages and apart are lists",
        ),
        (
            lambda root: (root / "outline.json").write_text(outline(pages=["e"])),
            [],
            "names none of the pages",
        ),
        (lambda root: page(root, "a", "b", ""), ["--learned"], "--learned goes with runs, but"),
        (lambda root: page(root, "a", "b", ""), ["elsewhere"], "a second folder goes with runs, but"),
        (lambda root: (root / "outline.json").write_text("[1"), [], "outline.json: cannot be read as JSON"),
        (
            lambda root: (root / "outline.json").write_text('{"name": 1}'),
            [],
            "outline.json must be an object with title",
        ),
        (lambda root: page(root, "d", "b", "| claim | x |\n| 1 | 2 | 3 |\n"), [], "has not the columns claim, x:"),
    ],
)
def test_what_cannot_be_gathered_is_one_line(tmp_path, capsys, make, arguments, said):
    make(tmp_path)
    if any(tmp_path.iterdir()):
        page(tmp_path, "c", "b", "| claim | x |\n| :-- | --: |\n| 1 | 2 |\n")
    (tmp_path / "REPORT.md").write_text("old")
    assert cli.main(["report", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("wsm: ") and error.count("\n") == 1
    assert (tmp_path / "REPORT.md").read_text() == "old"


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_a_committed_page_is_what_its_records_give(folder):
    found = importlib.import_module(f"experiments.{folder.parent.name}").present(read_jsonl(folder / "records.jsonl"))
    assert "\n".join(found.lines) + "\n" == (folder / "README.md").read_text()
    assert {f"{name}.{form}" for name in found.figures for form in ("png", "svg")} <= {p.name for p in folder.iterdir()}


def test_the_committed_report_is_what_the_pages_give():
    assert len(COMMITTED) > 10
    results = ROOT / "results"
    assert pages.read_outline(results) == report.outline(results)
    assert pages.report(results) == (results / "REPORT.md").read_text()
