"""What a sweep found, for the terminal: the loss of every arm, its difference to the first, and the claims."""

import statistics
from collections.abc import Sequence
from typing import Any

from wsm_jax.io import files
from wsm_jax.reporting.tables import print_table, signed
from wsm_jax.sweeps.claims import CLAIMS
from wsm_jax.sweeps.plan import Plan


def summary(plan: Plan, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Arms with their mean losses and their paired difference to the first arm, and the claims as claims.json has them.

    Args:
      plan: of the sweep.
      records: of the pieces that are done.
    """
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records:
        by_arm.setdefault(record["arm"], {})[record["seed"]] = record
    names = [name for name in plan.experiment.arms if name in by_arm]
    first, rows = by_arm[names[0]], []
    for name in names:
        own = by_arm[name]
        paired = [own[seed]["test"] - first[seed]["test"] for seed in own if seed in first]
        means = {split: statistics.fmean(one[split] for one in own.values()) for split in ("validation", "test")}
        difference = statistics.fmean(paired) if paired else None
        rows.append({"arm": name, "seeds": sorted(own), **means, "difference": difference})
    claims = files.json_or_none(plan.results / CLAIMS) or {}
    return {
        "experiment": plan.experiment.name,
        "results": str(plan.results),
        "reference": names[0],
        "arms": rows,
        "claims": claims.get("claims", []),
    }


def show(found: dict[str, Any]) -> None:
    """Prints a summary."""
    header = ["arm", "seeds", "validation", "test", f"test minus {found['reference']}"]
    rows = []
    for row in found["arms"]:
        difference = "–" if row["difference"] is None else f"{row['difference']:+.4f}"
        rows.append([row["arm"], str(len(row["seeds"])), f"{row['validation']:.4f}", f"{row['test']:.4f}", difference])
    print_table(header, rows, title=f"{found['experiment']}: bits per byte")
    for claim in found["claims"]:
        print(f"{claim['verdict']}: {claim['statement']} {_figures(claim)} {claim['unit']}")
    print(f"results: {found['results']}")


def _figures(claim: dict[str, Any]) -> str:
    if claim["estimate"] is None:
        return "not defined"
    return signed(claim["estimate"], *(claim["interval"] or ()))
