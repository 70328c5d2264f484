"""Branches: the parent's state, tokens and counts, another schedule; and the parent left as it was."""

import os
import re
import shutil

import numpy as np
import pytest

from tests.runs import BRANCH, RESUME, SIX_STEPS, STEPS, assert_same_bits, assert_same_checkpoints, counts, state
from wsm_jax import Run, UsageError, cli
from wsm_jax.checkpoints import orbax
from wsm_jax.training.branch import check_branch, parse_branch

pytest_plugins = ["tests.runs"]
pytestmark = pytest.mark.xdist_group("train")
END = 30  # of the decayed branches


def contents(folder):
    """Every file and folder with its size and time of change."""
    found = {path: path.stat() for path in [folder, *folder.rglob("*")]}
    return {path: (stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in found.items()}


@pytest.fixture(scope="module")
def decayed(tiny, reference):
    """A linear decay to zero from step 18 to step 30, with a record for every step."""
    before = contents(reference.path)
    run = tiny.run(
        "decayed",
        branch_from=f"{reference.path}@{BRANCH}",
        duration=f"{END}steps",
        schedule__name="cooldown",
        log__interval="1steps",
        evaluation__interval="",
    )
    assert contents(reference.path) == before, "the branch changed its parent's folder"
    return run


@pytest.fixture(scope="module")
def constant(tiny, reference):
    """The parent's own schedule from step 18 on, with a record for every step."""
    before = contents(reference.path)
    run = tiny.run("constant", branch_from=f"{reference.path}@{BRANCH}", log__interval="1steps")
    assert contents(reference.path) == before, "the branch changed its parent's folder"
    return run


@pytest.mark.integration
def test_a_constant_branch_is_its_parent_bit_for_bit(constant, reference):
    """Same parameters, optimizer state and tokens, or the parent's later checkpoints would not come out again."""
    run = constant
    assert orbax.complete_steps(run.merge_stream) == [s for s in run.plan.merge_steps() if s > BRANCH]
    assert_same_checkpoints(run, reference, after=BRANCH)
    losses = {record["step"]: record["loss"] for record in run.metrics("train")}
    assert list(losses) == list(range(BRANCH + 1, STEPS + 1))
    for record in reference.metrics("train"):
        if (step := record["step"]) > BRANCH:
            assert np.mean([losses[step - 2], losses[step - 1], losses[step]]) == pytest.approx(
                record["loss"], rel=1e-12
            )
    assert run.metrics("validation") == [r for r in reference.metrics("validation") if r["step"] > BRANCH]
    assert (run.facts["branch_from"], run.facts["branch_step"]) == (f"{reference.path}@{BRANCH}", BRANCH)
    assert run.facts["data_hash"] == reference.facts["data_hash"]
    assert counts(state(run, STEPS)) == {STEPS}


@pytest.mark.integration
def test_a_cooldown_starts_with_the_parents_losses_and_decays_to_zero(decayed, constant, reference):
    rates = {record["step"]: record["learning_rate"] for record in decayed.metrics("train")}
    peak, window = reference.config.optimizer.peak_lr, END - BRANCH
    # The update that ends step s has count s - 1; the one of the branch step is the last at the full rate.
    expected = {s: peak * min(1.0, 1 - (s - 1 - BRANCH) / window) for s in range(BRANCH + 1, END + 1)}
    assert rates == pytest.approx(expected, rel=1e-6)
    ours, theirs = ([record["loss"] for record in run.metrics("train")] for run in (decayed, constant))
    # Updates 18 (still at the peak) and 19 see the parent's parameters and tokens; from update 19 on the rate is lower.
    assert ours[:2] == theirs[:2]
    assert ours[2] != theirs[2]
    assert ours[2] == pytest.approx(theirs[2], rel=1e-3)
    assert counts(state(decayed, END)) == {END}


@pytest.mark.integration
def test_wsd_that_decays_from_the_branch_is_the_cooldown(tiny, reference, decayed):
    run = tiny.run(
        "wsd",
        branch_from=f"{reference.path}@{BRANCH}",
        duration=f"{END}steps",
        schedule__name="wsd",
        schedule__decay=f"{END - BRANCH}steps",
        log__interval="1steps",
        evaluation__interval="",
    )
    assert [r["learning_rate"] for r in run.metrics("train")] == [r["learning_rate"] for r in decayed.metrics("train")]
    assert_same_bits(state(run, END), state(decayed, END))


@pytest.mark.integration
def test_a_branch_goes_on_although_its_parent_let_go_of_the_state(tiny, reference):
    """A branch of a state that is not kept for ever: it needs it to start, and never again."""
    parent = shutil.copytree(reference.path, tiny.folder / "letting-go")
    origin = f"{parent}@{RESUME * 3}"
    expected = state(tiny.run("resumed", branch_from=origin, checkpoint__resume_interval="4steps"), STEPS)
    shutil.rmtree(parent / "checkpoints" / "resume" / str(RESUME * 3))
    shutil.rmtree(tiny.folder / "resumed" / "checkpoints" / "resume" / str(STEPS))
    run = tiny.run("resumed", branch_from=origin, checkpoint__resume_interval="4steps")
    assert [record["step"] for record in run.metrics("start")] == [RESUME * 3, STEPS - 4]
    assert_same_bits(state(run, STEPS), expected)
    with pytest.raises(UsageError, match=rf"has no full state at step {RESUME * 3}"):
        tiny.run("too-late", branch_from=origin)


@pytest.mark.integration
def test_a_decayed_run_is_warmed_up_again(tiny, decayed):
    fields = {"duration": f"{END + 18}steps", "schedule__name": "rewarm", "evaluation__interval": ""}
    run = tiny.run("rewarmed", branch_from=f"{decayed.path}@{END}", log__interval="1steps", **fields)
    peak, warmup = run.config.optimizer.peak_lr, 5
    rates = [record["learning_rate"] for record in run.metrics("train")]
    expected = [peak * min(1.0, (i + 1) / (warmup + 1)) for i in range(18)]
    assert rates == pytest.approx(expected, rel=1e-6)
    # Merges that need a constant rate begin where this warm-up has ended, not the first one.
    assert (
        cli.main(["merge", f"--run={run.path}", "--curve=linear", "--weight_decay_aware", "--count=2", "--every=3"])
        == 0
    )
    assert min(int(path.name.split("-at-")[1]) for path in run.merged("x").parent.iterdir()) == END + 9


@pytest.mark.integration
def test_the_tokens_of_a_branch_with_larger_batches(tiny, reference):
    """They are those of the parent up to the branch, and its own after it; also in a branch of the branch."""
    asked = {"checkpoint__merge_interval": "1steps", "checkpoint__resume_interval": "2steps", "log__interval": "2steps"}
    asked |= {"evaluation__interval": "2steps", "checkpoint__branch_points": ""}
    parent, before = f"{reference.path}@{BRANCH}", BRANCH * 8 * 16
    run = tiny.run("larger", branch_from=parent, batch_size=16, duration=f"{BRANCH + 2}steps", **asked)
    assert [record["tokens"] for record in run.metrics("train")] == [before + 16 * 16, before + 2 * 16 * 16]
    assert [record["tokens"] for record in run.metrics("validation")] == [before + 2 * 16 * 16]
    saved = [orbax.user_metadata(run.merge_stream / str(BRANCH + n))["tokens"] for n in (1, 2)]
    assert saved == [before + 16 * 16, before + 2 * 16 * 16]
    parent = f"{run.path}@{BRANCH + 2}"
    again = tiny.run("larger-again", branch_from=parent, batch_size=8, duration=f"{BRANCH + 4}steps", **asked)
    assert again.metrics("train")[-1]["tokens"] == before + 2 * 16 * 16 + 2 * 8 * 16


# --- errors ----------------------------------------------------------------------------------------------------------


def test_where_to_branch(reference, tmp_path):
    run, step = parse_branch(f"{reference.path}@{BRANCH}")
    assert (run.path, step) == (reference.path, BRANCH)
    with pytest.raises(UsageError, match=rf"has no full state at step 7; it has \[{BRANCH}, 36, {STEPS}\]"):
        parse_branch(f"{reference.path}@7")
    with pytest.raises(UsageError, match=r"nowhere is not a run directory"):
        parse_branch(f"{tmp_path / 'nowhere'}@{BRANCH}")
    for text in (str(reference.path), f"{reference.path}@", f"{reference.path}@last", f"{reference.path}@-3"):
        with pytest.raises(UsageError, match=r"is not of the form RUN@STEP"):
            parse_branch(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__d_model": 32}, r"model\.d_model differs from that of .*reference \(16\): its state does not fit"),
        ({"model__layers": 3}, r"model\.layers differs"),
        ({"optimizer__name": "lion"}, r"optimizer\.name differs from that of .* \('adamw'\)"),
        ({"duration": f"{BRANCH}steps"}, rf"branch starts at step {BRANCH}, but duration='18steps' ends at {BRANCH}"),
        (
            {"duration": "480steps", "schedule__warmup": "0.1run"},
            r"schedule\.warmup='0\.1run' is 48 steps of this run, so after the branch at 18 the rate would warm up "
            r"again; write schedule\.warmup=\d+steps as the parent",
        ),
        ({"schedule__name": "wsd", "schedule__decay": "40steps"}, r"starts at step 8, before the branch at 18"),
        (
            {"data__tokenizer": "bpe:299"},
            r"the tokenizer differs from that of .*; use data\.tokenizer=.*tokenizer\.json",
        ),
    ],
)
def test_a_state_that_does_not_fit(tiny, reference, fields, message):
    directory = tiny.folder / "never"
    with pytest.raises(UsageError, match=message) as caught:
        tiny.run("never", branch_from=f"{reference.path}@{BRANCH}", **fields)
    assert "\n" not in str(caught.value)
    assert not directory.exists()


