"""Merge duration x interval x count x curve: the ablation of Tables 3 and 4 and Figure 4, from one run for each seed.

    wsm sweep experiments/ablation.py[:SCALE]

A window is count x interval long, as Table 4 counts, so duration and interval decide the count. Both are given here in
intervals of the checkpoints, of which a run has 64; the real decay takes the last 16 of them. All merges of a run come
from one pass. The text is the interpreter's standard library; --config.data.source=... takes other text.
"""

import dataclasses
from collections.abc import Sequence

from configs import matrix
from wsm_jax.sweeps import Arm, Choice, Claim, Experiment, Measure, RunSpec, Sweep, axis, chain, difference, product
from wsm_jax.sweeps.axes import Points

DURATIONS, INTERVALS, CURVES = (2, 4, 8, 16, 32, 48), (1, 2, 4, 8, 16), ("linear", "minus_sqrt", "ema")
DECAY = "1-sqrt decay"
SEEDS = {"small": (0, 1, 2), "medium": (0, 1, 2), "gpu": (0, 1, 2, 3, 4), "tiny": (0, 1)}
TOKENS = {"small": (16384, 65536), "medium": (32768, 131072), "gpu": (131072, 524288), "tiny": (4096, 8192)}


def get_sweep(scale: str = "small") -> Experiment:
    """The mean over a grid of durations and intervals, the other curves over durations, and a real decay."""
    unit = matrix.SIZES[scale].steps // matrix.INTERVALS  # steps
    validation, test = TOKENS[scale]
    points = chain(
        *(_grid(unit, duration, [i for i in INTERVALS if duration % i == 0], CURVES[:1]) for duration in DURATIONS),
        *(_grid(unit, duration, INTERVALS[:1], CURVES[1:]) for duration in DURATIONS),
    )
    config = f"configs/matrix.py:{scale}"
    made = Sweep("ablation", config, product(axis("config.seed", SEEDS[scale]), points)).experiment()
    cooldown = {"schedule.name": "cooldown", "schedule.curve": "minus_sqrt"}
    return dataclasses.replace(
        made,
        title="Duration, interval, count and curve of a merge (Tables 3 and 4, Figure 4)",
        runs={**made.runs, "decay": RunSpec(cooldown, branch_from="run@0.75run")},
        arms={**made.arms, DECAY: Arm("decay")},
        choices={"best merge": Choice([name for name, arm in made.arms.items() if arm.merge])},
        claims=_claims(unit),
        measure=Measure(validation_tokens=validation, test_tokens=test),
    )


def _grid(unit: int, duration: int, intervals: Sequence[int], curves: Sequence[str]) -> Points:
    """Merges over one duration. An interval as long as it leaves one checkpoint: no merge, as 80B x 1 of Table 4."""
    windows = axis("merge.window", [f"{duration * unit}steps"])
    return product(windows, axis("merge.interval", [each * unit for each in intervals]), axis("merge.curve", curves))


def _claims(unit: int) -> dict[str, Claim]:
    """What the paper finds of merges over 16 intervals, as long as the decay."""

    def arm(duration: int, interval: int = 1, curve: str = "linear") -> str:
        return f"window={duration * unit}steps,interval={interval * unit},curve={curve}"

    def claim(statement: str, better: str, worse: str, paper: str, primary: bool = False) -> Claim:
        return Claim(statement, difference(better, worse), primary=primary, paper=paper)

    mean, dense, few = arm(16), "63.63 against 63.36 (Table 4)", "63.63 against 62.77 (Table 4)"
    return {
        "merge": claim("A mean of 16 is better than no merge.", mean, "last", "63.63 against 60.33 (Table 4)", True),
        "duration": claim("16 x 1 is better than 4 x 1: longer is better.", mean, arm(4), "Figure 4", True),
        "interval": claim("16 x 1 is better than 4 x 4: denser is better.", mean, arm(16, 4), dense, True),
        "count": claim("16 x 1 is better than 2 x 8: more is better.", mean, arm(16, 8), few),
        "duration before count": claim("4 x 4 is better than 4 x 1.", arm(16, 4), arm(4), "duration matters most"),
        "1-sqrt": claim(
            "1-sqrt is better than the mean.", arm(16, 1, CURVES[1]), mean, "64.06 against 63.95 (Table 3)"
        ),
        "EMA": claim("The mean is better than EMA.", mean, arm(16, 1, CURVES[2]), "63.95 against 63.01 (Table 3)"),
        "decay": claim("The best merge is better than the decay.", "best merge", DECAY, "64.06 against 62.67", True),
    }
