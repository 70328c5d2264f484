"""``--profile=STEP``: a trace of a few updates that changes nothing else."""

import pytest

from tests.runs import SIX_STEPS, assert_same_bits, records
from wsm_jax import UsageError, load_tree
from wsm_jax.training.loop import train

pytest_plugins = ["tests.runs"]
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("train")]


def test_a_trace_of_three_updates(tiny, capsys):
    plain = tiny.run("unprofiled", **SIX_STEPS)
    traced = train(tiny.config(**SIX_STEPS), tiny.folder / "profiled", profile=2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trace of")]
    assert line.startswith(
        f"trace of the updates 2 to 4: {traced.path / 'profile'}; open its perfetto_trace.json.gz at "
    )
    (trace,) = (traced.path / "profile").rglob("perfetto_trace.json.gz")
    assert trace.stat().st_size > 0
    assert records(traced) == records(plain)
    assert_same_bits(*(load_tree(run.merge_stream / "6") for run in (traced, plain)))


def test_a_trace_that_the_end_cuts_short(tiny):
    run = train(tiny.config(**SIX_STEPS), tiny.folder / "profiled-late", profile=6, quiet=True)
    assert len(list((run.path / "profile").rglob("perfetto_trace.json.gz"))) == 1


@pytest.mark.parametrize("step", [0, 7])
def test_an_update_that_is_not_made_is_refused(tiny, step):
    with pytest.raises(UsageError, match=rf"^--profile={step}: this run makes the updates 1 to 6$"):
        train(tiny.config(**SIX_STEPS), tiny.folder / f"unprofiled-{step}", profile=step, quiet=True)
