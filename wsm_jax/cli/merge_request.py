"""What ``wsm merge`` does with its options: a request, complete before any array is read, and its execution."""

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsm_jax.checkpoints import run_schedule, storage
from wsm_jax.checkpoints.orbax import PARAMS
from wsm_jax.checkpoints.run import Run
from wsm_jax.core.leaves import Weights, parse_rule
from wsm_jax.errors import UsageError
from wsm_jax.merging import offline, provenance, recipe, selection, weighting
from wsm_jax.merging.recipe import Recipe
from wsm_jax.merging.selection import MEAN, Window
from wsm_jax.merging.spec import MergeSpec, opened
from wsm_jax.merging.weighting import Rule

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)
_RUN_OPTIONS = ("window", "count", "last_step", "interval", "every", "snapshot", "schedule", "like", "name")
FIT_OPTIONS = ("fit_split", "fit_steps", "fit_seed", "fit_start", "monotone")


@dataclasses.dataclass(frozen=True)
class Merge:
    """One merge of a request.

    Attributes:
      weights: over all paths of the request: one vector, or a mapping from each leaf's path to one.
      output: where it is written.
      record: what is stored beside the arrays.
    """

    weights: Weights
    output: Path
    record: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Request:
    """Merges of the same checkpoints.

    Attributes:
      paths: the checkpoints, oldest first.
      merges: name -> merge; at least one.
      items: the item to read of all checkpoints or of each, as :func:`wsm_jax.merge_checkpoints` takes it.
    """

    paths: tuple[str | Path, ...]
    merges: dict[str, Merge]
    items: storage.Items = None


def run(options: argparse.Namespace, request: Request | None = None) -> list[dict[str, Any]]:
    """Executes ``wsm merge``; returns the records stored beside the arrays, one for each merge.

    Args:
      options: of ``wsm merge``.
      request: default: what the options ask for.

    Raises:
      UsageError: bad options or inputs, before anything is written.
    """
    specs = make_specs(request or make_request(options), options)
    records = offline.write(specs, verify=options.verify, progress=not options.json)
    return list(records.values())


def make_specs(request: Request, options: argparse.Namespace) -> dict[str, MergeSpec]:
    """The merges of a request, name -> merge."""
    how = {"item": request.items, "format": options.format, **reading(options)}
    return {
        name: MergeSpec.of(request.paths, merge.weights, output=merge.output, record=merge.record, **how)
        for name, merge in request.merges.items()
    }


