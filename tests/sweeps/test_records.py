"""What pieces leave, and when it is refused."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from tests.sweeps.examples import GOOD, made
from wsm_jax.errors import UsageError
from wsm_jax.evaluation.evaluate import Evaluation
from wsm_jax.io import files
from wsm_jax.sweeps import Arm, Claim, difference, records
from wsm_jax.sweeps.partial import measured_part
from wsm_jax.sweeps.records import Results

HERE = {"wsm_jax": "1", "versions": {"jax": "2"}, "python": "3", "machine": "one", "platform": "cpu"}


def evaluation(nats, sizes):
    return Evaluation(np.asarray(nats), np.full(len(nats), 7), np.asarray(sizes), "hash")


def done(folder, experiment=GOOD, **changed: Any):
    """A plan whose pieces have made-up records."""
    plan = made(experiment, output=folder)
    for piece in plan.pieces:
        nats, documents = records.of_test({"test/a": evaluation([1.0, 2.0], [3, 4])})
        common = {"experiment": "e", "seed": piece.seed, "piece": piece.name, **HERE, **changed.get(piece.name, {})}
        rows = [{**common, "arm": arm} for arm in piece.readings]
        piece.folder.mkdir(parents=True, exist_ok=True)
        records.write_piece(plan, piece, Results(rows, {records.key(row): nats for row in rows}, documents))
    return plan


def test_bits_per_byte_are_nats_over_bytes_of_each_domain_alone():
    nats, documents = records.of_test(
        {
            "test/a": evaluation([1.0, 2.0], [3, 4]),
            "validation/a": evaluation([9.0], [9]),
            "test/b": evaluation([5.0], [2]),
        }
    )
    assert nats.dtype == np.float32 and nats.tolist() == [1.0, 2.0, 5.0]
    assert documents["domains"] == ["a", "b"] and documents["domain"] == [0, 0, 1]
    assert documents["tokens"] == [7, 7, 7] and documents["bytes"] == [3, 4, 2]
    assert documents["left_out"] == {"a": 0, "b": 0}
    assert records.bits_per_byte(nats, documents) == pytest.approx({"a": 3 / 7 / math.log(2), "b": 2.5 / math.log(2)})


def test_pieces_are_gathered_in_the_order_of_the_plan_and_come_out_again(tmp_path):
    plan = done(tmp_path)
    found = records.gather(plan, plan.pieces)
    keys = [records.key(record) for record in found.records]
    assert keys[:4] == ["last|3", "mean|3", "decay|3", "other|3"] and set(keys) == set(found.nats)
    records.write(tmp_path / "results", found)
    again = records.read(tmp_path / "results")
    assert again.records == found.records and again.documents == found.documents
    assert all(np.array_equal(again.nats[name], found.nats[name]) for name in keys)


def test_a_piece_is_done_while_what_is_asked_of_it_is_the_same(tmp_path):
    done(tmp_path)

    def is_done(**fields):
        plan = made(dataclasses.replace(GOOD, **fields), output=tmp_path)
        return {piece.name: records.is_done(plan, piece) for piece in plan.pieces if piece.seed == 3}

    assert is_done() == {"seed3-constant": True, "seed3-other": True}
    claim = Claim("...", difference("mean", "last"))
    assert all(is_done(claims={"c": claim}, title="Another", about="...", smallest_effect=0.1).values())
    assert is_done(arms={**GOOD.arms, "x": Arm("other", {"count": 2})}) == {
        "seed3-constant": True,
        "seed3-other": False,
    }
    runs = {**GOOD.runs, "other": dataclasses.replace(GOOD.runs["other"], settings={"optimizer.b1": 0.5})}
    assert is_done(runs=runs) == {"seed3-constant": True, "seed3-other": False}
    assert not any(is_done(settings={"batch_size": 2}).values())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"experiment": "f"}, "seed3-other holds records of 'f'; choose another --output"),
        (
            {"machine": "two"},
            "'other' of seed 3 was measured with machine two, other arms with one: .* remove .*seed3-other",
        ),
        ({"wsm_jax": "0"}, "'other' of seed 3 was measured with wsm_jax 0, other arms with 1"),
        ({"versions": {"jax": "1"}}, "versions jax 1, other arms with jax 2"),
    ],
)
def test_records_that_cannot_be_paired_are_refused_by_name(tmp_path, changed, says):
    there: Any = {"seed3-other": changed}
    plan = done(tmp_path, **there)
    with pytest.raises(UsageError, match=says):
        records.gather(plan, plan.pieces)


def test_seeds_may_come_from_different_processors(tmp_path):
    there: Any = {"machine": "two"}
    plan = done(tmp_path, **{"seed4-constant": there, "seed4-other": there})
    assert len(records.gather(plan, plan.pieces).records) == 8
    with pytest.raises(UsageError, match="'last' of seed 4 was measured with machine two, other arms with one"):
        records.check(plan, files.read_jsonl(plan.pieces[2].folder / records.RECORDS), {4: {"machine": "one"}})


def test_other_documents_and_damaged_files_are_refused(tmp_path):
    plan = done(tmp_path)
    place = plan.pieces[1].folder
    documents = files.read_json(place / records.DOCUMENTS)
    files.write_text(place / records.DOCUMENTS, json.dumps({**documents, "bytes": [3, 5]}))
    with pytest.raises(UsageError, match="seed3-other was measured on other test documents"):
        records.gather(plan, plan.pieces)
    (place / records.NATS).write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"nats.npz: cannot be read"):
        records.read(place)


def test_what_is_claimed_of_arms_that_are_not_there_is_left_out(capsys):
    experiment = dataclasses.replace(
        GOOD,
        claims={"a": Claim("...", difference("mean", "last")), "b": Claim("...", difference("other", "last"))},
        runs={**GOOD.runs, "again": dataclasses.replace(GOOD.runs["again"], params_from="other")},
    )
    rows = [{"arm": arm, "seed": 4} for arm in ("last", "mean", "decay")]
    part = measured_part(experiment, rows, print)
    assert (list(part.arms), list(part.claims), list(part.seeds)) == (["last", "mean", "decay"], ["a"], [4])
    assert "left out of the results: other\nclaims on what was not measured: b" in capsys.readouterr().out