def test_a_switch_at_a_share_of_the_run_is_another_step_in_a_longer_run(tiny, reference):
    switch = {"data__switch_source": "stdlib", "data__switch_at": "0.5run"}
    parent = Run(reference.path)
    parent.config = tiny.config(**switch)
    longer = {"duration": f"{2 * STEPS}steps"}
    assert check_branch(parent, BRANCH, tiny.config(**switch, **longer)) == ["data.switch_at"]
    same = {**switch, "data__switch_at": f"{STEPS // 2}steps"}
    assert check_branch(parent, BRANCH, tiny.config(**same, **longer)) == []


def test_a_cooldown_needs_a_branch(tiny):
    with pytest.raises(UsageError, match=r"cooldown starts where a run is branched: add --branch_from=RUN@STEP"):
        tiny.run("never", schedule__name="cooldown")


@pytest.mark.integration
def test_other_documents_with_the_parents_tokenizer(tiny, reference, capsys):
    """Other documents make another vocabulary under the same name; with the parent's own one it is a note."""
    from wsm_jax.training.loop import train

    text = tiny.folder / "other"
    shutil.copytree(tiny.folder / "text", text)
    for name in sorted(os.listdir(text))[::3]:
        (text / name).write_text((text / name).read_text() + "\n# 数字 " * 40)
    origin, short = f"{reference.path}@{BRANCH}", {"duration": f"{BRANCH + 2}steps", "evaluation__interval": ""}
    with pytest.raises(UsageError, match=r"the tokenizer differs") as caught:
        tiny.run("never", branch_from=origin, data__source=f"text:{text}", **short)
    found = re.search(r"use data\.tokenizer=(\S+)", str(caught.value))
    assert found
    config = tiny.config(data__source=f"text:{text}", data__tokenizer=found[1], **short)
    run = train(config, tiny.folder / "other-documents", branch_from=origin)
    assert "note: data.source differs from the parent's" in capsys.readouterr().err
    assert run.facts["data_hash"] != reference.facts["data_hash"]
    assert orbax.complete_steps(run.resume_stream) == [BRANCH + 2]


