"""The faults that ``make mutants`` puts in are possible ones, and the committed record has found all of them."""

import json
from pathlib import Path

import pytest

from tests.mutants.__main__ import RESULTS, ROOT
from tests.mutants.faults import MUTANTS


def test_there_are_forty_and_no_two_are_one():
    assert len({(mutant.file, mutant.old) for mutant in MUTANTS}) == len(MUTANTS) >= 40


@pytest.mark.parametrize("room", ["core", "merging"])
def test_each_is_in_the_source_once_and_has_tests(room):
    chosen = [mutant for mutant in MUTANTS if mutant.file.startswith(f"{room}/")]
    assert len(chosen) >= 12
    for mutant in chosen:
        assert (ROOT / "wsm_jax" / mutant.file).read_text().count(mutant.old) == 1, mutant
        assert all((ROOT / "tests" / name).is_file() for name in mutant.tests.split()), mutant


def test_the_record_is_of_these_and_all_were_caught():
    records = [json.loads(line) for line in Path(RESULTS).read_text().splitlines()]
    assert [(record["file"], record["old"], record["new"]) for record in records] == [
        (mutant.file, mutant.old, mutant.new) for mutant in MUTANTS
    ]
    assert [record for record in records if not (record["caught"] and record["by"])] == []
