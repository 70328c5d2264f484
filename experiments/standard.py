"""The main experiment: a map of the regime, a frontier, and the seven claims of experiments/claims.py.

    wsm sweep experiments/tuning.py:half ...          (first; it chooses rate and weight decay of each arm)
    wsm sweep experiments/standard.py --results=results/standard --parallel=2

A *switch* is to 50% new text at 80% of the run, after 10% before it, so that old text never vanishes. Merges are chosen
on validation among 3 curves and windows of 2.5, 5, 10 and 20% of the run, decays among the same curves and lengths; at
the end all have read the same tokens. A cell of the map is a run of its own at one λ = rate × weight decay × steps and
one number of tokens a parameter.

Run-equivalents (one is 16,000 steps, about 10 minutes with two at a time on two cores), 3 seeds:

    without a switch: trunks at both arms' rates, 12 decays, 4 at half the rate, 2 partial     3 × 3.7 = 11
    with a switch: trunks at both arms' rates, 12 decays                                       3 × 3.1 =  9
    full replacement of the old text: a branch, 4 decays                                       3 × 0.6 =  2
    the map: λ = 0.5, 2, 6, 20 at 30 and 60 tokens a parameter, 120 at λ = 2, 2 decays each    3 × 9.6 = 29
    tuning (experiments/tuning.py)                                                                       11

Cut in this order where time is short: full replacement, the cell of 120 tokens a parameter, λ = 0.5.
"""

from collections.abc import Mapping
from typing import Any

from configs.standard import SIZES, Size
from experiments import claims, text, tuning
from experiments.claims import DURATIONS, END_RATES
from experiments.parts import Part, branch, decay, joined, window
from wsm_jax.errors import UsageError
from wsm_jax.sweeps import Arm, Choice, Experiment, RunSpec

CURVES = ("linear", "cosine", "minus_sqrt")
SHARES = dict(zip(DURATIONS, (0.025, 0.05, 0.1, 0.2), strict=True))
CELLS = [(lam, tokens) for lam in (0.5, 2, 6, 20) for tokens in (30, 60)] + [(2, 120)]  # λ, tokens a parameter
LENGTHS = {30: 0.5, 60: 1.0, 120: 2.0}
MAP_RATE = 2e-3
HIGH = "λ=20 at 60"  # where rate × weight decay × window of 5% is 1
SWITCH = {"data.switch_at": "0.8run"}
Settings = dict[str, Any]


def get_sweep(scale: str = "standard") -> Experiment:
    """The experiment at a size of configs/standard.py; ``tiny`` takes minutes and its figures mean nothing.

    Raises:
      UsageError: another scale, no text, or rates that were not tuned.
    """
    if scale not in SIZES:
        raise UsageError(f"scale {scale!r}: choose {', '.join(SIZES)}")
    size, words, rates = SIZES[scale], text.text(scale), tuning.chosen(scale)
    switched = words.some_new | words.half_new | SWITCH
    cells = {f"λ={lam:g} at {tokens}": (lam, tokens) for lam, tokens in CELLS}
    parts = joined(
        merges("", rates["merge"] | words.stable_only, size),
        decays("", rates["decay"] | words.stable_only, size),
        substitutes(rates["merge"] | words.stable_only, size),
        exploratory("", size),
        exploratory("switched ", size),
        merges("switched ", rates["merge"] | switched, size),
        decays("switched ", rates["decay"] | switched, size),
        replaced(rates["merge"] | words.stable_only | words.all_new | SWITCH, size),
        *(map_cell(name, *cell, words.stable_only, size) for name, cell in cells.items()),
        aware(map_settings(*cells[HIGH], words.stable_only, size), size),
    )
    return Experiment(
        name="standard" if scale == "standard" else f"standard-{scale}",
        title="Merge against decay: a map of the regime, a frontier, seven claims",
        config=f"configs/standard.py:{scale}",
        **parts._asdict(),
        claims=claims.primary(list(cells)),
        measure=words.measure,
        about=__doc__ or "",
    )


def merges(prefix: str, settings: Settings, size: Size) -> Part:
    """The trunk at the merge's rate, its merges, and what validation may choose: of all, and of each length."""
    trunk = f"{prefix}constant"
    names = {(c, d): f"{prefix}merge {c} {d}" for d in DURATIONS for c in CURVES}
    arms = {name: Arm(trunk, window(SHARES[d], size, c)) for (c, d), name in names.items()}
    return Part({trunk: RunSpec(settings)}, {f"{prefix}last": Arm(trunk), **arms}, _choices(f"{prefix}merge", names))


def decays(prefix: str, settings: Settings, size: Size) -> Part:
    """The trunk at the decay's rate, the real decays from it, and what validation may choose of them."""
    trunk = f"{prefix}decay trunk"
    names = {(c, d): f"{prefix}decay {c} {d}" for d in DURATIONS for c in CURVES}
    runs = {name: decay(trunk, SHARES[d], c, settings, size) for (c, d), name in names.items()}
    arms = {f"{trunk} last": Arm(trunk), **{name: Arm(name) for name in runs}}
    return Part({trunk: RunSpec(settings), **runs}, arms, _choices(f"{prefix}decay", names))


