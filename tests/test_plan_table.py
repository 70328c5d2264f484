"""The committed table of plans, and the recipes that it tries."""

from experiments import plan_table
from tests.runs import ROOT
from wsm_jax.io.files import read_jsonl

RESULTS = ROOT / "results" / "plan"


def test_the_page_is_made_of_the_records_and_every_cell_says_how():
    records = read_jsonl(RESULTS / "plans.jsonl")
    assert plan_table.page(records) == (RESULTS / "README.md").read_text()
    found = {(record["preset"], record["topology"]) for record in records}
    names = {record["preset"] for record in records}
    assert names <= {*plan_table.presets()} and found == {(n, t) for n in names for t in plan_table.TOPOLOGIES}
    for record in records:
        done = record.get("compiled")
        assert done is None or done["how"].startswith("compiled by jax")
        assert "refused" in record or record["figures"]["how"] == "estimated from shapes"
    assert any(record.get("compiled") for record in records)


def test_the_smallest_slice_is_that_of_the_fewest_chips():
    def cell(topology: str, chips: int, room: int, fits: bool) -> plan_table.Record:
        return {
            "preset": "p",
            "topology": topology,
            "figures": {"chips": chips, "hbm_per_device": room, "fits": fits},
        }

    cells = [cell("v5e:2x2", 4, 16, False), cell("v6e:2x2", 4, 32, True), cell("v5p:2x2x1", 4, 95, True)]
    assert plan_table.smallest([*cells, cell("h100:1", 1, 80, True)]) == [cells[1]]
    cells[1]["compiled"] = {"fits": False}  # the estimate was too low
    assert plan_table.smallest(cells) == [cells[2]]


def test_meshes_are_tried_from_the_finest():
    assert [mesh["mesh.fsdp"] for mesh in plan_table.meshes("gpt2_small", 8)] == [8, 4, 2]
