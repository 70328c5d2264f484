"""Pages of experiments and the index of results, rendered from claims.json and records.jsonl."""

import html.parser
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.reporting import samples
from wsm_jax import cli
from wsm_jax.reporting import document, experiment_page, index_page
from wsm_jax.reporting.document import Page, Section, Table
from wsm_jax.reporting.effects import Effect, heat_map

# What an HTML page loads, by its attribute.
LOADS = {"src", "srcset", "poster", "data", "action"}


class Reader(html.parser.HTMLParser):
    """What an HTML page loads and says; a tag that is not closed where it should be is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.loads, self.ids, self.text, self.open = [], [], [], []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link"):
            self.open.append(tag)
        self.note(tag, dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note(tag, dict(attrs))

    def note(self, tag: str, attrs: dict[str, str | None]) -> None:
        self.loads += [value for name, value in attrs.items() if name in LOADS]
        self.loads += [attrs["href"]] if tag == "link" and not str(attrs["href"]).startswith("data:") else []
        self.ids += [attrs["id"]] if "id" in attrs else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(file: Path) -> Reader:
    reader = Reader()
    reader.feed(file.read_text())
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def headline(tmp_path_factory):
    folder = samples.write(tmp_path_factory.mktemp("results") / "headline" / "small")
    assert experiment_page.write(folder) == folder / "README.md"
    return folder


def test_the_page_of_an_experiment_has_all_that_its_claims_say(headline):
    lines = (headline / "README.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        *("# Headline: what it shows", "## Claims", "## Choices", "## Arms", "## How it was made"),
    ]
    assert (
        "| 16 checkpoints are better than 4 at a window of 10% of the run | −0.0136 [−0.0183, −0.0089] | < 0.001 |"
        " < 0.001 | better | – |"
    ) in lines
    assert "| interval means are better than points | +0.0002 [−0.0009, +0.0013] | 0.580 | – | equal | – |" in lines
    assert "| best merge (of 2) | decay 10% | decay 10% | decay 10% | decay 10%, 2.8497 |" in lines
    assert "| last | 2.8710 | 2.6710 | 2.9210 | 3.0210 | – | – |" in lines
    assert "| merge 10% | 2.8323 | 2.6323 | 2.8823 | 2.9823 | −0.0387 [−0.0507, −0.0267] | better |" in lines
    assert "| data | [claims.json](claims.json), [records.jsonl](records.jsonl) |" in lines
    assert "| versions | python 3.11.7, wsm_jax 0.2.0, jax 0.10.2, numpy 2.4.6 |" in lines
    assert "| left out | mathematics 3 |" in lines
    assert "| time | 30 minutes of processes, 3 pieces |" in lines
    for name in ("claims", "claims_2", "differences"):
        assert f"]({name}.png)" in "\n".join(lines)
        assert (headline / f"{name}.png").is_file() and (headline / f"{name}.svg").is_file()


def test_the_html_says_the_same_and_loads_nothing(headline):
    page = read(headline / "index.html")
    assert page.loads == [] and len(set(page.ids)) == len(page.ids)
    said = "".join(page.text)
    for text in ("Made-up figures of headline. They show <nothing> & more.", "−0.0136 [−0.0183, −0.0089]", "63.95"):
        assert text in said
    source = (headline / "index.html").read_text()
    assert "<code>headline</code>. They show &lt;nothing&gt; &amp; more." in source
    assert '<a href="claims.json">the data</a>' in source and source.count("<svg") == 3
    assert "://" not in source.replace('xmlns="http://www.w3.org/2000/svg"', "").replace(
        'xmlns:xlink="http://www.w3.org/1999/xlink"', ""
    )


def test_a_page_written_again_is_the_same(headline, tmp_path):
    again = shutil.copytree(headline, tmp_path / "again")
    experiment_page.write(again)
    assert {f.name: f.read_bytes() for f in again.iterdir()} == {f.name: f.read_bytes() for f in headline.iterdir()}


def test_sections_without_anything_are_left_out():
    claims = samples.claims_of("bare", [], []) | {"choices": [], "arms": [], "differences": []}
    claims["parameters"] = None
    for name in ("left_out", "machines", "versions", "documents", "command", "about"):
        del claims[name]
    text = document.render(experiment_page.page(claims, [], [], []), "md")
    assert text == (
        "# Bare: what it shows\n\n## How it was made\n\n|  | value |\n| :-- | :-- |\n| scale | small |\n"
        "| seeds | 0, 1, 2 |\n"
    )


def test_an_interval_that_is_not_known_is_not_shown():
    claim = samples.CLAIMS[0] | {"interval": [None, None], "p": None, "p_holm": None, "verdict": "open"}
    claim["over"] = "documents"
    claims = samples.claims_of("one_seed", [], [claim])
    text = document.render(experiment_page.page(claims, [], [], []), "md")
    assert "| +0.0121 | – | – | open |" in text and "nan" not in text
    assert "with its 95% interval over documents. A claim" in text


def cells(*fields: str, change=lambda claims: None) -> tuple[Any, Any]:
    claims = samples.claims_of("sweep", samples.points(*fields), [])
    change(claims)
    pictures: list[Any] = experiment_page._heat_map(claims)
    return claims, pictures[0].figure if pictures else None


def test_a_heat_map_has_a_cell_for_each_arm_of_two_axes():
    claims, figure = cells("merge.window", "merge.count")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.025run", "0.05run", "0.1run", "0.2run"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["4", "8", "16"]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    for place, difference in enumerate(claims["differences"]):
        row, column = place % 3, place // 3
        value = f"{difference['estimate']:+.3f}".replace("-", "−")
        expected = f"({value})" if difference["verdict"] in ("open", "equal") else value
        assert shown[column + 0.5, row + 0.5] == expected
    (framed,) = [patch for patch in axes.patches if patch.get_linewidth() > 1]
    lowest = min(range(12), key=lambda n: claims["differences"][n]["estimate"])
    assert framed.get_xy() == (lowest // 3, lowest % 3)


def test_further_axes_make_small_multiples_unless_they_follow_from_two():
    _, figure = cells("merge.window", "merge.count", "merge.curve")
    assert [axes.get_title() for axes in figure.axes] == ["curve linear", "curve minus_sqrt", "curve ema"]
    assert cells("merge.window")[1] is None and cells()[1] is None

    def determined(claims):
        for arm in claims["arms"][1:]:
            arm["axes"]["merge.interval"] = f"{arm['axes']['merge.window']}/{arm['axes']['merge.count']}"

    _, figure = cells("merge.window", "merge.count", change=determined)
    assert [axes.get_title() for axes in figure.axes] == [""]


def test_the_index_has_the_primary_claims_of_all(tmp_path, headline, capsys):
    shutil.copytree(headline, tmp_path / "headline" / "small")
    samples.write(tmp_path / "later" / "small", claims=[])
    samples.write(tmp_path / "archive" / "2026-11" / "old" / "small")  # too deep
    (tmp_path / "about.md").write_text("It **works**.\n\nBut not always:\nsee [why](later/small/README.md).\n")
    assert cli.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path}/REPORT.md\n"
    text = (tmp_path / "REPORT.md").read_text()
    assert text.startswith(
        "# Results\n\nIt **works**.\n\nBut not always: see [why](later/small/README.md).\n\n## Primary claims\n"
    )
    assert "| [Headline: what it shows](headline/small/README.md) | small | 3 | 3 | 3 | 1 | 1 | 2 |" in text
    assert "| [Later: what it shows](later/small/README.md) | small | 3 | 3 | 0 | 0 | 0 | 0 |" in text
    assert text.count("[headline/small](headline/small/README.md) |") == 4 and "archive" not in text
    assert "\n## Headline: what it shows (small)\n" in text and "[the data](headline/small/claims.json)" in text
    source = (tmp_path / "report.html").read_text()
    assert "<p>It <strong>works</strong>.</p>" in source
    assert 'see <a href="later/small/index.html">why</a>' in source
    assert read(tmp_path / "report.html").loads == []


def test_a_folder_with_claims_has_its_own_page_made(tmp_path, capsys):
    folder = samples.write(tmp_path / "mine" / "small", claims=[])
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"report: {folder}/README.md\n" and (folder / "index.html").is_file()
    assert not (tmp_path / "REPORT.md").exists()


@pytest.mark.parametrize(
    "change, arguments, said",
    [
        (lambda file: file.unlink(), [], "is not a run directory: it has no config.json"),
        (lambda file: file.write_text("[1"), [], "claims.json: cannot be read as JSON"),
        (lambda file: file.write_text("[1]"), [], "claims.json has no 'arms'; run its sweep again"),
        (lambda file: file.write_text(json.dumps({"arms": []})), [], "has no 'claims'; run its sweep again"),
        (lambda file: None, ["--learned"], "--learned goes with runs, but"),
        (lambda file: None, ["elsewhere"], "a second folder goes with runs, but"),
        (lambda file: None, ["--output=x"], "--output goes with runs, but"),
    ],
)
def test_what_cannot_be_rendered_is_one_line(tmp_path, capsys, change, arguments, said):
    change(samples.write(tmp_path / "mine" / "small") / "claims.json")
    (tmp_path / "REPORT.md").write_text("old")
    assert cli.main(["report", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("wsm: ") and error.count("\n") == 1
    assert (tmp_path / "REPORT.md").read_text() == "old"


def test_text_from_data_is_text():
    table = Table(["a|b", "<b>"], [["x|y\nz", "1 < 2"]])
    page = Page("T & <i>", [Section("", [table]), Section("left out", [])])
    assert document.render(page, "md") == "# T & <i>\n\n| a\\|b | <b> |\n| :-- | --: |\n| x\\|y z | 1 < 2 |\n"
    source = document.render(page, "html")
    assert "<h1>T &amp; &lt;i&gt;</h1>" in source and "1 &lt; 2</td>" in source and "left out" not in source


def test_claims_of_a_folder_are_found_one_or_two_levels_down(tmp_path):
    for name in ("a", "b/small", "c/d/small"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "claims.json").write_text("{}")
    assert index_page.folders(tmp_path) == [tmp_path / "a", tmp_path / "b" / "small"]
    assert math.isnan(experiment_page.effect(samples.CLAIMS[0] | {"interval": None}, "x").low)


def test_a_panel_that_is_left_over_is_not_drawn():
    cells = {(panel, "20", x): Effect(panel, 0.1, verdict="open") for panel in "abc" for x in "12345"}
    axes = heat_map(cells, rows="interval", columns="window", unit="bits per byte").axes
    assert [each.get_visible() for each in axes] == [True, True, True, False]
