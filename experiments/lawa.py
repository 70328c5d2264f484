"""The LAWA paper's experiment (arXiv 2306.03241): averages of the latest checkpoints, early in training.

    wsm sweep experiments/lawa.py                 (1.3M parameters on the standard library, under an hour on two cores)
    wsm sweep experiments/lawa.py:gpt2_small      (the authors' model, rates and text; needs an accelerator)

AdamW with a warm-up and a cosine, to a tenth of the peak where the authors do not say otherwise. LAWA is the uniform
mean of the 5 latest checkpoints, at several spacings, chosen on validation; beside it the parameters as they are, the
EMA with 0.9 at every step, and SWA, here the uniform mean of all checkpoints since the warm-up. Peak rates: nanoGPT's,
ten times it, and at the small scale one between them, which is ours. All is measured at the same steps of a run.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from configs import lawa
from wsm_jax.errors import UsageError
from wsm_jax.sweeps import Arm, Choice, Claim, Experiment, RunSpec, difference
from wsm_jax.sweeps.experiment import Loss, Statistic

COUNT = 5
SHARES = (0.25, 0.5, 0.75, 1.0)
EARLY = (0.25, 0.5)
SPACINGS = (1, 2, 4)  # in intervals of the merge stream
SMALL: dict[str, Any] = {
    "duration": "640steps",
    "schedule.name": "cosine",
    "schedule.warmup": "0.05run",
    "averaging.names": "ema",
    "averaging.ema_decay": "0.9/step",
    "checkpoint.merge_interval": "0.025run",
    "checkpoint.resume_interval": "0.5run",
    "checkpoint.branch_points": "",
    "evaluation.interval": "",
}
# configuration, settings, peak rate -> final rate over it
SCALES: dict[str, tuple[str, dict[str, Any], dict[float, float]]] = {
    "small": ("configs/demo.py", SMALL, {6e-4: 0.1, 2e-3: 0.1, 6e-3: 0.1}),
    **{
        f"gpt2_{name}": (
            f"configs/lawa.py:{name}",
            {"checkpoint.merge_keep": 0},
            {size.nanogpt_lr: 0.1, size.peak_lr: size.min_lr / size.peak_lr},
        )
        for name, size in lawa.SIZES.items()
    },
}


def get_sweep(scale: str = "small") -> Experiment:
    """The experiment at a scale; UsageError for another."""
    if scale not in SCALES:
        raise UsageError(f"scale {scale!r}: choose {', '.join(SCALES)}")
    config, settings, rates = SCALES[scale]
    steps, interval, warm = _shape(scale)
    runs, arms, choices = {}, {}, {}
    for rate, share in itertools.product(rates, SHARES):
        run, at = f"lr {rate:g}", round(share * steps / interval) * interval
        where, arm = f"{run} at {share:g}", functools.partial(Arm, run, at=f"{at}steps")
        runs[run] = RunSpec({"optimizer.peak_lr": rate, "schedule.end_fraction": rates[rate]})
        spacings = [n for n in SPACINGS if at - (COUNT - 1) * n * interval >= warm]
        names = {n: f"{where}, LAWA every {n * interval}" for n in spacings}
        arms |= {
            f"{where}, raw": arm(),
            f"{where}, EMA": arm(item="ema"),
            f"{where}, SWA": arm({"curve": "linear", "count": (at - warm) // interval + 1}),
            **{name: arm({"curve": "lawa", "count": COUNT, "interval": n * interval}) for n, name in names.items()},
        }
        if names:
            choices[f"{where}, LAWA"] = Choice(list(names.values()))
    return Experiment(
        name=f"lawa-{scale}",
        title="LAWA early in training",
        config=config,
        runs=runs,
        arms=arms,
        choices=choices,
        claims=_claims(list(rates), choices),
        settings=settings,
        about=__doc__ or "",
    )


def _shape(scale: str) -> tuple[int, int, int]:
    """Steps of a run, between checkpoints, and of the warm-up."""
    if scale == "small":
        steps = int(SMALL["duration"].removesuffix("steps"))
        return steps, round(0.025 * steps), round(0.05 * steps)
    config = lawa.get_config(scale.removeprefix("gpt2_"))
    return config.steps, config.duration_steps("", config.checkpoint.merge_interval), 2000


def _claims(rates: Sequence[float], choices: dict[str, Choice]) -> dict[str, Claim]:
    claims = {}
    for share in (share for share in EARLY if f"lr {rates[0]:g} at {share:g}, LAWA" in choices):
        for rate in rates:
            where = f"lr {rate:g} at {share:g}"
            for other in ("raw", "EMA", "SWA"):
                statement = f"At a peak rate of {rate:g}, {share:.0%} into the run, LAWA is better than {other}."
                claims[f"{where}: {other}"] = Claim(statement, difference(f"{where}, LAWA", f"{where}, {other}"))
        low, high = (f"lr {rate:g} at {share:g}" for rate in (rates[0], rates[-1]))
        statement = f"{share:.0%} into the run, LAWA's gain grows with the peak rate."
        claims[f"at {share:g}: rate"] = Claim(statement, _gain_grows(low, high))
    return claims


def _gain_grows(low: str, high: str) -> Statistic:
    """LAWA minus raw at the high rate, minus the same at the low one."""

    def statistic(loss: Loss, domains: Any) -> Any:
        gains = [difference(f"{where}, LAWA", f"{where}, raw")(loss, domains) for where in (high, low)]
        return gains[0] - gains[1]

    return statistic
