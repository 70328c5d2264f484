"""claims.json from records, nats and documents: what is in it, statistics of all kinds, what is refused."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.sweeps import made_up
from wsm_jax.errors import UsageError
from wsm_jax.reporting import experiment_page
from wsm_jax.sweeps import Choice, Claim, claims, difference
from wsm_jax.sweeps.contrasts import exponent, frontier, slope
from wsm_jax.sweeps.experiment import Statistic

EFFECTS = {"last": 0.0, "merge": -0.2, "decay": -0.19}


def of(name: str, claim: Statistic, arms: Sequence[str] = tuple(EFFECTS), **more: Any) -> Any:
    """An experiment with one primary claim."""
    return made_up.experiment(arms, claims={name: Claim(name, claim, primary=True)}, **more)


def test_a_difference(tmp_path: Path):
    """The estimate is that of the records; the interval holds what was put in; arms, choices and domains are listed."""
    records = made_up.write(tmp_path, EFFECTS)
    claim = difference("chosen", "last")
    experiment = of("gain", claim, choices={"chosen": Choice(["merge", "decay"])}, about="Of nothing.")
    found = claims.write(experiment, tmp_path)
    assert found == json.loads((tmp_path / "claims.json").read_text())
    test = {(r["arm"], r["seed"]): r["test"] for r in records}
    chosen = {s: min(("merge", "decay"), key=lambda arm: test[arm, s]) for s in (0, 1, 2)}
    gain = found["claims"][0]
    np.testing.assert_allclose(gain["by_seed"], [test[chosen[s], s] - test["last", s] for s in (0, 1, 2)], rtol=1e-6)
    assert gain["interval"][0] < -0.2 < gain["interval"][1] < 0
    assert (gain["verdict"], gain["p_holm"], gain["over"]) == ("better", gain["p"], "seeds and documents")
    assert (gain["arms"], gain["domains"]) == (["chosen", "last"], ["novels", "proposals"])
    assert found["choices"][0]["chosen"] == {str(s): chosen[s] for s in (0, 1, 2)}
    assert found["documents"] == {"novels": 7, "proposals": 5}
    assert [each["claim"] for each in found["differences"]] == ["merge", "decay"]
    arm = found["arms"][1]
    assert arm["mean"] == pytest.approx(np.mean([test["merge", s] for s in (0, 1, 2)]))
    assert arm["domains"]["novels"]["interval"][0] < arm["domains"]["novels"]["mean"]


def test_it_is_the_same_each_time(tmp_path: Path):
    """Bit for bit, in whatever order the records come."""
    experiment = of("gain", difference("merge", "last"))
    records = made_up.write(tmp_path, EFFECTS)
    claims.write(experiment, tmp_path)
    first = (tmp_path / "claims.json").read_bytes()
    made_up.put(tmp_path, records[::-1])
    claims.write(experiment, tmp_path)
    assert (tmp_path / "claims.json").read_bytes() == first


def value(statistic: Statistic, losses: dict[str, tuple[float, float]]) -> float:
    """Of losses (novels, proposals) by arm."""
    found = statistic(lambda arm, domain: np.full(2, losses[arm][domain == "proposals"]), ["novels", "proposals"])
    assert found.shape == (2,)
    return float(found[1])


def test_slope():
    """A gain of 1 + 3x is fitted exactly."""
    losses = {"base": (2.0, 2.0)} | {f"{x}": (3 + 3 * x, 3 + 3 * x) for x in (0, 0.25, 1)}
    assert value(slope({x: (f"{x}", "base") for x in (0, 0.25, 1)}), losses) == pytest.approx(3)


def test_frontier():
    """Parallel lines, a polygon's corner, and no common range."""
    losses = {"a": (1.0, 4.0), "b": (3.0, 2.0), "c": (2.0, 4.0), "d": (4.0, 2.0)}
    assert value(frontier(["b", "a"], ["c", "d"], ["novels"]), losses) == pytest.approx(-1)
    corner = {**losses, "e": (2.0, 2.0)}  # 4, 2, 2 over 1, 2, 3 is one below the line from 4 to 2 in the middle
    assert value(frontier(["a", "e", "b"], ["b", "a"], ["novels"]), corner) == pytest.approx(-0.5)
    assert math.isnan(value(frontier(["a", "b"], ["c", "d"], ["novels"]), {**losses, "c": (3.0, 4.0)}))


