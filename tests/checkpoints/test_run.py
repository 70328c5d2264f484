"""A run directory: what it holds, refusing another configuration, files that survive a crash."""

import json
import re
from typing import Any

import numpy as np
import pytest

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.checkpoints.plan import plan
from wsm_jax.checkpoints.run import Run, begin, check_same
from wsm_jax.config import (
    CheckpointConfig,
    Config,
    EvaluationConfig,
    ModelConfig,
    config_id,
    flat_fields,
    to_dict,
)
from wsm_jax.errors import UsageError
from wsm_jax.io import hashes, machine
from wsm_jax.io.files import write_json, write_jsonl

FACTS = {"branch_from": None, "branch_step": None, "branch_points": [], "data_hash": "abc"}
BEGUN = {**FACTS, "hashes": hashes.KIND}  # run.json of a run that is begun today


def settings(**fields: Any) -> Config:
    """1,000 steps of 8 x 16 tokens."""
    usual: dict[str, Any] = {"duration": "1000steps", "batch_size": 8, "model": ModelConfig(context=16)}
    return Config(**usual | fields)


@pytest.fixture
def folder(tmp_path):
    """A run that has saved something."""
    begin(tmp_path / "runs" / "one", settings(), FACTS)
    orbax.save_tree(run_lib.merge_stream(tmp_path / "runs" / "one") / "20", {"w": np.ones(2, np.float32)})
    return tmp_path / "runs" / "one"


def test_a_new_run_holds_its_configuration_and_facts(folder):
    run = Run(folder)
    assert run.config == settings()
    assert run.facts == BEGUN
    assert run.plan == plan(settings())
    assert run.resume_stream == folder / "checkpoints" / "resume"
    assert run.merge_stream == folder / "checkpoints" / "merge"
    assert run.merged("linear-4") == folder / "merged" / "linear-4"
    assert run.metrics() == []


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("run.json", {}, "is not what wsm train writes, an object with data_hash and branch_step"),
        ("run.json", [FACTS], "is not what wsm train writes"),
        ("run.json", None, "is not what wsm train writes"),
        ("run.json", {**FACTS, "branch_step": "20"}, "branch_step is a str"),
        ("run.json", {**FACTS, "data": []}, "data is a list"),
        ("config.json", {}, "duration is missing"),
        ("config.json", [], "config is []"),
        ("config.json", {**to_dict(settings()), "batch_size": "8"}, "batch_size is '8'; it must be a whole number"),
        ("config.json", {**to_dict(settings()), "model": None}, "config.model is None, not a group"),
    ],
)
def test_a_file_of_a_run_that_wsm_did_not_write_is_named(folder, file, content, words):
    write_json(folder / file, content)
    for read in (lambda: Run(folder), lambda: run_lib.resumed_plan(folder, settings())):
        with pytest.raises(UsageError, match=rf"^{folder}/{file}.*{re.escape(words)}"):
            read()


def test_a_fact_that_is_not_there_is_named_with_its_file_wherever_it_is_asked_for(folder):
    write_json(folder / "run.json", {**FACTS, "data": {"stable": [{}]}})
    facts = Run(folder).facts
    with pytest.raises(UsageError, match=rf"{folder}/run\.json has no 'parameters'"):
        _ = facts["parameters"]
    with pytest.raises(UsageError, match=rf"{folder}/run\.json.data.stable\[0\] has no 'path'"):
        _ = facts["data"]["stable"][0]["path"]
    assert facts.get("parameters") is None


@pytest.mark.parametrize("record", [{}, {"kind": "train"}, {"kind": "train", "step": "3"}, {"kind": 1, "step": 3}])
def test_a_record_without_kind_or_step_is_named(folder, record):
    write_jsonl(folder / "metrics.jsonl", [{"kind": "train", "step": 1}, record])
    with pytest.raises(UsageError, match=rf"{folder}/metrics\.jsonl: record 2 has no kind and step"):
        Run(folder).metrics()


def test_a_run_is_identified_by_what_it_recorded_or_what_it_was_configured_to_do(folder):
    assert Run(folder).config_id == config_id(settings())  # an earlier version recorded none
    write_json(folder / "run.json", {**FACTS, "config_id": "0123456789ab"})
    assert Run(folder).config_id == "0123456789ab"


