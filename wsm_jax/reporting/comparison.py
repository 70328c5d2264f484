"""A constant-rate run against real decays: the merges that emulate them, chosen on validation, measured on test."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from wsm_jax.checkpoints import orbax, run_schedule
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.checkpoints.run import Run
from wsm_jax.core.decay import DECAYS
from wsm_jax.core.merge_weights import merge_weights
from wsm_jax.errors import UsageError
from wsm_jax.evaluation import evaluate, tuning
from wsm_jax.evaluation.evaluate import Difference, Evaluation
from wsm_jax.io import places
from wsm_jax.merging import offline, selection
from wsm_jax.merging.selection import MEAN
from wsm_jax.training import branch

# Candidate windows, as multiples of the decay's length.
WINDOW_SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
SERIES_POINTS = 12


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      name: what it is.
      group: ``raw``, ``merge`` (at the decay's window), ``chosen`` (on validation), ``learned`` or ``decay``.
      curve: of the merge or decay; "" for the raw checkpoint and learned weights.
      window: steps of the window or of the decay; 0 for the raw checkpoint.
      test: evaluation on the test split.
      difference: test loss minus the raw checkpoint's, paired by document.
      tokens: tokens the parameters have seen.
      extra_tokens: of them, trained on for this row alone.
      seconds: time this row took beside the constant run: reading and adding, learning weights, or the decay's updates.
    """

    name: str
    group: str
    curve: str
    window: int
    test: Evaluation
    difference: Difference
    tokens: int
    extra_tokens: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything a report shows.

    Attributes:
      base: the constant-rate run.
      decays: runs branched from it.
      rows: the table.
      windows: curve -> [(window in steps, validation loss)], the candidates.
      chosen: (curve, count) of the candidate with the lowest validation loss.
      series: [(step, validation loss)] of the mean over the decay's window, along the run.
      references: name -> validation loss of the last checkpoint and of each real decay.
      rates: name -> [(step, learning rate)].
      labels: what each of ``decays`` is called: its curve, with the run's name where another one has the same.
      branch_step: where the decays start.
      count: checkpoints in a window as long as the decay.
    """

    base: Run
    decays: tuple[Run, ...]
    rows: tuple[Row, ...]
    windows: dict[str, list[tuple[int, float]]]
    references: dict[str, float]
    chosen: tuple[str, int]
    series: list[tuple[int, float]]
    rates: dict[str, list[tuple[int, float]]]
    labels: tuple[str, ...]
    branch_step: int
    count: int


def compare(
    base: Run, decays: Sequence[Run], *, learned: bool = False, say: Callable[[str], None] = lambda _: None
) -> Comparison:
    """Merges the newest checkpoints of ``base`` along every curve and compares them with real decays.

    Curve and window are chosen by validation loss (on ``evaluation.tokens`` of the run's configuration) among all
    curves and windows of 1/4 to 2 times the decay; the table is of the whole test split.

    Args:
      base: a finished constant-rate run.
      decays: finished runs branched from it at one step, on the same data; at least one.
      learned: also learn the weights of the decay's window on validation, from the plain mean.
      say: told what is being done.

    Raises:
      UsageError: runs that cannot be compared, naming the run.
    """
    branch_step = check(base, decays)
    interval, last = base.plan.merge_interval, base.plan.steps
    count = round((last - branch_step) / interval)
    if last % interval or count < 2:
        raise UsageError(
            f"{base.path}: merge_interval={interval} steps must divide the run ({last} steps) and leave at least 2 "
            f"checkpoints in the decay's {last - branch_step} steps"
        )
    first = run_schedule.warmup_end(base.config, base.facts["branch_step"])
    most = sum(step > first for step in orbax.complete_steps(base.merge_stream))
    if (planned := sum(step > first for step in base.plan.merge_steps())) < count:
        raise UsageError(
            f"{base.path}: a window as long as the decays has {count} checkpoints, but only {planned} come after the "
            f"warm-up, which ends at step {first}; branch the decays later"
        )
    counts = sorted({min(max(round(count * share), 2), most) for share in WINDOW_SHARES} | {count})
    whole = selection.select(base, max(counts), last_step=last)

    validate = evaluate.run_evaluator(base, "validation", limit_tokens=base.config.evaluation.tokens)
    test = evaluate.run_evaluator(base, "test")
    validation = tuning.search(base, whole, counts, validate, say=say)
    chosen = min(validation, key=lambda key: validation[key])
    windows = {curve: [(n * interval, validation[curve, n]) for n in counts] for curve in DECAYS}

    say("measuring on test")
    raw_params = orbax.load_tree(whole.paths[-1])
    raw = test(raw_params)
    rows = [_row("constant rate, last checkpoint", "raw", "", 0, raw, raw, base, 0, 0.0)]
    for curve in DECAYS:
        rows.append(_merge_row(base, curve, count, "merge", test, raw))
    rows.append(_merge_row(base, chosen[0], chosen[1], "chosen", test, raw))
    if learned:
        rows.append(_learned_row(base, count, test, raw, say))
    references = {"constant rate": validate(raw_params).loss}
    labels = _labels(decays)
    for run, label in zip(decays, labels, strict=True):
        params = orbax.load_tree(evaluate.checkpoint_path(run, step=run.plan.steps))
        seconds = sum(record["seconds"] for record in run.metrics("train"))
        extra = (run.plan.steps - branch_step) * base.plan.tokens_per_step
        name, curve = f"real decay, {label}", run.config.schedule.curve
        rows.append(_row(name, "decay", curve, run.plan.steps - branch_step, test(params), raw, run, extra, seconds))
        references[name] = validate(params).loss

    say("following the merge along the run")
    series = _series(base, count, first, validate)
    rates = {"constant": _rates(base)} | {label: _rates(run) for run, label in zip(decays, labels, strict=True)}
    return Comparison(
        base, tuple(decays), tuple(rows), windows, references, chosen, series, rates, labels, branch_step, count
    )


def _labels(decays: Sequence[Run]) -> tuple[str, ...]:
    """What tells the decays apart: the curve, else the run's name beside it, else its whole path."""
    curves = [run.config.schedule.curve for run in decays]
    names = [f"{curve} ({run.path.resolve().name})" for run, curve in zip(decays, curves, strict=True)]
    paths = [f"{curve} ({run.path.resolve()})" for run, curve in zip(decays, curves, strict=True)]
    return tuple(
        next((label for label, all_ in ((curve, curves), (name, names)) if all_.count(label) == 1), path)
        for curve, name, path in zip(curves, names, paths, strict=True)
    )


def check(base: Run, decays: Sequence[Run]) -> int:
    """The step where the decays begin.

    Raises:
      UsageError: runs that cannot be compared, naming the run.
    """
    if base.config.schedule.name != "constant":
        raise UsageError(f"{base.path} has schedule.name={base.config.schedule.name!r}; the first run must be constant")
    if base.config.checkpoint.snapshot == MEAN:
        raise UsageError(f"{base.path} keeps interval means alone; a report compares merges of point checkpoints")
    if not decays:
        raise UsageError("nothing to compare with: name at least one run branched from the first, with a real decay")
    for run in (base, *decays):
        done = orbax.complete_steps(run.resume_stream)
        if not done or done[-1] < run.plan.steps:
            raise UsageError(f"{run.path} is at step {done[-1] if done else 0} of {run.plan.steps}; finish it first")
    branch_steps = {run.facts["branch_step"] for run in decays}
    if whole := [run for run in decays if run.facts["branch_step"] is None]:
        raise UsageError(f"{whole[0].path} is no branch; make real decays with --branch_from={base.path}@STEP")
    if len(branch_steps) > 1:
        raise UsageError(f"the decays must be branched at one step, they start at {sorted(branch_steps)}")
    (branch_step,) = branch_steps
    for run in decays:
        if run.facts["data_hash"] != base.facts["data_hash"]:
            raise UsageError(f"{run.path} was trained on other data than {base.path}")
        if run.config.schedule.name != "cooldown":
            raise UsageError(f"{run.path} has schedule.name={run.config.schedule.name!r}; a real decay is a cooldown")
        parent = places.at(run.facts["branch_from"].rpartition("@")[0])
        # A parent that is no longer there was moved, and may be the base.
        if parent.resolve() != base.path.resolve() and (parent / "run.json").is_file():
            other = Run(parent)
            if (other.config_id, other.facts["data_hash"]) != (base.config_id, base.facts["data_hash"]):
                raise UsageError(f"{run.path} was branched from {parent}, not from {base.path}")
        if different := branch.check_branch(base, branch_step, run.config):
            raise UsageError(f"{run.path} is no branch of {base.path}: {different[0]} differs")
    return branch_step


def _row(
    name: str,
    group: str,
    curve: str,
    window: int,
    test: Evaluation,
    raw: Evaluation,
    run: Run,
    extra: int,
    seconds: float,
) -> Row:
    difference = evaluate.paired_difference(test, raw)
    tokens = run_lib.tokens_read(run.facts, run.plan.steps)
    return Row(name, group, curve, window, test, difference, tokens, extra, seconds)


def _merge_row(base: Run, curve: str, count: int, group: str, test: evaluate.Evaluator, raw: Evaluation) -> Row:
    window = selection.select(base, count, last_step=base.plan.steps)
    clock = time.perf_counter()
    merged = jax.block_until_ready(offline.merge_checkpoints(window.paths, merge_weights(curve, count)))
    seconds = time.perf_counter() - clock
    label = "merge" if group == "merge" else "merge chosen on validation:"
    return _row(f"{label} {curve}", group, curve, count * window.interval, test(merged), raw, base, 0, seconds)


def _learned_row(base: Run, count: int, test: evaluate.Evaluator, raw: Evaluation, say: Callable[[str], None]) -> Row:
    window = selection.select(base, count, last_step=base.plan.steps)
    clock = time.perf_counter()
    weights = tuning.learn(base, window, say=say).weights
    merged = jax.block_until_ready(offline.merge_checkpoints(window.paths, weights))
    seconds = time.perf_counter() - clock
    name = "merge learned on validation"
    return _row(name, "learned", "", count * window.interval, test(merged), raw, base, 0, seconds)


def _series(base: Run, count: int, first: int, validate: evaluate.Evaluator) -> list[tuple[int, float]]:
    """Validation loss of the mean over ``count`` checkpoints at up to SERIES_POINTS steps of the run."""
    steps = [step for step in orbax.complete_steps(base.merge_stream) if step > first]
    ends = range(count - 1, len(steps))
    ends = sorted({round(end) for end in np.linspace(ends[0], ends[-1], min(SERIES_POINTS, len(ends)))})
    uniform = np.full(count, 1.0 / count)
    weights: dict[str, Any] = {
        str(steps[end]): np.concatenate([np.zeros(end - count + 1), uniform, np.zeros(len(steps) - end - 1)])
        for end in ends
    }
    merged = offline.merge_many([base.merge_stream / str(step) for step in steps], weights)
    return [(int(step), validate(tree).loss) for step, tree in merged]


def _rates(run: Run) -> list[tuple[int, float]]:
    schedule = run_schedule.from_config(run.config, run.facts["branch_step"])
    steps = np.unique(np.linspace(0, run.plan.steps - 1, 400).astype(int))
    return [(int(step), float(schedule(step))) for step in steps]