def _choices(name: str, candidates: Mapping[tuple[str, str], str]) -> dict[str, Choice]:
    by_length = {d: [arm for (_, length), arm in candidates.items() if length == d] for d in DURATIONS}
    return {name: Choice(list(candidates.values())), **{f"{name} {d}": Choice(arms) for d, arms in by_length.items()}}


def substitutes(settings: Settings, size: Size) -> Part:
    """Merges of 16 and of 4; half the rate, then a merge; decays that end above zero, and merges of their window."""
    half = {"optimizer.peak_lr": settings["optimizer.peak_lr"] / 2}
    halves = {f"half {d}": branch("constant", share, settings | half, size) for d, share in SHARES.items()}
    partial = {f"partial {end:g}": decay("constant", 0.1, "linear", settings, size, end=end) for end in END_RATES[1:]}
    ends = {end: "constant" if end == 1 else f"partial {end:g}" for end in END_RATES}
    half_merges = {
        f"half {d}, {c}": Arm(f"half {d}", window(share, size, c)) for d, share in SHARES.items() for c in CURVES
    }
    arms = {
        **{f"merge 10% of {n}": Arm("constant", window(0.1, size, "linear", count=n)) for n in (16, 4)},
        **half_merges,
        **{f"end {end:g}": Arm(run) for end, run in ends.items()},
        **{f"end {end:g}, merged": Arm(run, window(0.1, size, "linear")) for end, run in ends.items()},
    }
    return Part({**halves, **partial}, arms, {"half, merge": Choice(list(half_merges))})


def exploratory(prefix: str, size: Size) -> Part:
    """More merges of a trunk: the paper's EMA weights, interval means, merges gone past, and controls."""
    trunk = f"{prefix}constant"
    arms = {
        **{f"{prefix}merge ema {d}": Arm(trunk, window(share, size, "ema")) for d, share in SHARES.items()},
        **{
            f"{prefix}means {d}": Arm(trunk, window(share, size, "linear", snapshot="mean"))
            for d, share in SHARES.items()
        },
        **{
            f"{prefix}extrapolated {by:g}": Arm(trunk, window(0.1, size, "linear", extrapolate=by))
            for by in (1.1, 1.2, 1.5)
        },
        **{
            f"{prefix}{order.replace(':', ' ')}": Arm(trunk, window(0.1, size, "minus_sqrt", order=order))
            for order in ("reverse", "scramble:0")
        },
    }
    return Part({}, arms, {})


def replaced(settings: Settings, size: Size) -> Part:
    """Exploratory: new text alone after the switch."""
    names = {d: f"replaced decay {d}" for d in DURATIONS}
    runs = {name: decay("replaced", SHARES[d], "linear", settings, size) for d, name in names.items()}
    arms = {
        "replaced last": Arm("replaced"),
        **{name: Arm(name) for name in runs},
        **{f"replaced merge {d}": Arm("replaced", window(SHARES[d], size, "linear")) for d in DURATIONS},
    }
    return Part({"replaced": branch("constant", 0.2, settings, size), **runs}, arms, {})


def map_settings(lam: float, tokens: int, data: Settings, size: Size) -> Settings:
    """Those of a cell: λ is reached by the weight decay, at one rate."""
    steps = round(LENGTHS[tokens] * size.steps)
    weight_decay = float(f"{lam / (MAP_RATE * steps):.6g}")
    rate = {"optimizer.peak_lr": MAP_RATE, "optimizer.weight_decay": weight_decay}
    return {**data, "duration": f"{steps}steps", **rate}


def map_cell(cell: str, lam: float, tokens: int, data: Settings, size: Size) -> Part:
    """A run of the map with its merges and decays."""
    settings, length = map_settings(lam, tokens, data, size), LENGTHS[tokens]
    curves = ("linear", "minus_sqrt")
    runs = {f"{cell} decay {c}": decay(cell, 0.1, c, settings, size, length=length) for c in curves}
    merged = {
        f"{cell} merge {c} {d}": Arm(cell, window(SHARES[d], size, c, length=length))
        for d in ("5%", "10%")
        for c in curves
    }
    arms = {f"{cell} last": Arm(cell), **merged, **{name: Arm(name) for name in runs}}
    choices = {f"{cell} merge": Choice(list(merged)), f"{cell} decay": Choice(list(runs))}
    return Part({cell: RunSpec(settings), **runs}, arms, choices)


def aware(settings: Settings, size: Size) -> Part:
    """Real 1-sqrt decays of three lengths at a high λ, and merges that emulate them, aware of weight decay or not."""
    lengths = {d: SHARES[d] for d in ("2.5%", "5%", "10%")}
    runs = {f"real {d}": decay(HIGH, share, "minus_sqrt", settings, size) for d, share in lengths.items()}
    merged = {d: window(share, size, "minus_sqrt") for d, share in lengths.items()}
    arms = {
        **{name: Arm(name) for name in runs},
        **{f"plain {d}": Arm(HIGH, merge) for d, merge in merged.items()},
        **{f"aware {d}": Arm(HIGH, {**merge, "weight_decay_aware": True}) for d, merge in merged.items()},
    }
    return Part(runs, arms, {})
