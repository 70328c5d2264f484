"""What was measured becomes what is claimed: records, nats and documents of a sweep -> claims.json."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsm_jax.errors import UsageError
from wsm_jax.evaluation import statistics
from wsm_jax.evaluation.statistics import Documents, Estimate
from wsm_jax.io import files
from wsm_jax.sweeps import records as records_lib
from wsm_jax.sweeps.experiment import Claim, Experiment, Loss, Statistic, difference
from wsm_jax.sweeps.records import DOCUMENTS, NATS, RECORDS, SAME

CLAIMS = "claims.json"
UNIT = "bits per byte"
TOLERANCE = 1e-5  # relative, between the losses of records and of nats, which are float32
DIGITS = 10  # significant ones in claims.json: sums may differ in the last bits between processors
Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the arms of an experiment gave.

    Attributes:
      seeds: at which all arms were measured, in order.
      records: (arm, seed) -> its record.
      losses: (arm, domain) -> float64 [seeds, 1 + documents]: :func:`wsm_jax.evaluation.statistics.bits_per_byte`.
      chosen: choice -> the arm of each seed.
      documents: of the test set.
    """

    seeds: Sequence[int]
    records: Mapping[tuple[str, int], Json]
    losses: Mapping[tuple[str, str], np.ndarray]
    chosen: Mapping[str, Sequence[str]]
    documents: Documents

    def loss(self, name: str, domain: str, seed: int) -> np.ndarray:
        """Of an arm, or of what a choice chose: float64 [1 + documents]; ``seed`` counts from 0.

        Raises:
          UsageError: a domain that was not measured.
        """
        if domain not in self.documents.domains:
            raise UsageError(f"{domain!r} was not measured; there are {', '.join(self.documents.domains)}")
        arm = self.chosen[name][seed] if name in self.chosen else name
        return self.losses[arm, domain][seed]


def write(experiment: Experiment, folder: Path) -> Json:
    """Writes ``claims.json`` beside the results that it is computed from, and returns it.

    Args:
      experiment: what was declared; records of other arms and seeds are left alone.
      folder: has ``records.jsonl``, ``nats.npz`` and ``documents.json``.

    Raises:
      UsageError: a file that is missing or damaged; as :func:`measured` and :func:`of`.
    """
    found = records_lib.read(folder)
    arms = measured(experiment, found.records, found.nats, found.documents)
    claims = of(experiment, arms, left_out=found.documents.get("left_out", {}))
    files.write_json(folder / CLAIMS, claims)
    return claims


# --- what was measured -----------------------------------------------------------------------------------------------


def measured(
    experiment: Experiment, records: Sequence[Json], nats: Mapping[str, np.ndarray], documents: Json
) -> Measured:
    """The losses of an experiment's arms, from the nats of each document, checked against the records.

    Args:
      experiment: what was declared.
      records: one for each arm and seed.
      nats: ``ARM|SEED`` -> [documents].
      documents: of documents.json.

    Raises:
      UsageError: arms that do not have the same seeds, that were measured by different processors or versions, or
        trained on other data at one seed than at another; nats that are missing, or do not give the record's losses.
    """
    found: dict[tuple[str, int], Json] = {}
    for record in records:
        if (key := (record["arm"], record["seed"])) in found:
            raise UsageError(f"{RECORDS} has {_named(*key)} twice")
        if record["arm"] in experiment.arms and record["seed"] in experiment.seeds:
            found[key] = record
    seeds = [seed for seed in experiment.seeds if any(seed == other for _, other in found)]
    _check(experiment, found, seeds)
    names = documents["domains"]
    texts = Documents(names, np.asarray(documents["domain"], int), np.asarray(documents["bytes"], int))
    losses: dict[tuple[str, str], list[np.ndarray]] = {}
    for arm, seed in ((arm, seed) for arm in experiment.arms for seed in seeds):
        own = _nats(arm, seed, nats, texts)
        for domain in names:
            losses.setdefault((arm, domain), []).append(statistics.bits_per_byte(own, texts, domain))
        _compare(found[arm, seed], {domain: float(losses[arm, domain][-1][0]) for domain in names})
    chosen = {
        name: [
            min(choice.of, key=lambda arm, seed=seed, choice=choice: choice.loss(found[arm, seed])) for seed in seeds
        ]
        for name, choice in experiment.choices.items()
    }
    return Measured(seeds, found, {key: np.stack(rows) for key, rows in losses.items()}, chosen, texts)