def test_exponent():
    """Gains that are a power of each other."""
    losses = {"base": (3.0, 3.0)}
    for gain in (0.05, 0.2, 0.4):
        losses |= {f"decay {gain}": (3 - gain, 3 - gain), f"merge {gain}": (3 - gain**0.7, 3 - gain**0.7)}
    cells = [(f"merge {gain}", f"decay {gain}", "base") for gain in (0.05, 0.2, 0.4)]
    assert value(exponent(cells), losses) == pytest.approx(-0.3)


def test_any_statistic_has_an_interval(tmp_path: Path):
    """A slope, a frontier and an exponent over made-up arms; the estimate lies between the seeds'."""
    effects = {f"{kind} {size}": -size * factor for size in (0.1, 0.2, 0.4) for kind, factor in (("m", 1), ("d", 2))}
    made_up.write(tmp_path, {"last": 0.0, **effects})
    kinds = {
        "slope": slope({size: (f"m {size}", "last") for size in (0.1, 0.2, 0.4)}),
        "frontier": frontier(*([f"{kind} {size}" for size in (0.1, 0.2, 0.4)] for kind in "md"), across=["novels"]),
        "exponent": exponent([(f"m {size}", f"d {size}", "last") for size in (0.1, 0.2, 0.4)]),
    }
    declared = {name: Claim(name, each, unit="" if name == "exponent" else claims.UNIT) for name, each in kinds.items()}
    found = claims.write(made_up.experiment(["last", *effects], claims=declared), tmp_path)
    assert {claim["claim"] for claim in found["claims"]} == set(kinds)
    for claim in found["claims"]:
        low, high = claim["interval"]
        assert low < min(claim["by_seed"]) or low < claim["estimate"] < high
        assert low < {"slope": -1, "frontier": 0, "exponent": 0}[claim["claim"]] < high
        assert claim["p_holm"] is None


def test_holm_over_primary_claims(tmp_path: Path):
    """Their p values are multiplied, others' are not; the smallest effect is one of losses."""
    made_up.write(tmp_path, EFFECTS, noise=1e-5)
    declared = {
        "gain": Claim("", difference("merge", "last"), primary=True),
        "lead": Claim("", difference("merge", "decay"), primary=True),
        "same": Claim("", difference("merge", "merge")),
        "other": Claim("", difference("merge", "decay"), unit="exponent"),
    }
    found = claims.write(made_up.experiment([*EFFECTS], claims=declared, smallest_effect=0.05), tmp_path)["claims"]
    gain, lead, same, other = found
    assert gain["p_holm"] == pytest.approx(2 * gain["p"])
    assert lead["p_holm"] == pytest.approx(max(lead["p"], gain["p_holm"]))
    assert [each["verdict"] for each in found] == ["better", "equal", "equal", "better"]
    assert (same["p_holm"], other["p_holm"]) == (None, None)


