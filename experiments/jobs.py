"""The training runs of a seed: where each one starts and ends, its schedule, its text."""

import dataclasses
from typing import Any

from configs import matrix

WSM, WSD = "wsm", "wsd"
CURVES = ("linear", "cosine", "minus_sqrt")
ADAMW, LION, MUON = "adamw", "lion", "muon"
# Lion as its authors advise beside AdamW: a weight decay that is larger as its rate is smaller (arXiv 2302.06675).
OPTIMIZERS = {
    ADAMW: (),
    LION: ("optimizer.name=lion", "optimizer.b2=0.99", "optimizer.weight_decay=1.0"),
    MUON: ("optimizer.name=muon", "optimizer.b1=0.95"),
}
BRANCH, END = matrix.INTERVALS - matrix.DECAY, matrix.INTERVALS  # intervals: end of the stable run, of constant run
EXTRA = 4  # intervals that the switched run goes on after the real decay's end, as the paper's (500B against 400B)
POINTS, SHORT = (16, 32, 48), 8  # where short decays leave the stable run (Figure 5a), and how long they take
LATER = 16  # intervals that training goes on for after the end
REDECAY = 8  # of them, in a decay again
RATE_FACTORS = (0.25, 0.5, 2.0)  # constant rates of other branches, over the tuned one
# Fields that the jobs, their seeds and rates set themselves.
FIXED = (
    *("seed", "duration", "batch_size", "optimizer.name", "optimizer.peak_lr", "schedule.name", "schedule.curve"),
    *("data.source", "data.switch_source", "data.switch_at"),
    *("checkpoint.merge_interval", "checkpoint.branch_points", "checkpoint.snapshot"),
)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run. Its schedule, where it starts and ends.

    Attributes:
      settings: ``FIELD=VALUE`` of the configuration.
      parent: the job from whose full state it starts; "": from scratch.
      start: intervals at which it does.
      end: intervals at which it ends.
      keep: intervals whose full state is kept for branches.
      switch: whether it reads the annealing text from the end of the stable run on.
      merged: if not 0, it starts with the mean of so many of its parent's latest checkpoints.
      rate: its peak rate over the parent's.
      batch: its batch size over the parent's.
    """

    settings: tuple[str, ...] = ()
    parent: str = ""
    start: int = 0
    end: int = END
    keep: tuple[int, ...] = ()
    switch: bool = False
    merged: int = 0
    rate: float = 1.0
    batch: int = 1


# Where nothing reads the means over intervals, and where something does; the others save what their size says.
_POINTS_ONLY, _BOTH = ("checkpoint.snapshot=point",), ("checkpoint.snapshot=both",)


def _decay(curve: str, *, parent: str = "stable", start: int = BRANCH, end: int = END, **more: Any) -> Job:
    settings = ("schedule.name=cooldown", f"schedule.curve={curve}", *_POINTS_ONLY)
    return Job(settings, parent, start, end, **more)


JOBS = {
    "stable": Job(end=BRANCH, keep=POINTS),
    "constant": Job(_BOTH, "stable", BRANCH),
    "switched": Job(_BOTH, "stable", BRANCH, END + EXTRA, switch=True),
    "switched-minus_sqrt": _decay("minus_sqrt", switch=True),  # the paper's
    "switched-linear": _decay("linear", switch=True),
    **{f"decay-{curve}": _decay(curve) for curve in CURVES},
    "cosine": Job(("schedule.name=cosine", *_POINTS_ONLY)),
    **{f"short-{at}": _decay("minus_sqrt", start=at, end=at + SHORT, keep=(at + SHORT,)) for at in POINTS},
    "merged-decay": _decay("minus_sqrt", merged=matrix.DECAY),
    **{f"rate-{factor:g}": Job(_POINTS_ONLY, "stable", BRANCH, rate=factor) for factor in RATE_FACTORS},
    # As many tokens as the others.
    "batch-2": Job(_POINTS_ONLY, "stable", BRANCH, BRANCH + matrix.DECAY // 2, batch=2),
    "merged-constant": Job(_POINTS_ONLY, "stable", BRANCH, merged=matrix.DECAY),
    "continued": Job((), "constant", END, END + LATER),
    "merged-continued": Job((), "constant", END, END + LATER, merged=matrix.DECAY),
    "rewarmed": Job(("schedule.name=rewarm",), "decay-minus_sqrt", END, END + LATER, keep=(END + LATER - REDECAY,)),
    "rewarmed-decay": _decay("minus_sqrt", parent="rewarmed", start=END + LATER - REDECAY, end=END + LATER),
}
