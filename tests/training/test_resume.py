"""A run that is killed or told to stop, and goes on: the same bits as one that never was."""

import os
import random
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from tests.runs import (
    BRANCH,
    RESUME,
    STEPS,
    assert_same_bits,
    assert_same_checkpoints,
    assert_whole,
    ended,
    recorded_step,
    records,
    saves_under_way,
    spans,
    stop_when,
)
from wsm_jax import Run, UsageError
from wsm_jax.checkpoints import orbax
from wsm_jax.config import to_dict
from wsm_jax.io.files import write_json

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.xdist_group("train")


# Devices, and how they are laid out.
MESHES = {1: (1, {}), 8: (8, {}), "sharded": (4, {"mesh__fsdp": 2, "mesh__tensor": 2})}
ONCE = (1, 1)  # devices and kills
OFTEN = [pytest.param(*often, marks=pytest.mark.integration) for often in ((1, 3), (8, 1), ("sharded", 3))]


def newest_state(directory):
    return max(orbax.complete_steps(directory / "checkpoints" / "resume"), default=0)


def check_after_kill(directory, status):
    """A kill loses at most what came after the last save, and that was at most one interval and one save ago.

    Returns whether the run had begun, so that there was something to check.
    """
    assert status == -signal.SIGKILL
    begun = (directory / "config.json").exists() and (directory / "metrics.jsonl").exists()
    if begun:
        newest = assert_whole(Run(directory))
        assert newest >= recorded_step(directory) // RESUME * RESUME - RESUME
    return begun


@pytest.fixture(scope="module")
def reference_8(tiny):
    return tiny.finish("reference-8", devices=8)


@pytest.fixture(scope="module")
def reference_sharded(tiny):
    devices, fields = MESHES["sharded"]
    return tiny.finish("reference-sharded", devices=devices, **fields)


@pytest.mark.parametrize(("kind", "kills"), [ONCE, *OFTEN])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(tiny, request, kind, kills):
    uninterrupted = request.getfixturevalue("reference" if kind == 1 else f"reference_{kind}")
    devices, fields = MESHES[kind]
    name = f"killed-{kind}-{kills}"
    directory = tiny.folder / name
    resume = directory / "checkpoints" / "resume"
    anywhere = random.Random(devices).randint(15, 30)
    # Before the first full state, at any time, and while one is being saved: the last of them, or all.
    moments = [
        lambda: recorded_step(directory) >= 6,
        lambda: recorded_step(directory) >= anywhere,
        lambda: bool(saves_under_way(resume)) and newest_state(directory) >= BRANCH,
    ][-kills:]
    starts = [0]
    for moment in moments:
        status, _ = stop_when(tiny.start(name, devices=devices, **fields), moment, signal.SIGKILL)
        assert check_after_kill(directory, status)
        starts.append(newest_state(directory))
    assert saves_under_way(resume)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # a record that the kill cut in two
    run = tiny.finish(name, devices=devices, **fields)
    assert starts[-1] >= BRANCH
    assert run.metrics("start")[-1]["step"] == starts[-1]
    assert_same_checkpoints(uninterrupted, run)
    assert records(run) == records(uninterrupted)
    leftovers = [name for stream in (resume, run.merge_stream) for name in os.listdir(stream) if not name.isdigit()]
    assert leftovers == []


@pytest.mark.integration
def test_eight_devices_train_as_one_does(reference, reference_8):
    """Sums over eight parts round otherwise, and Adam makes that grow; so close, then less close."""
    first, last = ([r.metrics("train")[i]["loss"] for r in (reference, reference_8)] for i in (0, -1))
    assert first[0] == pytest.approx(first[1], rel=1e-6)
    assert last[0] == pytest.approx(last[1], rel=1e-4)
    for step, tolerance in ((3, 1e-5), (STEPS, 1e-3)):
        one, eight = (orbax.load_tree(r.merge_stream / str(step)) for r in (reference, reference_8))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.integration
def test_sigterm_and_sigint_save_at_once_and_the_same_command_goes_on(tiny, reference):
    directory = tiny.folder / "stopped"
    stops = [0]
    for number in (signal.SIGTERM, signal.SIGINT):
        process, before = tiny.start("stopped"), stops[-1]
        status, output = stop_when(process, lambda before=before: recorded_step(directory) >= before + 4, number)
        assert status == 75
        assert re.fullmatch(r"wsm: stopped at step (\d+) of 48; the same command again goes on from there\n", output)
        stops.append(int(output.split()[4]))
        assert stops[-2] < stops[-1] < STEPS
        assert assert_whole(Run(directory)) == stops[-1]  # the state of the very step
        assert recorded_step(directory) == stops[-1]
    run = tiny.finish("stopped")
    assert [record["step"] for record in run.metrics("start")] == stops
    for step in (BRANCH, STEPS):
        for item in ("params", "opt_state"):
            expected, got = (orbax.load_tree(r.resume_stream / str(step), item) for r in (reference, run))
            assert_same_bits(expected, got, (step, item))
    for step in run.plan.merge_steps():
        expected, got = (orbax.load_tree(r.merge_stream / str(step)) for r in (reference, run))
        assert_same_bits(expected, got, step)
    # A stop cuts the record that it falls into in two, whose means are over fewer steps.
    parts = spans(run)
    for first, last, loss in spans(reference):
        inside = [(a, b, mean) for a, b, mean in parts if first <= a and b <= last]
        assert sum((b - a + 1) * mean for a, b, mean in inside) == pytest.approx((last - first + 1) * loss, rel=1e-12)
    assert run.metrics("validation") == reference.metrics("validation")