@pytest.mark.integration
def test_documents_that_have_changed_since_are_a_note(tiny, reference, capsys):
    from wsm_jax.training.loop import train

    tokenizer = {"data__tokenizer": f"{reference.facts['data']['stable'][0]['path']}/tokenizer.json"}
    text = tiny.folder / "edited"
    shutil.copytree(tiny.folder / "text", text)
    fields = {**tokenizer, "data__source": f"text:{text}", "evaluation__interval": ""}
    parent = tiny.run("edited-parent", **{**SIX_STEPS, **fields})
    for name in sorted(os.listdir(text))[::2]:
        (text / name).write_text((text / name).read_text() + "\n# more\n")
    train(
        tiny.config(**{**SIX_STEPS, **fields, "duration": "8steps"}),
        tiny.folder / "edited-branch",
        branch_from=f"{parent.path}@6",
    )
    assert "note: the documents have changed since" in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.parametrize(
    "fields", [{"optimizer__weight_decay": 0.0}, {"optimizer__clip_norm": 0.0}, {"model__loss_blocks": 2}]
)
def test_a_branch_may_change_what_its_state_does_not_depend_on(tiny, reference, fields):
    short = {"duration": f"{BRANCH + 3}steps", "evaluation__interval": ""}
    name = next(iter(fields))
    run = tiny.run(f"without-{name}", branch_from=f"{reference.path}@{BRANCH}", **short, **fields)
    assert orbax.complete_steps(run.merge_stream) == [BRANCH + 3]
    if name == "optimizer__weight_decay":  # and back again
        back = tiny.run(
            "with-decay", branch_from=f"{run.path}@{BRANCH + 3}", **{**short, "duration": f"{BRANCH + 6}steps"}
        )
        assert orbax.complete_steps(back.merge_stream) == [BRANCH + 6]


