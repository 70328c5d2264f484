"""The part of an experiment that is measured: of a sweep of which pieces failed, or only some were asked for."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wsm_jax.sweeps.experiment import Claim, Experiment


def measured_part(experiment: Experiment, records: Sequence[dict[str, Any]], say: Callable[[str], None]) -> Experiment:
    """The experiment with the seeds that there are, the arms that every one of them has, and what is said of those.

    Args:
      experiment: as it is declared.
      records: of its arms, at least one.
      say: is told which arms and claims are left out.
    """
    there = {(record["arm"], record["seed"]) for record in records}
    seeds = [seed for seed in experiment.seeds if any(other == seed for _, other in there)]
    arms = {name: arm for name, arm in experiment.arms.items() if all((name, seed) in there for seed in seeds)}
    if not arms:  # the first seed with any record has some
        seeds = seeds[:1]
        arms = {name: arm for name, arm in experiment.arms.items() if (name, seeds[0]) in there}
    choices = {name: one for name, one in experiment.choices.items() if set(one.of) <= set(arms)}
    claims = {name: one for name, one in experiment.claims.items() if asked_of(one) <= {*arms, *choices}}
    if missing := [name for name in experiment.arms if name not in arms]:
        say(f"not measured for all seeds, and left out of the results: {', '.join(missing)}")
    if unclaimed := [name for name in experiment.claims if name not in claims]:
        say(f"claims on what was not measured: {', '.join(unclaimed)}")
    return dataclasses.replace(
        experiment,
        seeds=seeds,
        runs={name: dataclasses.replace(run, params_from="") for name, run in experiment.runs.items()},
        arms=arms,
        choices=choices,
        claims=claims,
    )


def asked_of(claim: Claim) -> set[str]:
    """The arms and choices whose losses a claim asks for."""
    asked: set[str] = set()

    def loss(arm: str, domain: str) -> np.ndarray:
        asked.add(arm)
        return np.arange(1.0, 3.0)

    with np.errstate(all="ignore"):
        claim.statistic(loss, ["domain"])
    return asked