def _check(experiment: Experiment, found: Mapping[tuple[str, int], Json], seeds: Sequence[int]) -> None:
    """Raises UsageError where arms cannot be paired."""
    if not seeds:
        raise UsageError(f"{RECORDS} has no record of an arm of {experiment.name}")
    first = next(iter(experiment.arms))
    for arm, seed in ((arm, seed) for arm in experiment.arms for seed in seeds):
        if (arm, seed) not in found:
            raise UsageError(f"{RECORDS} lacks {_named(arm, seed)}, a seed that other arms have")
        record, beside, earlier = found[arm, seed], found[first, seed], found[arm, seeds[0]]
        for field in SAME:
            if record.get(field) != beside.get(field):
                raise UsageError(
                    f"{_named(arm, seed)} cannot be paired with {first!r}: its {field} is "
                    f"{_short(record.get(field))}, the other's {_short(beside.get(field))}"
                )
        if record.get("data_hash") != earlier.get("data_hash"):
            raise UsageError(f"{_named(arm, seed)} was trained on other data than at seed {seeds[0]}")


def _nats(arm: str, seed: int, nats: Mapping[str, np.ndarray], documents: Documents) -> np.ndarray:
    own = nats.get(f"{arm}|{seed}")
    if own is None or own.shape != documents.domain.shape:
        has = "nothing" if own is None else f"{own.size} documents"
        raise UsageError(f"{NATS} has {has} for {_named(arm, seed)}; {DOCUMENTS} has {len(documents.domain)}")
    return own


def _compare(record: Json, losses: Mapping[str, float]) -> None:
    """Raises UsageError where the losses that the nats give are not those of the record."""
    told = record["domains"]
    for domain in {**losses, **told}:
        if not np.isclose(losses.get(domain, np.nan), told.get(domain, np.nan), rtol=TOLERANCE, atol=0):
            raise UsageError(
                f"{_named(record['arm'], record['seed'])}: {NATS} gives {losses.get(domain)} bits per byte on "
                f"{domain}, {RECORDS} has {told.get(domain)}"
            )


def _named(arm: str, seed: int) -> str:
    return f"{arm!r} of seed {seed}"


def _short(value: Any) -> str:
    return " ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)


# --- what is claimed -------------------------------------------------------------------------------------------------


def of(experiment: Experiment, found: Measured, left_out: Mapping[str, int] | None = None) -> Json:
    """The content of claims.json.

    Args:
      experiment: what was declared.
      found: what its arms gave.
      left_out: domain -> how many documents were not measured, for the reader.

    Raises:
      UsageError: a statistic that is not finite, that does not work element by element, or that asks for a domain
        that was not measured; the message names the claim.
    """
    first, *others = experiment.arms
    domains, records = found.documents.domains, [found.records[arm, s] for arm in experiment.arms for s in found.seeds]
    counts = np.bincount(found.documents.domain, minlength=len(domains)).tolist()
    environments = [{"python": r.get("python"), "wsm_jax": r.get("wsm_jax"), **r.get("versions", {})} for r in records]
    claims = [_claim(experiment, found, name, claim) for name, claim in experiment.claims.items()]
    minus = {arm: Claim(f"{arm} is better than {first}", difference(arm, first)) for arm in others}
    return _rounded(
        {
            "experiment": experiment.name,
            "title": experiment.title,
            "about": experiment.about,
            "scale": records[0].get("scale", ""),
            "seeds": list(found.seeds),
            "unit": UNIT,
            "smallest_effect": experiment.smallest_effect,
            "parameters": records[0].get("parameters"),
            "command": records[0].get("command", ""),
            "machines": list(dict.fromkeys(record.get("machine", "") for record in records)),
            "versions": [each for n, each in enumerate(environments) if each not in environments[:n]],
            "documents": dict(zip(domains, counts, strict=True)),
            "left_out": dict(left_out or {}),
            "arms": [_arm(experiment, found, arm) for arm in experiment.arms],
            "choices": [_choice(experiment, found, name) for name in experiment.choices],
            "claims": _judged(claims, experiment.smallest_effect),
            "differences": _judged(
                [_claim(experiment, found, arm, claim) for arm, claim in minus.items()], experiment.smallest_effect
            ),
        }
    )


