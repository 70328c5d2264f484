"""An experiment of two runs from scratch and two branches, and its plan."""

from pathlib import Path

from wsm_jax.cli import config_flags
from wsm_jax.sweeps import Arm, Experiment, RunSpec, plan
from wsm_jax.sweeps.declared import Declared

CONFIG = str(Path(__file__).parent.parent.parent / "configs" / "matrix.py") + ":tiny"  # 128 steps, 64 checkpoints
MEAN = {"curve": "linear", "count": 4}
COOLDOWN = {"schedule.name": "cooldown"}
GOOD = Experiment(
    "e",
    "An experiment",
    CONFIG,
    runs={
        "decay": RunSpec(COOLDOWN, branch_from="constant@0.5run"),
        "constant": RunSpec(),
        "other": RunSpec({"optimizer.peak_lr": 1e-2}),
        "again": RunSpec(branch_from="decay@100steps"),
    },
    arms={"last": Arm("constant"), "mean": Arm("constant", MEAN), "other": Arm("other"), "decay": Arm("decay")},
    seeds=(3, 4),
)


def made(experiment=GOOD, **options):
    """Its plan; nothing is written."""
    declared = Declared(experiment, "file.py", "tiny")
    return plan.make(declared, config_flags.load, **{"output": Path("nowhere") / "out", **options})
