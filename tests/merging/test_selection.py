"""Which checkpoints a merge takes: the shape of a window, one window, a sliding one, a run that is still written."""

import json
import os
import re
import shutil
import time

import pytest

from tests.runs import MERGE, STEPS, assert_same_bits, ended
from wsm_jax import Run, UsageError, cli, merge_checkpoints, merge_weights
from wsm_jax.checkpoints import orbax
from wsm_jax.merging.selection import Window, default_name, select, series, window_shape
from wsm_jax.training.branch import parse_branch

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.xdist_group("train")


# --- window = count x interval ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ({"count": 4}, (4, 3)),
        ({"count": 4, "interval": 6}, (4, 6)),
        ({"window": "12steps"}, (4, 3)),
        ({"window": "1.536ktok"}, (4, 3)),  # 128 tokens a step
        ({"window": "1500tok"}, (4, 3)),  # rounded up to whole steps
        ({"window": "0.25run"}, (4, 3)),
        ({"window": "0.26run"}, (4, 3)),  # rounded to the nearest whole step
        ({"window": "24steps", "interval": 6}, (4, 6)),
        ({"window": "24steps", "count": 4}, (4, 6)),
        ({"window": "24steps", "count": 4, "interval": 6}, (4, 6)),
        ({"window": "3steps"}, (1, 3)),
    ],
)
def test_two_of_window_count_and_interval_decide_the_third(reference, given, shape):
    assert reference.plan.merge_interval == MERGE == 3
    assert window_shape(reference, **given) == shape


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--count=N or --window=W"),
        ({"interval": 3}, "--count=N or --window=W"),
        ({"count": 0}, "count must be a whole number of at least 1, got 0"),
        ({"count": 4, "interval": -3}, "interval must be a whole number of at least 1, got -3"),
        ({"window": "12"}, "window='12' is not a duration"),
        ({"window": "13steps"}, "is 13 steps, no multiple of the interval of 3 steps; 12steps is"),
        ({"window": "14steps"}, "15steps is"),
        ({"window": "1steps"}, "is 1 steps, no multiple of the interval of 3 steps; 3steps is"),
        ({"window": "0steps"}, "is 0 steps, no multiple of the interval of 3 steps; 3steps is"),
        ({"window": "0.25run", "interval": 9}, "is 12 steps, no multiple of the interval of 9 steps; 9steps is"),
        ({"window": "1.6ktok"}, "is 13 steps, no multiple of the interval of 3 steps; 12steps is"),
        ({"window": "20steps", "count": 4}, "no multiple of 4 x the stream's interval of 3 steps; 24steps is"),
        ({"window": "12steps", "count": 4, "interval": 6}, "but count=4 x interval=6 is 24; give two of the three"),
    ],
)
def test_a_window_that_does_not_come_out(reference, given, message):
    with pytest.raises(UsageError, match=message):
        window_shape(reference, **given)


# --- one window ------------------------------------------------------------------------------------------------------


def test_a_window_ends_at_the_newest_checkpoint_or_where_it_is_told_to(reference):
    window = select(reference, 4)
    assert window == Window(tuple(reference.merge_stream / s for s in ("39", "42", "45", "48")), (39, 42, 45, 48), 3)
    assert select(reference, 3, last_step=42, interval=12).steps == (18, 30, 42)
    assert select(reference, 1).steps == (48,)
    assert default_name("linear", window) == "linear-4x3-at-48"
    assert default_name("ema:0.9", window) == "ema0.9-4x3-at-48"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 17}, "17 every 3 steps up to 48 begin at step 0, before there are any; it has 16, from 3 to 48"),
        ({"count": 3, "last_step": 50}, "no checkpoint at step 44"),
        ({"count": 3, "interval": 4}, "no checkpoint at step 40.*saved every 3 steps"),
        ({"count": 0}, "count must be a whole number of at least 1, got 0"),
        ({"count": 10**18}, f"begin at step -{3 * 10**18 - 51}, before there are any"),
        ({"count": 2, "interval": 10**18}, "begin at step -"),
        ({"count": 2, "last_step": 10**18}, "no checkpoint at step 999999999999999997"),
        ({"count": 2, "last_step": -5}, "begin at step -8"),
    ],
)
def test_checkpoints_that_are_not_there(reference, arguments, message):
    with pytest.raises(UsageError, match=message):
        select(reference, **arguments)


@pytest.fixture
def retained(reference, tmp_path):
    """The reference run after retention took the first ten of its sixteen checkpoints, with a save under way."""
    copy = tmp_path / "retained"
    shutil.copytree(reference.path, copy)
    for step in range(3, 31, 3):
        shutil.rmtree(copy / "checkpoints" / "merge" / str(step))
    os.rename(copy / "checkpoints" / "merge" / "48", copy / "checkpoints" / "merge" / "48.orbax-checkpoint-tmp")
    return Run(copy)