@pytest.mark.integration
def test_the_same_command_on_a_run_that_is_done_changes_nothing(tiny, reference):
    before = {path: path.stat().st_mtime_ns for path in reference.path.rglob("*") if path.is_file()}
    tiny.run("reference")
    assert {path: path.stat().st_mtime_ns for path in reference.path.rglob("*") if path.is_file()} == before


@pytest.mark.integration
def test_a_run_that_keeps_few_merge_checkpoints_goes_on_after_a_kill(tiny, reference):
    """A kill finds one more than are kept, and the first that is saved then pushes it out, to be saved again itself."""
    run = tiny.run("few", checkpoint__merge_keep=2)
    assert orbax.complete_steps(run.merge_stream) == [STEPS - 3, STEPS]
    shutil.rmtree(run.resume_stream / str(STEPS))
    shutil.copytree(reference.merge_stream / str(STEPS - 6), run.merge_stream / str(STEPS - 6))
    run = tiny.run("few", checkpoint__merge_keep=2)
    assert run.metrics("start")[-1]["step"] == STEPS - RESUME
    assert orbax.complete_steps(run.merge_stream) == [STEPS - 3, STEPS]
    for step in (STEPS - 3, STEPS):
        expected, got = (orbax.load_tree(r.merge_stream / str(step)) for r in (reference, run))
        assert_same_bits(expected, got, step)


def test_a_state_that_cannot_be_loaded_costs_no_merge_checkpoint(tiny, reference):
    """The newest state goes, and the one before it is damaged: what was saved after that one stays there."""
    directory = tiny.folder / "damaged"
    shutil.copytree(reference.path, directory)
    run = Run(directory)
    shutil.rmtree(run.resume_stream / str(STEPS))
    for file in (run.resume_stream / str(STEPS - RESUME)).rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            os.truncate(file, file.stat().st_size // 2)
    before = orbax.complete_steps(run.merge_stream)
    with pytest.raises(
        UsageError, match=rf"resume/{STEPS - RESUME}/\S+ is damaged; the next older state is {BRANCH}: remove"
    ):
        tiny.run("damaged")
    assert orbax.complete_steps(run.merge_stream) == before
    assert run.metrics() == reference.metrics()


@pytest.mark.integration
@pytest.mark.parametrize("field", ["resume_interval", "branch_points"])
def test_other_states_are_asked_for_after_a_kill_and_it_is_killed_again_at_once(tiny, reference, field):
    """So a run is left: merge checkpoints up to the next state of before, and the new settings in config.json."""
    directory = tiny.folder / f"changed-{field}"
    shutil.copytree(reference.path, directory)
    run = Run(directory)
    shutil.rmtree(run.resume_stream / str(STEPS))
    shutil.rmtree(run.merge_stream / str(STEPS))
    changed = {f"checkpoint__{field}": "3steps" if field == "resume_interval" else f"{BRANCH}steps,38steps,40steps"}
    write_json(directory / "config.json", to_dict(tiny.config(**changed)))
    resumed = tiny.run(directory.name, **changed)
    assert resumed.metrics("start")[-1]["step"] == STEPS - RESUME
    assert_same_checkpoints(reference, tiny.run(directory.name), after=STEPS - 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MESHES)
def test_twenty_kills_at_random(tiny, request, kind):
    """At random times from the start of the process on: while importing, compiling, training, saving."""
    uninterrupted = request.getfixturevalue("reference" if kind == 1 else f"reference_{kind}")
    devices, fields = MESHES[kind]
    chance = random.Random(devices)
    name = f"twenty-{kind}"
    directory = tiny.folder / name
    kills = 0
    while kills < 20:
        process = tiny.start(name, devices=devices, **fields)
        before = recorded_step(directory)
        if kills % 3:  # a random time after training went on
            goal = time.monotonic() + 60
            while process.poll() is None and recorded_step(directory) == before and time.monotonic() < goal:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.3))
        else:
            time.sleep(chance.uniform(0, 8))
        process.kill()
        status, output = ended(process)
        if status == 0:  # it was quicker: all over again
            assert output == ""
            assert_same_checkpoints(uninterrupted, Run(directory))
            assert records(Run(directory)) == records(uninterrupted)
            directory = directory.with_name(f"{name}-{kills}")
            name = directory.name
            continue
        assert check_after_kill(directory, status) or kills % 3 == 0
        kills += 1
    run = tiny.finish(name, devices=devices, **fields)
    assert_same_checkpoints(uninterrupted, run)
    assert records(run) == records(uninterrupted)