def _arm(experiment: Experiment, found: Measured, arm: str) -> Json:
    """Its loss, the mean over domains, and that of each domain."""
    domains = found.documents.domains
    overall = _estimated(found, lambda loss, among: np.mean([loss(arm, each) for each in among], axis=0), arm)
    each = {domain: _estimated(found, lambda loss, _, d=domain: loss(arm, d), arm) for domain in domains}
    return {
        "arm": arm,
        "mean": overall.estimate,
        "interval": overall.interval,
        "by_seed": overall.by_seed,
        "domains": {name: {"mean": one.estimate, "interval": one.interval} for name, one in each.items()},
        "axes": dict(experiment.arms[arm].axes),
    }


def _choice(experiment: Experiment, found: Measured, name: str) -> Json:
    choice = experiment.choices[name]
    by_seed = {arm: [choice.loss(found.records[arm, seed]) for seed in found.seeds] for arm in choice.of}
    chosen = {str(seed): arm for seed, arm in zip(found.seeds, found.chosen[name], strict=True)}
    validation = {arm: float(np.mean(losses)) for arm, losses in by_seed.items()}
    domains = {"domains": list(choice.domains)} if choice.domains else {}
    return {"choice": name, "of": list(choice.of), **domains, "chosen": chosen, "validation": validation}


def _claim(experiment: Experiment, found: Measured, name: str, claim: Claim) -> Json:
    """A claim without the corrected p value and the verdict; ``arms`` and ``domains`` are those that it is of."""
    asked: list[tuple[str, str]] = []

    def watched(loss: Loss, domains: Sequence[str]) -> np.ndarray:
        return claim.statistic(lambda arm, domain: asked.append((arm, domain)) or loss(arm, domain), domains)

    try:
        value = dataclasses.asdict(_estimated(found, watched, f"claim {name!r}"))
    except Undefined as error:
        value = {**dict.fromkeys(field.name for field in dataclasses.fields(Estimate)), "undefined": str(error)}
    return {
        "claim": name,
        "primary": claim.primary,
        "statement": claim.statement,
        **value,
        "unit": claim.unit,
        "paper": claim.paper,
        "arms": list(dict.fromkeys(arm for arm, _ in asked)),
        "domains": list(dict.fromkeys(domain for _, domain in asked)),
    }


class Undefined(UsageError):
    """A statistic that these losses do not define, such as the distance of two frontiers that no loss is common to."""


def _estimated(found: Measured, statistic: Statistic, what: str) -> Estimate:
    """A statistic at each seed, with all documents and without each, as an estimate with its interval."""
    domains, documents = found.documents.domains, found.documents.domain
    shape = (1 + len(documents),)
    rows = []
    for number, seed in enumerate(found.seeds):
        try:
            with np.errstate(all="ignore"):  # what is not finite is said below
                row = np.asarray(statistic(lambda arm, domain, n=number: found.loss(arm, domain, n), domains))
        except UsageError as error:
            raise UsageError(f"{what}: {error}") from error
        if row.shape != shape:
            raise UsageError(f"{what}: the statistic makes an array of {row.shape} of losses of {shape}; one for each")
        if not np.isfinite(row).all():
            raise Undefined(f"its value at seed {seed} is not finite with all documents, or without some")
        rows.append(row)
    values = np.stack(rows)
    return statistics.estimate(values[:, 0], values[:, 1:], documents)


def _judged(claims: Sequence[Json], smallest_effect: float) -> list[Json]:
    """Claims with ``p_holm``, over those that are primary, and ``verdict``."""
    primary = [claim for claim in claims if claim["primary"]]
    corrected = statistics.holm([1.0 if claim["p"] is None else claim["p"] for claim in primary])
    holm = {claim["claim"]: p for claim, p in zip(primary, corrected, strict=True) if claim["p"] is not None}
    judged = []
    for claim in claims:
        p = holm.get(claim["claim"]) if claim["primary"] else claim["p"]
        smallest = smallest_effect if claim["unit"] == UNIT else 0.0
        verdict = statistics.verdict(claim["interval"], p, smallest)
        judged.append({**claim, "p_holm": p if claim["primary"] else None, "verdict": verdict})
    return judged


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
