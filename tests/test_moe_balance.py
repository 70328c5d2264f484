"""The experiment on the balance of merged experts: what it declares, and its measurement of one finished seed."""

import pytest

from configs import ling
from experiments import moe_balance
from tests.runs import ROOT
from wsm_jax.config import with_fields
from wsm_jax.io.files import read_jsonl
from wsm_jax.sweeps import declared
from wsm_jax.training.loop import train


def test_it_declares_runs_of_five_million_tokens_and_five_seeds():
    experiment = declared.load(str(ROOT / "experiments" / "moe_balance.py")).experiment
    config = ling.get_config("small")
    assert len(experiment.seeds) >= 5 and config.steps * config.tokens_per_step >= 5e6
    assert config.duration_steps("", config.checkpoint.branch_points) == config.steps * 3 // 4


@pytest.mark.integration
def test_a_finished_seed_is_measured_in_all_arms(tmp_path, store, library_text, capsys):
    config = with_fields(ling.get_config("tiny"), data__source=f"text:{library_text}", data__test_fraction=0.1)
    constant = train(config, tmp_path / "seed3" / "constant", quiet=True)
    cooled = with_fields(config, schedule__name="cooldown", schedule__decay="16steps")
    train(cooled, tmp_path / "seed3" / "decay", branch_from=f"{constant.path}@48", quiet=True)
    (tmp_path / "seed4").mkdir()  # one that is not finished
    place = tmp_path / "balance.jsonl"
    moe_balance.main([f"--sweep={tmp_path}", f"--output={place}", "--batches=4"])
    records = {record["arm"]: record for record in read_jsonl(place)}
    arms = (moe_balance.LAST, moe_balance.DECAY, moe_balance.AVERAGED, moe_balance.KEPT, moe_balance.RESET)
    assert tuple(records) == arms
    assert {record["seed"] for record in records.values()} == {3}
    merges = [records[arm]["max_violation"] for arm in arms[2:]]
    assert len(set(merges)) > 1 and all(0 < violation < 15 for violation in merges)
    assert moe_balance.RESET in capsys.readouterr().out
    assert place.with_suffix(".md").read_text() == moe_balance.page(read_jsonl(place))


def test_the_committed_tables_are_those_of_the_committed_records():
    folder = ROOT / "results" / "moe"
    assert (folder / "balance.md").read_text() == moe_balance.page(read_jsonl(folder / "balance.jsonl"))


def test_a_difference_is_paired_by_seed():
    values = {0: (0.5, 0.25), 1: (0.75, 0.25)}
    records = [
        {"seed": seed, "arm": arm, **dict.fromkeys(moe_balance.FIGURES, value)}
        for seed, pair in values.items()
        for arm, value in zip((moe_balance.LAST, moe_balance.DECAY), pair, strict=True)
    ]
    last, decay = moe_balance.compared(records)
    assert last[1].startswith("0.625 (+0.375 [") and decay[1] == "0.250"
    assert moe_balance.compared(records, moe_balance.LAST)[1][1].startswith("0.250 (-0.375 [")
