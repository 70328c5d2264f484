"""``wsm plan`` as it is typed: what it prints, and what it refuses before anything is traced."""

import json
from pathlib import Path

import jax
import pytest

from wsm_jax import cli
from wsm_jax.cli import plan
from wsm_jax.parallel import topologies

ROOT = Path(__file__).parent.parent.parent
TINY = f"--config={ROOT / 'configs' / 'tiny.py'}"
SMALL = [TINY, "--config.model.layers=2", "--config.model.d_model=64"]
# Of the contract: others read these.
KEYS = {
    "parameters", "active_parameters", "bytes_per_device", "hbm_per_device", "fits", "flops_per_step",
    "roofline_step_seconds",
}  # fmt: skip
MORE = {
    "topology", "chips", "mesh", "how", "bytes_split", "over", "collective_bytes", "busy_seconds", "bound_by",
    "mfu_bound", "tokens_per_day", "days", "disk_bytes", "disk_bandwidth", "save_seconds", "merged_checkpoints",
    "merge_seconds", "chip_source",
}  # fmt: skip


def test_the_keys_of_the_contract(capsys):
    assert cli.main(["plan", *SMALL, "--topology=v5e:2x2", "--fast", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == KEYS | MORE
    assert found["fits"] and found["how"] == "estimated from shapes" and found["chips"] == 4
    assert found["bytes_per_device"] == sum(found["bytes_split"].values())
    assert found["active_parameters"] == found["parameters"] == 2 * 12 * 64 * 64 + 5 * 64 + (4096 + 256) * 64


def test_what_does_not_fit_says_by_how_much_and_what_helps(capsys):
    big = [*SMALL, "--config.batch_size=65536", "--config.model.remat=full", "--topology=h100:8"]
    assert cli.main(["plan", *big, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["fits"] and found["over"] == pytest.approx(found["bytes_per_device"] - 0.95 * 80e9, abs=1)
    saved = {knob["flags"]: knob["saved"] for knob in found["knobs"]}
    assert saved["--config.batch_size=32768"] > 0.3 * found["bytes_per_device"]
    assert saved["--config.mesh.data=1 --config.mesh.fsdp=8"] < found["bytes_split"]["state"]
    shown = plan.lines({**found, "over": 28.9e9}, "note: …")
    assert shown[0] == "does not fit: 28.9 GB a chip over 95% of 80 GB" and shown[-1] == "note: …"
    assert any(line.startswith("  --config.model.loss_blocks=16: saves") for line in shown)


@pytest.mark.integration
def test_the_search_names_three_meshes_and_the_best_as_flags(capsys):
    assert cli.main(["plan", *SMALL, "--topology=v5e:2x2", "--search"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("│ ") >= 3 and "--config.mesh.data=" in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--topology=v9:2x2"], "unknown topology 'v9:2x2'; known, with the largest shape: v5e:16x16, v5p:16x16x24"),
        (["--topology=v5e:2x2", "--config.mesh.fsdp=8"], "mesh.fsdp=8 takes 8 devices, which is not a"),
        (["--topology=v5e:4x4"], "batch_size=8 is not a multiple of accumulate x devices = 1 x 16"),
        (["--topology=v5e:2x2", "--disk_bandwidth=0"], "--disk_bandwidth=0.0 must be positive, in GB/s"),
        (["--topology=v5e:2x4", "--config.mesh.tensor=8", "--config.model.vocab_size=4100"], "no multiple of"),
        (["--topology=v5e:2x2", "--config.duration=0steps"], "duration='0steps' is 0 steps; it must be at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments, line, capsys, monkeypatch):
    monkeypatch.setattr(jax, "make_jaxpr", None)  # nothing may get as far
    assert cli.main(["plan", *SMALL, "--fast", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and line in said.err


def test_where_nothing_can_be_compiled_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(topologies, "_has_libtpu", lambda: False)
    assert cli.main(["plan", *SMALL, "--topology=v5e:2x2"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert 'in an environment of Python 3.12 or newer pip install "wsm-jax[train,tpu]"' in said and "--fast" in said
