"""Peak rate and weight decay of each arm, chosen on validation, before experiments/standard.py.

    wsm sweep experiments/tuning.py:half --results=results/tuning/half --parallel=2
    wsm sweep experiments/tuning.py:full --results=results/tuning/full --parallel=2

`half`: 4 rates × 3 weight decays at half the length of the main runs, on a seed of its own. `full`: the three best of
each arm at full length, on another seed. The merge's are those with the lowest validation loss of its best window, the
decay's those of its linear decay over 10% of the run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.standard import SIZES
from experiments import text
from experiments.parts import decay, window
from wsm_jax.errors import UsageError
from wsm_jax.io.files import read_jsonl
from wsm_jax.sweeps import Arm, Choice, Experiment, RunSpec

RATES, WEIGHT_DECAYS = (1e-3, 2e-3, 4e-3, 8e-3), (0.01, 0.03, 0.1)
SEEDS = {"half": 3, "full": 4}
LENGTHS = {"half": 0.5, "full": 1.0}
WINDOWS = (0.05, 0.1, 0.2)
RESULTS = Path("results") / "tuning"
FIELDS: tuple[str, ...] = ("optimizer.peak_lr", "optimizer.weight_decay")
BEST = 3


def get_sweep(stage: str = "half") -> Experiment:
    """The runs of a stage; UsageError for another, or for ``full`` before ``half``."""
    if stage not in SEEDS:
        raise UsageError(f"stage {stage!r}: choose {', '.join(SEEDS)}")
    size, words = SIZES["standard"], text.text("standard")
    steps = round(LENGTHS[stage] * size.steps)
    grid = [dict(zip(FIELDS, (rate, decay), strict=True)) for rate in RATES for decay in WEIGHT_DECAYS]
    if stage == "full":
        grid = [
            settings for settings in grid if any(settings in best(arm, "half")[:BEST] for arm in ("merge", "decay"))
        ]
    runs, arms = {}, {}
    for tuned in grid:
        name = f"lr {tuned[FIELDS[0]]:g}, wd {tuned[FIELDS[1]]:g}"
        axes = {f"config.{field}": value for field, value in tuned.items()}
        runs[name] = RunSpec(tuned)
        runs[f"{name} decay"] = decay(name, 0.1, "linear", tuned, size, length=LENGTHS[stage])
        arms[f"{name} last"] = Arm(name, axes=axes)
        arms[f"{name} decay"] = Arm(f"{name} decay", axes=axes)
        for share in WINDOWS:
            merge = window(share, size, "linear", length=LENGTHS[stage])
            arms[f"{name} merge {share:.0%}"] = Arm(name, merge, axes=axes)
    kinds = {kind: [arm for arm in arms if f" {kind}" in arm] for kind in ("merge", "decay")}
    return Experiment(
        name=f"tuning-{stage}",
        title=f"Rate and weight decay of each arm, {stage} length",
        config="configs/standard.py",
        runs=runs,
        arms=arms,
        seeds=(SEEDS[stage],),
        settings={**words.stable_only, "duration": f"{steps}steps"},
        choices={kind: Choice(names) for kind, names in kinds.items()},
        measure=words.measure,
        about=__doc__ or "",
    )


def best(arm: str, stage: str) -> list[Mapping[str, Any]]:
    """Rate and weight decay of a finished stage, those with the lowest validation loss of ``merge`` or ``decay`` first.

    Raises:
      UsageError: the stage was not run.
    """
    file = RESULTS / stage / "records.jsonl"
    found = [record for record in read_jsonl(file) if f" {arm}" in record["arm"]]
    if not found:
        raise UsageError(
            f"{file} is not there; run wsm sweep experiments/tuning.py:{stage} --results={RESULTS / stage}"
        )
    ordered = sorted(found, key=lambda record: record["validation"])
    settings = [{field: record["axes"][f"config.{field}"] for field in FIELDS} for record in ordered]
    return [each for place, each in enumerate(settings) if each not in settings[:place]]


def chosen(scale: str) -> dict[str, dict[str, Any]]:
    """Arm -> its rate and weight decay; ``tiny`` tunes nothing.

    Raises:
      UsageError: ``full`` was not run.
    """
    if scale == "tiny":
        return {arm: dict(zip(FIELDS, (4e-3, 0.03), strict=True)) for arm in ("merge", "decay")}
    return {arm: dict(best(arm, "full")[0]) for arm in ("merge", "decay")}