def test_a_state_of_another_form_is_one_line(tiny, reference):
    """Another form of the optimizer's state in the place of what was saved."""
    copy = shutil.copytree(reference.path, tiny.folder / "other-form")
    shutil.rmtree(copy / "checkpoints" / "resume" / str(STEPS))
    state = copy / "checkpoints" / "resume" / "36"
    shutil.rmtree(state / "opt_state")
    tree = {"something": np.zeros(3, np.float32)}
    orbax.save_tree(tiny.folder / "form", tree, item="opt_state")
    shutil.copytree(tiny.folder / "form" / "opt_state", state / "opt_state")
    with pytest.raises(UsageError, match=r"resume/36/opt_state/_METADATA is damaged; the next older state") as caught:
        tiny.run("other-form")
    assert "\n" not in str(caught.value)


@pytest.mark.integration
def test_a_branch_has_one_origin(tiny, reference, decayed):
    fields = {
        "duration": f"{END}steps",
        "schedule__name": "cooldown",
        "log__interval": "1steps",
        "evaluation__interval": "",
    }
    other = shutil.copytree(reference.path, tiny.folder / "other-parent")
    with pytest.raises(UsageError, match=r"was made with branch_from='.*reference@18', now it is '.*other-parent@18'"):
        tiny.run("decayed", branch_from=f"{other}@{BRANCH}", **fields)
    fields |= {"schedule__name": "constant"}
    with pytest.raises(UsageError, match=r"was made with schedule\.name='cooldown', now it is 'constant'"):
        tiny.run("decayed", branch_from=f"{reference.path}@{BRANCH}", **fields)
    assert Run(decayed.path).facts["branch_step"] == BRANCH
