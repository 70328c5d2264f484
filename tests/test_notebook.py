"""The notebook runs from top to bottom, in a kernel of its own, on the demo's run made short."""

from pathlib import Path

import nbclient
import nbformat
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("demo")]  # one demo run serves several files
NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "merging.ipynb"


def outputs(notebook, kind):
    return [output for cell in notebook.cells for output in cell.get("outputs", ()) if output["output_type"] == kind]


def test_the_notebook_runs(demo_run, monkeypatch):
    monkeypatch.setenv("WSM_RUN", str(demo_run / "constant"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    printed = "".join(output["text"] for output in outputs(notebook, "stream") if output["name"] == "stdout")
    assert "40 checkpoints, one every 1 steps" in printed and "best merge" in printed
    assert len(outputs(notebook, "display_data")) == 2  # the two figures


def test_what_is_shown_was_run_in_order():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert len(notebook.cells) == 10
    counts = [cell["execution_count"] for cell in notebook.cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not outputs(notebook, "error")
