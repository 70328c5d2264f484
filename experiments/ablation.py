"""Merge duration x interval x count x curve: the ablation of Tables 3 and 4 and Figure 4, from one run for each seed.

    wsm sweep experiments/ablation.py[:SCALE]

The window of a merge is count x interval long, as Table 4 counts, so duration and interval decide the count. Lengths
are in intervals of the checkpoints, of which a run has 64; the real decay takes the last 16, and 16 checkpoints are
merged in Tables 3 and 4. All merges of a run come from one pass. The text is the interpreter's standard library;
--config.data.source=... takes other text. As in the paper's tables the peak rate is that of the constant run.
"""

import dataclasses

from configs import matrix
from wsm_jax.sweeps import Arm, Choice, Claim, Experiment, Measure, RunSpec, Sweep, axis, chain, difference, product

DURATIONS, INTERVALS, CURVES = (2, 4, 8, 16, 32, 48), (1, 2, 4, 8, 16), ("linear", "minus_sqrt", "ema")
DECAY = "1-sqrt decay"
SCALES = {"small": (0, 1, 2), "medium": (0, 1, 2), "gpu": (0, 1, 2, 3, 4), "tiny": (0, 1)}  # seeds


def get_sweep(scale: str = "small") -> Experiment:
    """The grid of duration and interval for the mean, and of duration for the other curves; a real decay beside it."""
    own = matrix.SIZES[scale].steps // matrix.INTERVALS
    grids = [product(_durations(own, [d]), _intervals(own, d), axis("merge.curve", ["linear"])) for d in DURATIONS]
    curves = product(_durations(own, DURATIONS), _intervals(own, 1), axis("merge.curve", CURVES[1:]))
    seeds = axis("config.seed", SCALES[scale])
    made = Sweep("ablation", f"configs/matrix.py:{scale}", product(seeds, chain(*grids, curves))).experiment()
    merges = {name: arm for name, arm in made.arms.items() if arm.merge}
    cooldown = {"schedule.name": "cooldown", "schedule.curve": "minus_sqrt"}
    return dataclasses.replace(
        made,
        title="Duration, interval, count and curve of a merge (Tables 3 and 4, Figure 4)",
        runs={**made.runs, "decay": RunSpec(cooldown, branch_from="run@0.75run")},
        arms={**made.arms, DECAY: Arm("decay")},
        choices={"best merge": Choice(list(merges))},
        claims=_claims(own),
        measure=Measure(validation_tokens=32768, test_tokens=131072),
    )


def _durations(own: int, values: list[int] | tuple[int, ...]):
    return axis("merge.window", [f"{value * own}steps" for value in values])


def _intervals(own: int, duration: int):
    """All that divide a duration into two checkpoints or more, and, as in Table 4, the whole of it: no merge."""
    return axis("merge.interval", [value * own for value in INTERVALS if duration % value == 0])


def _claims(own: int) -> dict[str, Claim]:
    def arm(duration: int, interval: int = 1, curve: str = "linear") -> str:
        return f"window={duration * own}steps,interval={interval * own},curve={curve}"

    def claim(statement: str, first: str, second: str, paper: str, primary: bool = False) -> Claim:
        return Claim(statement, difference(first, second), primary=primary, paper=paper)

    merge = arm(16)
    return {
        "merge": claim("A mean of 16 is better than no merge.", merge, "last", "63.63 against 60.33, Table 4", True),
        "duration": claim("Merging longer is better: 16 against 4 intervals.", merge, arm(4), "Figure 4", True),
        "interval": claim(
            "Merging more densely is better: 16 x 1 against 4 x 4.",
            merge,
            arm(16, 4),
            "63.63 against 63.36, Table 4",
            True,
        ),
        "few": claim("Two checkpoints 8 apart are worse than 16.", merge, arm(16, 8), "63.63 against 62.77, Table 4"),
        "duration before interval": claim(
            "4 x 4 over 16 intervals is better than 4 x 1.", arm(16, 4), arm(4), "duration matters most"
        ),
        "curve": claim(
            "1-sqrt is better than the mean.", arm(16, curve="minus_sqrt"), merge, "64.06 against 63.95, Table 3"
        ),
        "ema": claim("The mean is better than EMA.", merge, arm(16, curve="ema"), "63.95 against 63.01, Table 3"),
        "decay": claim(
            "The best merge is better than the decay.", "best merge", DECAY, "64.06 against 62.67, Table 3", True
        ),
    }
