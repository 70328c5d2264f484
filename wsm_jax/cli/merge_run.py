"""``wsm merge --run=RUN``: one window of a run, one at every so many steps, or each as the run writes it."""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from wsm_jax.checkpoints import orbax, run_schedule, storage
from wsm_jax.checkpoints.orbax import PARAMS
from wsm_jax.checkpoints.run import Run
from wsm_jax.cli import merge_request
from wsm_jax.core.decay import get_decay
from wsm_jax.errors import UsageError
from wsm_jax.merging import following, inputs, provenance, recipe, selection, weighting
from wsm_jax.merging.selection import MEAN, Window
from wsm_jax.merging.spec import MergeSpec
from wsm_jax.merging.weighting import Rule


def make_specs(options: argparse.Namespace) -> dict[str, MergeSpec]:
    """The merges of ``wsm merge --run=RUN``: one window, or with ``--every`` one at every so many steps of the run.

    Raises:
      UsageError: options that are missing or contradict each other, checkpoints that are not there.
    """
    rule, merging, count, bounds = _asked_of_run(options)
    if options.every is None:
        windows = [selection.select(merging, count, last_step=options.last_step, **bounds)]
    else:
        first = _first_step(options, merging, rule)
        windows = selection.series(
            merging, count, options.every, first_step=first, last_step=options.last_step, **bounds
        )
    names = [options.name or selection.default_name(rule.label, window) for window in windows]
    specs = window_specs(options, merging, rule, dict(zip(names, windows, strict=True)))
    warn_of_warmup(merging, windows)
    return specs


def follow(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Executes ``wsm merge --run=RUN --every=K --follow``: the records of the merges as they are made.

    Merges that are there already are left as they are, so that the command goes on after an interruption.

    Raises:
      UsageError: as :func:`make_specs`; rules whose figures come after the checkpoints.
      Preempted: as :func:`wsm_jax.merging.following.follow`.
    """
    rule, merging, count, bounds = _asked_of_run(options)
    if options.every is None or options.explain:
        raise UsageError("--follow goes with --every=K, and not with --explain")
    if rule.best:
        raise UsageError(f"--follow takes rules that need no losses, which come after the checkpoints; not {rule.name}")
    keeps_means_only = merging.config.checkpoint.snapshot == MEAN
    if keeps_means_only and rule.curve is not None and get_decay(rule.curve)(1.0) > 0:
        raise UsageError(
            f"{rule.name} needs the parameters at the end of each window, and {merging.path} keeps them in full states "
            "only, which come later; follow with a curve that ends at 0, or merge with --every once they are there"
        )
    first = _first_step(options, merging, rule)
    coming = following.follow(
        merging, count, options.every, first_step=first, last_step=options.last_step, say=_say, **bounds
    )
    for windows in coming:
        for window in windows:
            name = selection.default_name(rule.label, window)
            if storage.is_checkpoint(merge_request.output_path(options, merging, name, check=False)):
                continue
            try:
                records = merge_request.run(options, window_specs(options, merging, rule, {name: window}))
            except UsageError:
                if all(orbax.is_checkpoint(path) for path in window.paths):
                    raise
                _say(f"note: of the window at step {window.steps[-1]} a checkpoint is gone; it is left out")
                continue
            yield records


def _say(text: str) -> None:
    print(f"wsm: {text}", file=sys.stderr, flush=True)


def _asked_of_run(options: argparse.Namespace) -> tuple[Rule, Run, int, dict[str, Any]]:
    """The rule, the run, the count, and what else says which checkpoints."""
    rule = _rule(options)  # complains about the curve before looking for files
    if options.spacing is not None:
        raise UsageError("--spacing goes with checkpoint folders; the windows of a run are evenly spaced")
    if options.every is not None and options.name is not None:
        raise UsageError("--name goes with one merge; those of --every take their default names")
    merging = Run(options.directory)
    snapshot = choose_snapshot(options, merging)
    count, interval = selection.window_shape(
        merging, window=options.window, count=options.count, interval=options.interval
    )
    return rule, merging, count, {"interval": interval, "snapshot": snapshot}


def _first_step(options: argparse.Namespace, merging: Run, rule: Rule) -> int:
    """Where the windows of ``--every`` may begin: after the warm-up, where the weights need a constant rate."""
    needs_rate = rule.schedule or options.weight_decay_aware
    return run_schedule.warmup_end(merging.config, merging.facts["branch_step"]) if needs_rate else 0


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
    return merge_request.changed(options, _plain_rule(options))


def _plain_rule(options: argparse.Namespace) -> Rule:
    if options.schedule:
        return weighting.from_file(options.schedule)
    if options.like:
        return weighting.like(options.like)
    if options.curve:
        return weighting.parse(options.curve)
    raise UsageError("wsm merge --run=DIR needs --curve=C, --schedule=FILE.py:NAME or --like=RUN")


def window_specs(
    options: argparse.Namespace, merging: Run, rule: Rule, windows: Mapping[str, Window]
) -> dict[str, MergeSpec]:
    """The merges of ``windows`` (name -> window).

    Raises:
      UsageError: as :func:`wsm_jax.merging.recipe.window_recipe` and :func:`wsm_jax.cli.merge_request.output_path`.
    """
    reads = {"item": options.item or PARAMS, "weight_decay_aware": options.weight_decay_aware}
    recipes = {name: recipe.window_recipe(rule, merging, window, **reads) for name, window in windows.items()}
    below = (inputs.negative(one.paths, one.weights) for one in recipes.values())
    merge_request.warn(next(filter(None, below), None))
    specs = {}
    for name, window in windows.items():
        output, one = merge_request.output_path(options, merging, name), recipes[name]
        record = _record(options, merging, rule, window, one, name=name, output=str(output))
        specs[name] = dataclasses.replace(one, output=output, record=record, **merge_request.writing(options))
    return specs


def _record(
    options: argparse.Namespace, merging: Run, rule: Rule, window: Window, reads: MergeSpec, *, name: str, output: str
) -> dict[str, Any]:
    """``steps`` and, for interval means, ``items`` tell what each of the weights belongs to."""
    return provenance.record(
        reads.weights,
        name=name,
        curve=rule.name,
        schedule=rule.source,
        **rule.changes,
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
