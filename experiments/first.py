"""A first experiment, to copy: does a merge of checkpoints do what a decay of the learning rate does?

    wsm sweep experiments/first.py [--dry_run]

docs/experiments.md explains it.
"""

from wsm_jax.sweeps import Arm, Choice, Claim, Experiment, Measure, RunSpec, difference

WINDOWS = ("0.0625run", "0.125run", "0.25run", "0.5run")
MERGES = {f"merge {window}": Arm("constant", {"curve": "linear", "window": window}) for window in WINDOWS}


def get_sweep(scale: str = "small") -> Experiment:
    """A run at a constant rate with its merges, and a real decay over the last quarter of it."""
    return Experiment(
        name="first",
        title="A merge beside a decay",
        config=f"configs/matrix.py:{scale}",
        settings={"optimizer.peak_lr": 3e-3},
        seeds=(0, 1, 2),
        runs={
            "constant": RunSpec(),
            "decay": RunSpec(
                {"schedule.name": "cooldown", "schedule.curve": "minus_sqrt"},
                branch_from="constant@0.75run",
            ),
        },
        arms={"no merge": Arm("constant"), "decay": Arm("decay"), **MERGES},
        choices={"best merge": Choice(list(MERGES))},
        claims={
            "merging helps": Claim("The best merge is better than no merge.", difference("best merge", "no merge")),
            "merge or decay": Claim(
                "The best merge is better than the decay.",
                difference("best merge", "decay"),
                primary=True,
                paper="63.95 against 62.67 points (Table 1)",
            ),
        },
        measure=Measure(validation_tokens=16384, test_tokens=65536),
    )