def test_a_folder_without_configuration_is_no_run(tmp_path):
    with pytest.raises(UsageError, match=rf"{tmp_path} is not a run directory"):
        Run(tmp_path)


def test_a_crash_between_the_two_files_leaves_no_run_and_the_next_start_makes_one(tmp_path, monkeypatch):
    def crash_at_config(path, value):
        if path.name == "config.json":
            raise KeyboardInterrupt
        write_json(path, value)

    monkeypatch.setattr(run_lib, "write_json", crash_at_config)
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path, settings(), {**FACTS, "data_hash": "old"})
    monkeypatch.undo()
    begin(tmp_path, settings(seed=1), FACTS)
    assert Run(tmp_path).config.seed == 1
    assert Run(tmp_path).facts == BEGUN


def test_starting_again_with_the_same_configuration_keeps_the_facts(folder):
    begin(folder, settings(), {**FACTS, "command": "another"})
    assert Run(folder).facts == BEGUN


def test_a_run_that_saved_nothing_is_begun_anew_with_whatever_configuration(tmp_path):
    """Or a first command that was refused late would lock the folder to its mistake."""
    begin(tmp_path, settings(), FACTS)
    begin(tmp_path, settings(seed=1), {**FACTS, "data_hash": "another"})
    assert (Run(tmp_path).config.seed, Run(tmp_path).facts["data_hash"]) == (1, "another")


@pytest.mark.parametrize("what", ["merge", "records"])
def test_a_run_without_checkpoints_is_still_one_that_was_made(tmp_path, what):
    """They are what is removed to free a disk; its records and merges are of its configuration."""
    begin(tmp_path, settings(), FACTS)
    if what == "merge":
        (tmp_path / "merged" / "linear-4x10-at-100").mkdir(parents=True)
    else:
        (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 10, "loss": 3.0}\n')
    with pytest.raises(UsageError, match="was made with seed=0, now it is 1"):
        begin(tmp_path, settings(seed=1), FACTS)


def test_states_that_are_kept_for_ever_are_so_whatever_a_later_command_says(folder):
    for now, kept in (("50steps", [50]), ("", [50]), ("20steps,70steps", [20, 50, 70])):
        found = run_lib.resumed_plan(folder, settings(checkpoint=CheckpointConfig(branch_points=now)))
        begin(folder, settings(), {**FACTS, "branch_points": list(found.branch_points)})
        assert list(found.branch_points) == Run(folder).facts["branch_points"] == kept
        assert set(kept) <= set(found.resume_steps())  # those that are still to come are saved


def test_the_branch_points_of_a_run_of_an_earlier_version_are_those_of_its_configuration(folder):
    write_json(folder / "config.json", to_dict(settings(checkpoint=CheckpointConfig(branch_points="30steps"))))
    write_json(folder / "run.json", {name: value for name, value in FACTS.items() if name != "branch_points"})
    assert run_lib.resumed_plan(folder, settings(checkpoint=CheckpointConfig(branch_points=""))).branch_points == (30,)


def test_one_process_at_a_time_holds_a_run(tmp_path):
    with run_lib.claimed(tmp_path / "one"):
        with pytest.raises(UsageError, match=rf"{tmp_path}/one is being trained by another process; wait"):
            with run_lib.claimed(tmp_path / "one"):
                pass
        with run_lib.claimed(tmp_path / "two"):
            pass
    with run_lib.claimed(tmp_path / "one"):
        pass


def test_another_configuration_is_refused_with_the_field_and_both_values(folder):
    with pytest.raises(UsageError, match=rf"{folder} was made with seed=0, now it is 1;.*--run.*--branch_from"):
        begin(folder, settings(seed=1), FACTS)
    assert Run(folder).config.seed == 0


FREE = {
    "log.interval",
    "log.tensorboard",
    "log.wandb",
    "evaluation.interval",
    "evaluation.tokens",
    "evaluation.batch_size",
    "data.workers",
    "data.store",
    "checkpoint.resume_interval",
    "checkpoint.resume_keep",
    "checkpoint.branch_points",
    "preview.curves",
    "preview.windows",
    "preview.averages",
    "averaging.host",
    "mesh.data",
    "mesh.fsdp",
    "mesh.expert",
    "mesh.tensor",
}