def explain(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What ``wsm merge`` would do with each leaf: ``{"leaf", "shape", "dtype", "policy", "result", "weights of"}``.

    ``weights of`` is the first leaf with the same weights; None for a leaf that is not averaged, and where all averaged
    leaves have the same.

    Raises:
      UsageError: as :func:`run`.
    """
    with opened(make_specs(make_request(options), options)) as merges:
        first: dict[bytes, str] = {}
        rows = []
        for path, policy in merges.policies.items():
            leaf, result = merges.leaves[path], merges.results.get(path)
            vectors = [vector[path].tobytes() for vector in merges.vectors if path in vector]
            like = first.setdefault(b"".join(vectors), path) if vectors else None
            rows.append(
                {
                    "leaf": path,
                    "shape": list(leaf.shape),
                    "dtype": leaf.dtype.name,
                    "policy": policy,
                    "result": result.dtype.name if result else None,
                    "weights of": like,
                }
            )
        return [{**row, "weights of": None} for row in rows] if len(first) == 1 else rows


def make_request(options: argparse.Namespace) -> Request:
    """The request that the options of ``wsm merge`` describe; reads no array.

    Raises:
      UsageError: options that are missing, wrong or contradict each other.
    """
    if bool(options.directory) == bool(options.inputs):
        raise UsageError("wsm merge takes either checkpoint folders or --run=DIR")
    for flag in FIT_OPTIONS:
        if getattr(options, flag) is not None:
            raise UsageError(f"--{flag} goes with --curve=learned, --fit_split also with --curve=search")
    return merge_run(options) if options.directory else merge_inputs(options)


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """Rules and dtype as :func:`wsm_jax.merge_checkpoints` takes them."""
    return {"rules": [parse_rule(text) for text in options.leaves or ()], "dtype": options.dtype}


# --- explicit inputs -------------------------------------------------------------------------------------------------


def parse_input(text: str) -> tuple[str, float | None]:
    """``PATH[:WEIGHT]``, split at the last ``:`` only where a number follows.

    Raises:
      UsageError: a weight that is not finite.
    """
    path, colon, weight = text.rpartition(":")
    if not (colon and path and _NUMBER.fullmatch(weight)):
        return text, None
    if not math.isfinite(float(weight)):
        raise UsageError(f"the weight of {path} is {weight}; it must be a finite number")
    return path, float(weight)


def input_weights(inputs: list[tuple[str, float | None]], curve: str | None) -> np.ndarray:
    """One weight for each input: as given, of a rule that needs no run, or uniform.

    Raises:
      UsageError: weights and a curve together, weights for some inputs only, a rule that needs a run.
    """
    given = [weight for _, weight in inputs if weight is not None]
    if given and curve:
        raise UsageError("give weights after the inputs or --curve, not both")
    if given and len(given) != len(inputs):
        bare = next(path for path, weight in inputs if weight is None)
        raise UsageError(f"{bare} has no weight but other inputs do; give all of them one or none")
    if given:
        return np.asarray(given)
    return weighting.count_weights(weighting.parse(curve or "mean"), len(inputs))


def check_order(paths: Iterable[str]) -> None:
    """Raises UsageError where checkpoints of one series, told by the numbers that their names end in, are not in order.

    A curve gives weights by age, and a shell sorts 1000 before 920.
    """
    last: dict[str, tuple[int, str]] = {}
    for path in paths:
        name = re.fullmatch(
            r"(.*?(?:^|/|step|steps|checkpoint|ckpt|iter|epoch)[-_]?)(\d+)/*", path, re.DOTALL | re.IGNORECASE
        )
        if name is None:
            continue
        before = last.get(name[1])
        if before and int(name[2]) < before[0]:
            raise UsageError(
                f"{path} comes after {before[1]}, but a curve takes the oldest first; give them in the order "
                "of their steps, or a weight after each"
            )
        last[name[1]] = int(name[2]), path


def doubts(inputs: Iterable[tuple[str, float | None]]) -> list[str]:
    """What is unusual about the given weights, yet allowed: negative ones, a sum that is not 1 (within 1e-6)."""
    given = [(path, weight) for path, weight in inputs if weight is not None]
    found = [f"the weight of {path} is negative, {weight:g}" for path, weight in given if weight < 0]
    total = math.fsum(weight for _, weight in given)
    if given and abs(total - 1.0) > 1e-6:
        found.append(f"the weights sum to {total:.9g}, not to 1; they are used as given")
    return found


def merge_inputs(options: argparse.Namespace) -> Request:
    """The request of ``wsm merge IN[:WEIGHT] ... --output=OUT``; warns on stderr of unusual weights.

    Raises:
      UsageError: options that go with a run, inputs that are no checkpoints, weights that do not fit.
    """
    if not (options.output or options.explain):
        raise UsageError("wsm merge IN ... needs --output=OUT, or --explain, which writes nothing")
    for flag in _RUN_OPTIONS:
        if getattr(options, flag) is not None:
            hint = "; for other checkpoints give weights, IN:WEIGHT ..., that wsm_jax.schedule_weights computes"
            raise UsageError(f"--{flag} goes with --run" + (hint if flag in ("schedule", "like") else ""))
    if options.weight_decay_aware:
        raise UsageError(
            "--weight_decay_aware goes with --run, which knows rate, decay and mask; for other checkpoints give "
            "weights, IN:WEIGHT ..., that `wsm weights --weight_decay=...` computes"
        )
    inputs = [parse_input(text) for text in options.inputs]
    weights = input_weights(inputs, options.curve)
    paths = tuple(path for path, _ in inputs)
    if np.ptp(weights) and options.curve:
        check_order(paths)
    record = provenance.record(weights, curve=options.curve, output=str(options.output))
    output = _unused(options, Path(options.output or "merged"))
    for doubt in doubts(inputs):
        print(f"wsm: warning: {doubt}", file=sys.stderr)
    return Request(paths, {output.name: Merge(weights, output, record)}, options.item)


# --- windows of a run ------------------------------------------------------------------------------------------------


def merge_run(options: argparse.Namespace) -> Request:
    """The request of ``wsm merge --run=RUN``: one window, or with ``--every`` one at every so many steps of the run.

    Raises:
      UsageError: options that are missing or contradict each other, checkpoints that are not there.
    """
    rule = _rule(options)  # complains about the curve before looking for files
    merging = Run(options.directory)
    snapshot = choose_snapshot(options, merging)
    count, interval = selection.window_shape(
        merging, window=options.window, count=options.count, interval=options.interval
    )
    if options.every is None:
        windows = [selection.select(merging, count, last_step=options.last_step, interval=interval, snapshot=snapshot)]
    elif options.name:
        raise UsageError("--name goes with one merge; those of --every take their default names")
    else:
        needs_rate = rule.schedule or options.weight_decay_aware
        warmup = run_schedule.warmup_end(merging.config, merging.facts["branch_step"])
        windows = selection.series(
            merging,
            count,
            options.every,
            first_step=warmup if needs_rate else 0,
            last_step=options.last_step,
            interval=interval,
            snapshot=snapshot,
        )
    names = [options.name or selection.default_name(rule.name, window) for window in windows]
    request = window_request(options, merging, rule, dict(zip(names, windows, strict=True)))
    warn_of_warmup(merging, windows)
    return request


def warn_of_warmup(run: Run, windows: Iterable[Window]) -> None:
    """Says on stderr which windows hold checkpoints of the warm-up: the papers' weights are for a constant rate."""
    end = run_schedule.warmup_end(run.config, run.facts["branch_step"])
    # A mean holds the parameters over the whole interval before its step.
    first = {w: w.interval - 1 if w.snapshot == MEAN else 0 for w in windows}
    if early := {step for w in windows for step in w.steps if step - first[w] < end}:
        steps = f"step {min(early)} lies" if len(early) == 1 else f"steps {min(early)} to {max(early)} lie"
        print(f"wsm: warning: {steps} in the warm-up of {run.path}, which ends at step {end}", file=sys.stderr)


def choose_snapshot(options: argparse.Namespace, merging: Run) -> str:
    """``point`` or ``mean``, as asked for or as the run keeps.

    Raises:
      UsageError: the run does not keep it, or another item is to be read.
    """
    snapshot = selection.choose_snapshot(merging, options.snapshot)
    if snapshot == MEAN and options.item:
        raise UsageError(f"--item goes with point checkpoints; a merge of interval means reads {MEAN} and {PARAMS}")
    return snapshot


def _rule(options: argparse.Namespace) -> Rule:
    if options.schedule:
        return weighting.from_file(options.schedule)
    if options.like:
        return weighting.like(options.like)
    if options.curve:
        return weighting.parse(options.curve)
    raise UsageError("wsm merge --run=DIR needs --curve=C, --schedule=FILE.py:NAME or --like=RUN")


def window_request(options: argparse.Namespace, merging: Run, rule: Rule, windows: Mapping[str, Window]) -> Request:
    """The request for merges of ``windows`` (name -> window): all they read, each once, and their weights over it.

    Raises:
      UsageError: as :func:`wsm_jax.merging.recipe.window_recipe` and :func:`output_path`.
    """
    reads = {"item": options.item or PARAMS, "weight_decay_aware": options.weight_decay_aware}
    recipes = {name: recipe.window_recipe(rule, merging, window, **reads) for name, window in windows.items()}
    paths, items, weights = recipe.union(recipes)
    merges = {}
    for name, window in windows.items():
        output = output_path(options, merging, name)
        record = _record(options, merging, rule, window, recipes[name], name=name, output=str(output))
        merges[name] = Merge(weights[name], output, record)
    return Request(paths, merges, items)


def _record(
    options: argparse.Namespace, merging: Run, rule: Rule, window: Window, reads: Recipe, *, name: str, output: str
) -> dict[str, Any]:
    """``steps`` and, for interval means, ``items`` tell what each of the weights belongs to."""
    return provenance.record(
        reads.weights,
        name=name,
        curve=rule.name,
        schedule=rule.source,
        snapshot=window.snapshot,
        count=window.count,
        interval=window.interval,
        steps=list(reads.steps),
        **({"items": list(reads.items)} if window.snapshot == MEAN else {}),
        weight_decay_aware=options.weight_decay_aware,
        config_hash=merging.facts["config_hash"],
        data_hash=merging.facts["data_hash"],
        output=output,
    )


def output_path(options: argparse.Namespace, merging: Run, name: str) -> Path:
    """Where a merge of that name is written.

    Raises:
      UsageError: something is there, and the merge is not only explained.
    """
    within = [] if options.every is None else [name]
    return _unused(options, Path(options.output, *within) if options.output else merging.merged(name))


def _unused(options: argparse.Namespace, output: Path) -> Path:
    if not options.explain:
        storage.check_free(output)
    return output
