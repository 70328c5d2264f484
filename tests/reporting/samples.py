"""Made-up results, of the shape that a sweep leaves; ``python -m tests.reporting.samples DIR`` writes some."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from wsm_jax.reporting import experiment_page

DOMAINS = {"novels": 28, "proposals": 24, "mathematics": 60}
SEEDS = (0, 1, 2)
SMALLEST = 0.002


def statistic(name: str, center: float, width: float, *, primary: bool = False, **more: Any) -> dict[str, Any]:
    """A claim or difference with the estimate ``center`` and an interval ``width`` to each side."""
    by_seed = [center + width * step for step in (-0.4, 0.1, 0.3)]
    interval = [center - width, center + width]
    verdict = "better" if interval[1] < 0 else "worse" if interval[0] > 0 else "open"
    verdict = "equal" if -SMALLEST <= interval[0] and interval[1] <= SMALLEST else verdict
    p = float(np.exp(-3 * abs(center) / width))
    return {
        "claim": name,
        "primary": primary,
        "statement": name,
        "estimate": center,
        "interval": interval,
        "p": p,
        "p_holm": min(1.0, 3 * p) if primary else None,
        "by_seed": by_seed,
        "stderr_seeds": width / 4,
        "stderr_documents": width / 6,
        "degrees": 2.7,
        "unit": "bits per byte",
        "paper": "",
        "verdict": verdict,
        **more,
    }


CLAIMS = [
    statistic("merging the last checkpoints is better than the real 1-sqrt decay", 0.0121, 0.006, primary=True),
    statistic("16 checkpoints are better than 4 at a window of 10% of the run", -0.0136, 0.0047, primary=True),
    statistic("halving the rate, then merging is better than the decay", -0.0011, 0.0031, primary=True),
    statistic(
        "the merge's gain grows more slowly than the decay's", -0.31, 0.12, primary=True, unit="exponent minus 1"
    ),
    statistic("merge, linear is better than merge, EMA", -0.0092, 0.0024, paper="63.95 against 63.01"),
    statistic("interval means are better than points", 0.0002, 0.0011),
    statistic("two times the rate is better", 0.018, 0.09),
]


def arm(name: str, loss: float, axes: dict[str, Any]) -> dict[str, Any]:
    """An arm of claims.json."""
    domains = {
        domain: {"mean": loss + step, "interval": [loss + step - 0.02, loss + step + 0.02]}
        for domain, step in zip(DOMAINS, (-0.2, 0.05, 0.15), strict=True)
    }
    by_seed = [loss - 0.01, loss, loss + 0.01]
    return {
        "arm": name,
        "mean": loss,
        "interval": [loss - 0.02, loss + 0.02],
        "by_seed": by_seed,
        "domains": domains,
    } | {"axes": axes}


def points(*fields: str) -> list[dict[str, Any]]:
    """The product of the axes that are named."""
    values = {
        "merge.window": ["0.025run", "0.05run", "0.1run", "0.2run"],
        "merge.count": [4, 8, 16],
        "merge.curve": ["linear", "minus_sqrt", "ema"],
        "config.optimizer.peak_lr": [0.001, 0.003],
    }
    return [dict(zip(fields, each, strict=True)) for each in itertools.product(*(values[field] for field in fields))]


def claims_of(name: str, axes: list[dict[str, Any]], claims: list[dict[str, Any]]) -> dict[str, Any]:
    """A claims.json: the arms of a sweep, or three without axes."""
    noise = np.random.default_rng(0)
    arms, differences = [arm("last", 2.871, {})], []
    for point in axes or [{}, {}]:
        window = float(str(point.get("merge.window", "0.1")).removesuffix("run"))
        gain = -0.04 + 0.01 * np.log2(window / 0.1) ** 2 + 0.01 * noise.normal()
        text = ",".join(f"{field.rpartition('.')[2]}={value}" for field, value in point.items())
        text = text or ("merge 10%", "decay 10%")[len(differences)]
        arms.append(arm(text, 2.871 + gain, point))
        differences.append(statistic(text, float(gain), 0.012))
    validation = {each["arm"]: each["mean"] + 0.02 for each in arms[1:]}
    best = min(validation, key=lambda key: validation[key])
    choice = {
        "choice": "best merge",
        "of": [*validation],
        "chosen": dict.fromkeys("012", best),
        "validation": validation,
    }
    return {
        "experiment": name,
        "title": f"{name.replace('_', ' ').capitalize()}: what it shows",
        "about": f"Made-up figures of `{name}`.\nThey show <nothing> & more.\n\nSee [the data](claims.json).",
        "scale": "small",
        "seeds": [*SEEDS],
        "unit": "bits per byte",
        "smallest_effect": SMALLEST,
        "parameters": 1_328_256,
        "command": f"wsm sweep experiments/{name}.py:small --results=results/{name}/small",
        "machines": ["1 x cpu, 2 cores of AMD EPYC"],
        "versions": [{"python": "3.11.7", "wsm_jax": "0.2.0", "jax": "0.10.2", "numpy": "2.4.6"}],
        "documents": DOMAINS,
        "left_out": {"novels": 0, "mathematics": 3},
        "arms": arms,
        "choices": [choice],
        "claims": claims,
        "differences": differences,
    }


def write(folder: Path, axes: list[dict[str, Any]] | None = None, claims: list[dict[str, Any]] | None = None) -> Path:
    """Writes claims.json and records.jsonl of FOLDER = ANY/NAME/small and returns the folder."""
    found = claims_of(folder.parent.name, axes or [], CLAIMS if claims is None else claims)
    folder.mkdir(parents=True)
    (folder / "claims.json").write_text(json.dumps(found))
    records = [
        {
            "arm": each["arm"],
            "seed": seed,
            "axes": each["axes"],
            "test": loss,
            "piece": f"seed{seed}",
            "piece_seconds": 600.0,
        }
        for each in found["arms"]
        for seed, loss in zip(SEEDS, each["by_seed"], strict=True)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


if __name__ == "__main__":
    root = Path(sys.argv[1])
    write(root / "headline" / "small")
    write(root / "ablation" / "small", points("merge.window", "merge.count"), [])
    write(root / "curves" / "small", points("merge.window", "merge.count", "merge.curve"), [])
    write(
        root / "four_axes" / "small", points("config.optimizer.peak_lr", "merge.window", "merge.count", "merge.curve")
    )
    for folder in sorted(root.glob("*/small")):
        print(experiment_page.write(folder))