def test_exactly_the_fields_that_touch_neither_parameters_nor_merges_may_change(folder):
    refused = set()
    for name, (value, _) in flat_fields(settings()).items():
        config = settings()
        group = getattr(config, name.split(".")[0]) if "." in name else config
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else value + "x"
        setattr(group, name.split(".")[-1], other)
        try:
            check_same(folder, config, FACTS)
        except UsageError as error:
            assert f"was made with {name}={value!r}, now it is {other!r}" in str(error)
            refused.add(name)
    assert refused == set(flat_fields(settings())) - FREE


def test_a_setting_that_may_change_is_kept_as_it_is_now(folder):
    config = settings(evaluation=EvaluationConfig(tokens=77))
    begin(folder, config, FACTS)
    assert run_lib.Run(folder).config.evaluation.tokens == 77
    assert run_lib.Run(folder).facts == BEGUN


@pytest.mark.parametrize("what", ["merge", "records"])
def test_training_does_not_begin_long_before_what_is_there(folder, what):
    """Full states are due at 300 and 600; a kill may take the one at 300 while it is written, until 600."""
    config = settings(checkpoint=CheckpointConfig(resume_interval="300steps"))
    begin(folder, config, FACTS)
    for step, refused in ((600, False), (620, True)):
        if what == "merge":
            orbax.save_tree(run_lib.merge_stream(folder) / f"{step}", {"w": np.ones(2, np.float32)})
        else:
            (folder / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": step}) + "\n")
        if not refused:
            run_lib.check_states(folder, config)
            continue
        with pytest.raises(UsageError, match=r"came to step 620, but the newest full state that it has is of step 0"):
            run_lib.check_states(folder, config)
    orbax.save_tree(run_lib.resume_stream(folder) / "300", {"w": np.ones(2, np.float32)}, item="params")
    run_lib.check_states(folder, config)


@pytest.mark.parametrize(
    ("name", "value"), [("branch_from", "runs/a@500"), ("branch_step", 500), ("data_hash", "another")]
)
def test_another_branch_or_other_data_is_refused(folder, name, value):
    with pytest.raises(UsageError, match=f"{name}={FACTS[name]!r}, now it is {value!r}"):
        check_same(folder, settings(), {**FACTS, name: value})


def test_a_parent_that_was_moved_is_the_same_parent(folder, tmp_path):
    (tmp_path / "parent").mkdir()
    write_json(folder / "run.json", {**FACTS, "branch_from": f"{tmp_path}/parent@50", "branch_step": 50})
    moved = {**FACTS, "branch_from": "/elsewhere/parent@50", "branch_step": 50}
    with pytest.raises(UsageError, match="branch_from"):
        check_same(folder, settings(), moved)
    (tmp_path / "parent").rmdir()
    check_same(folder, settings(), moved)
    with pytest.raises(UsageError, match="branch_step"):
        check_same(folder, settings(), {**moved, "branch_step": 60})


def test_a_parent_by_another_way_to_write_its_path_is_the_same_parent(folder, tmp_path):
    (tmp_path / "parent").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "parent")
    write_json(folder / "run.json", {**FACTS, "branch_from": f"{tmp_path}/parent@50"})
    for way in ("runs/../parent", "link"):
        check_same(folder, settings(), {**FACTS, "branch_from": f"{tmp_path}/{way}@50"})
    with pytest.raises(UsageError, match="branch_from"):
        check_same(folder, settings(), {**FACTS, "branch_from": f"{tmp_path}/parent@60"})


def test_the_folder_above_a_run_names_the_run(folder):
    with pytest.raises(UsageError, match=rf"has no config\.json \(did you mean {folder}\?\)"):
        Run(folder.parent)


def test_a_folder_of_other_checkpoints_is_merged_without_run(tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    with pytest.raises(UsageError, match=rf"checkpoints of another trainer: wsm merge {tmp_path} --count=N"):
        Run(tmp_path)


def test_provenance_names_versions_machine_and_command():
    found = machine.environment()
    assert set(found["versions"]) == set(machine.LIBRARIES)
    assert found["platform"] == "cpu"
    assert json.loads(json.dumps(found)) == found


def test_records_come_by_kind(folder):
    records = [{"kind": "train", "step": 1, "loss": 2.5}, {"kind": "validation", "step": 1, "loss": 2.0}]
    write_jsonl(folder / "metrics.jsonl", records)
    assert Run(folder).metrics("validation") == records[1:]
    assert Run(folder).metrics() == records