def test_one_seed(tmp_path: Path):
    """Intervals are over documents, and verdicts are open."""
    made_up.write(tmp_path, EFFECTS, seeds=[4])
    found = claims.write(of("gain", difference("merge", "last"), seeds=[4, 5]), tmp_path)
    (claim,) = found["claims"]
    assert (found["seeds"], claim["over"], claim["p"], claim["verdict"]) == ([4], "documents", None, "open")
    assert claim["interval"][0] < -0.2 < claim["interval"][1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"domains": {"novels": 2.0, "proposals": 2.5}}, r"'merge' of seed 1: nats.npz gives .* on novels, .* has 2.0"),
        ({"domains": {"novels": 2.0}}, r"'merge' of seed 1: "),
        (
            {"machine": "1 x H200"},
            r"'merge' of seed 1 cannot be paired with 'last': its machine is 1 x H200, .* 1 x cpu",
        ),
        ({"versions": {"jax": "0.12"}}, r"'merge' of seed 1 .* versions is jax 0.12, the other's jax 0.10.2"),
        ({"data_hash": "d1"}, r"'merge' of seed 1 was trained on other data than at seed 0"),
        ({"seed": 0}, r"records.jsonl has 'merge' of seed 0 twice"),
        ({"seed": 9}, r"nats.npz has no 'merge\|9'"),
        ({"arm": "else"}, r"nats.npz has no 'else\|1'"),
    ],
)
def test_records_that_do_not_fit(fields: dict[str, Any], message: str, tmp_path: Path):
    """One line that names the arm and the seed."""
    records = made_up.write(tmp_path, EFFECTS)
    wrong = [{**each, **fields} if (each["arm"], each["seed"]) == ("merge", 1) else each for each in records]
    made_up.put(tmp_path, wrong)
    with pytest.raises(UsageError, match=message) as error:
        claims.write(of("gain", difference("merge", "last")), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("statistic", "message"),
    [
        (lambda loss, _: loss("merge", "novels").mean(), r"claim 'it': the statistic makes an array of \(\)"),
        (
            lambda loss, names: loss("merge", "benchmarks" if len(names) > 1 else names[0]),
            r"claim 'it': 'benchmarks' was",
        ),
    ],
)
def test_statistics_that_do_not_work(statistic: Statistic, message: str, tmp_path: Path):
    """The claim is named."""
    made_up.write(tmp_path, EFFECTS)
    with pytest.raises(UsageError, match=message):
        claims.write(of("it", statistic), tmp_path)


def test_a_claim_names_the_domains_that_it_is_about(tmp_path: Path):
    made_up.write(tmp_path, EFFECTS)
    found = claims.write(of("it", difference("merge", "last", ["novels"])), tmp_path)
    assert found["claims"][0]["domains"] == ["novels"]


def test_a_claim_that_the_losses_do_not_define_is_open_and_the_others_are_there(tmp_path: Path):
    made_up.write(tmp_path, EFFECTS)
    experiment = of("it", lambda loss, _: loss("merge", "novels") * np.nan)
    both = {**experiment.claims, "gain": of("gain", difference("merge", "last")).claims["gain"]}
    undefined, defined = claims.write(dataclasses.replace(experiment, claims=both), tmp_path)["claims"]
    assert (undefined["estimate"], undefined["interval"], undefined["verdict"]) == (None, None, "open")
    assert undefined["undefined"].startswith("its value at seed 0 is not finite")
    assert defined["estimate"] is not None
    page = experiment_page.write(tmp_path).read_text()
    assert "not defined" in page


def test_files_that_are_damaged(tmp_path: Path):
    """Or missing."""
    records = made_up.write(tmp_path, EFFECTS)
    experiment = of("gain", difference("merge", "last"))
    more = dataclasses.replace(experiment, arms={**experiment.arms, "late": experiment.arms["last"]})
    with pytest.raises(UsageError, match="lacks 'late' of seed 0"):
        claims.write(more, tmp_path)
    made_up.put(tmp_path, [*records, *({**each, "arm": "late"} for each in records[:3])])
    with pytest.raises(UsageError, match=r"nats\.npz has no 'late\|0'"):
        claims.write(more, tmp_path)
    whole = (tmp_path / "nats.npz").read_bytes()
    (tmp_path / "nats.npz").write_bytes(whole[:99])
    with pytest.raises(UsageError, match=r"nats.npz: cannot be read"):
        claims.write(experiment, tmp_path)
    (tmp_path / "nats.npz").write_bytes(whole)
    (tmp_path / "documents.json").write_text("{}")
    with pytest.raises(UsageError, match=r"documents.json lacks bytes, domain, domains"):
        claims.write(experiment, tmp_path)
    (tmp_path / "documents.json").unlink()
    with pytest.raises(UsageError, match=r"documents.json"):
        claims.write(experiment, tmp_path)
