"""Many runs and merges from one file: what is declared, carried out, measured and claimed."""

from wsm_jax.sweeps.axes import Sweep, axis, chain, product, zipped
from wsm_jax.sweeps.experiment import Arm, Choice, Claim, Experiment, Measure, RunSpec, difference

__all__ = [
    "Arm",
    "Choice",
    "Claim",
    "Experiment",
    "Measure",
    "RunSpec",
    "Sweep",
    "axis",
    "chain",
    "difference",
    "product",
    "zipped",
]
