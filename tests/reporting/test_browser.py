"""Pages in a headless Chromium, light and dark, wide and narrow: ``make test-browser``, which installs it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from tests.reporting import samples, test_plots
from wsm_jax.reporting import document, experiment_page, index_page
from wsm_jax.reporting.document import Page, Picture, Section, Table

pytestmark = pytest.mark.browser
LOOK = Path(__file__).parent.parent / "browser" / "look.mjs"
NUMBERS = ["−0.02", "+0.1 [0, 1]", "1,024", "< 0.001", "–", "16"]
ORDERED = ["−0.02", "< 0.001", "+0.1 [0, 1]", "16", "1,024", "–"]


def looked_at(page: Path, folder: Path) -> dict[str, Any]:
    """What look.mjs finds on a page; its screenshots are in ``folder``."""
    command = ["node", str(LOOK), str(page), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def all_figures(root: Path) -> Path:
    """A page with every kind of figure and a table whose order is known."""
    pictures = [Picture(name.replace(" ", "_"), build(), f"The {name}.") for name, build in test_plots.BUILD.items()]
    table = Table(["name", "value"], [[f"row {place}", text] for place, text in enumerate(NUMBERS)])
    long = "a word of " + 80 * "great" + " length and `" + 80 * "code" + "`"
    document.write(Page("Figures", [Section("All", [long, table, *pictures])]), root, "page.md", "page.html")
    return root / "page.html"


def experiment(root: Path) -> Path:
    """The page of a sweep over three axes with claims."""
    folder = samples.write(root / "sweep" / "small", samples.points("merge.window", "merge.count", "merge.curve"))
    experiment_page.write(folder)
    return folder / "index.html"


def index(root: Path) -> Path:
    """The index of two experiments."""
    for name in ("one", "two"):
        samples.write(root / name / "small")
    index_page.write(root)
    return root / "report.html"


@pytest.mark.parametrize("make, figures", [(all_figures, len(test_plots.BUILD)), (experiment, 3), (index, 2)])
def test_a_page_in_a_browser(tmp_path, make, figures):
    page = make(tmp_path)
    found = looked_at(page, tmp_path)
    assert found["errors"] == []
    assert {*found["requests"]} == {page.as_uri()}
    assert {view["figures"] for view in found["views"].values()} == {figures}
    for name, view in found["views"].items():
        assert view["page"] == view["window"], name  # nothing sticks out
        scheme, dark = name.split("-")[0], sum(json.loads(f"[{view['ground'][4:-1]}]")) < 150
        assert dark == (scheme == "dark"), name
        brightness = matplotlib.image.imread(tmp_path / f"{name}.png")[..., :3].mean()
        assert brightness < 0.35 if scheme == "dark" else brightness > 0.8, name
    first, second, third = found["themes"]
    assert first == third != second
    for table in found["tables"]:
        assert sorted(table["up"]) == sorted(table["down"])
    if make is all_figures:
        (column,) = [table for table in found["tables"] if table["column"] == "value"]
        assert column["up"] == ORDERED and column["down"] == [*ORDERED[-2::-1], "–"]