def test_only_complete_checkpoints_are_seen(retained):
    assert select(retained, 5).steps == (33, 36, 39, 42, 45)
    with pytest.raises(UsageError, match="no checkpoint at step 30"):
        select(retained, 6)
    (retained.merge_stream / "45" / "_CHECKPOINT_METADATA").unlink()
    (retained.merge_stream / "45" / "params" / "_METADATA").unlink()
    assert select(retained, 4).steps == (33, 36, 39, 42)
    for name in ("²", "٣", "0045", "4_5"):  # digits to some functions of Python, none of which is a step
        shutil.copytree(retained.merge_stream / "42", retained.merge_stream / name)
        with pytest.raises(UsageError, match="is not of the form RUN@STEP"):
            parse_branch(f"{retained.path}@{name}")
    assert select(retained, 4).steps == (33, 36, 39, 42)
    shutil.rmtree(retained.merge_stream)
    with pytest.raises(UsageError, match="merge holds no complete checkpoint"):
        select(retained, 1)


# --- a window that slides along the run ------------------------------------------------------------------------------


def test_the_window_slides_over_every_step_where_it_fits(reference):
    """A window of 4 checkpoints first fits at step 12: 3, 6, 9, 12."""
    ends = [window.steps[-1] for window in series(reference, 4, 6)]
    assert ends == [12, 18, 24, 30, 36, 42, 48]
    for window in series(reference, 4, 6):
        assert window == select(reference, 4, last_step=window.steps[-1])
    assert [window.steps[-1] for window in series(reference, 4, MERGE)] == list(range(12, STEPS + 1, MERGE))
    assert [window.steps for window in series(reference, 2, 15, interval=6)] == [(9, 15), (24, 30), (39, 45)]


def test_a_series_is_cut_at_both_ends(reference, retained):
    for last_step in (30, 35):  # the end itself belongs to it
        assert [window.steps[-1] for window in series(reference, 4, 6, last_step=last_step)] == [12, 18, 24, 30]
    assert [window.steps[0] for window in series(reference, 4, 6, first_step=9)] == [9, 15, 21, 27, 33, 39]
    assert [window.steps for window in series(retained, 4, 3)] == [(33, 36, 39, 42), (36, 39, 42, 45)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 4, "every": 7}, "every=7 is no multiple of the stream's interval of 3 steps; 6 is"),
        ({"count": 4, "every": 0}, "every=0 is no multiple of the stream's interval of 3 steps; 3 is"),
        ({"count": 17, "every": 3}, "no step that is a multiple of 3 ends a window of 17 checkpoints every 3 steps"),
        ({"count": 2, "every": 3, "interval": 4}, "ends a window of 2 checkpoints every 4 steps"),
        ({"count": 4, "every": 6, "last_step": 9}, "it has 16, from 3 to 48"),
        ({"count": 0, "every": 6}, "count must be"),
        ({"count": 10**18, "every": 6}, "ends a window of 1000000000000000000 checkpoints"),
    ],
)
def test_a_series_that_never_fits(reference, arguments, message):
    with pytest.raises(UsageError, match=message):
        series(reference, **arguments)


# --- a run that is still being written -------------------------------------------------------------------------------


@pytest.mark.integration
def test_merging_while_the_run_trains_and_lets_old_checkpoints_go(tiny, tmp_path, capsys):
    """Each merge is, bit for bit, that of the same steps of an undisturbed run that kept everything."""
    keep = 10
    fields = {
        "duration": "800steps",
        "checkpoint__merge_interval": "20steps",
        "checkpoint__resume_interval": "800steps",
        "checkpoint__branch_points": "",
        "evaluation__interval": "",
        "log__interval": "20steps",
    }
    process = tiny.start("live", checkpoint__merge_keep=keep, **fields)
    live = tiny.folder / "live"
    stream, merges, last = live / "checkpoints" / "merge", {}, 0
    while process.poll() is None:
        there = orbax.complete_steps(stream)
        if len(there) < 4 or there[-1] == last:
            time.sleep(0.005)
            continue
        last = there[-1]
        output = tmp_path / str(last)
        arguments = ["--curve=cosine", "--count=4", f"--last_step={last}", f"--output={output}", "--json"]
        status = cli.main(["merge", f"--run={live}", *arguments])
        printed = capsys.readouterr()
        if status:  # retention was quicker than the merge
            gone = re.findall(r"wsm: .*/checkpoints/merge(?:/| has no checkpoint at step )(\d+)", printed.err)[0]
            assert (status, (stream / gone).exists(), output.exists()) == (2, False, False), printed.err
        else:
            merges[output] = json.loads(printed.out)["steps"]
    assert ended(process) == (0, "")
    kept = tiny.run("live-undisturbed", checkpoint__merge_keep=0, **fields)
    planned = kept.plan.merge_steps()
    assert sorted(path.name for path in stream.iterdir()) == sorted(map(str, planned[-keep:]))
    for step in planned[-keep:]:
        ours, theirs = (orbax.load_tree(folder / str(step)) for folder in (stream, kept.merge_stream))
        assert_same_bits(ours, theirs, step)
    assert len(merges) >= 3
    assert min(steps[0] for steps in merges.values()) < planned[-keep]  # of what retention has taken since
    for output, steps in merges.items():
        assert steps == [int(output.name) - 20 * i for i in (3, 2, 1, 0)]
        expected = merge_checkpoints([kept.merge_stream / str(step) for step in steps], merge_weights("cosine", 4))
        assert_same_bits(orbax.load_tree(output), expected, steps)
