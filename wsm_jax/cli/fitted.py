"""``wsm merge --run=RUN --curve=learned | search``: a merge whose weights are found on held-out data first."""

import argparse
import dataclasses
from typing import Any

from wsm_jax.checkpoints.orbax import PARAMS
from wsm_jax.checkpoints.run import Run
from wsm_jax.cli import merge_request, merge_run
from wsm_jax.cli.merge import FIT_OPTIONS
from wsm_jax.core.leaves import SKIP, parse_rule
from wsm_jax.errors import UsageError
from wsm_jax.evaluation import evaluate
from wsm_jax.evaluation.evaluate import Evaluator
from wsm_jax.evaluation.tuning import LEARNING_RATE, STEPS, WINDOW_SHARES, Say, check_split, latest, learn, search
from wsm_jax.merging import recipe, selection, weighting
from wsm_jax.merging.selection import MEAN, Window
from wsm_jax.merging.spec import MergeSpec
from wsm_jax.merging.weighting import Rule


def make_specs(options: argparse.Namespace, *, say: Say = lambda _: None) -> dict[str, MergeSpec]:
    """The merge of ``wsm merge --run=RUN`` with a curve of FITTED, its weights found.

    ``search`` tries every curve of DECAYS over WINDOW_SHARES of the window that is asked for. The record says under
    ``fit`` what was tried and what came of it.

    Raises:
      UsageError: options that do not go together, and as :func:`learn`.
    """
    _check(options)
    run = Run(options.directory)
    snapshot = merge_run.choose_snapshot(options, run)
    if snapshot == MEAN and options.curve == "learned":
        raise UsageError("--curve=learned takes point checkpoints; interval means take --curve=search or a decay curve")
    count, interval = selection.window_shape(run, window=options.window, count=options.count, interval=options.interval)
    window = selection.select(run, count, last_step=options.last_step, interval=interval, snapshot=snapshot)
    name = options.name or selection.default_name(options.curve, window)
    merge_request.output_path(options, run, name)  # complains of one that exists, before anything is fitted
    split, limit = options.fit_split or "validation", run.config.evaluation.tokens
    newest = recipe.end_point(run, window.steps[-1]) if snapshot == MEAN else window.paths[-1]
    validate = evaluate.run_evaluator(run, split, source=options.source or "", limit_tokens=limit)
    # What no merge at all gives. Without an end point a search over means is refused, as some curves need it.
    last_loss = validate(evaluate.load(run, newest, options.item or PARAMS)).loss if newest else None
    if options.curve == "learned":
        rule, window, fit = _learned(options, run, window, say)
    else:
        rule, window, fit = _searched(options, run, window, validate, say)
    spec = merge_run.window_specs(options, run, rule, {name: window})[name]
    merge_run.warn_of_warmup(run, [window])
    where = {"source": options.source} if options.source else {"split": split}
    fit = {**where, "limit_tokens": limit, "last_checkpoint": last_loss, **fit}
    return {name: dataclasses.replace(spec, record={**spec.record, "fit": fit})}


def _check(options: argparse.Namespace) -> None:
    curve = options.curve
    check_split(options.fit_split or "validation")
    if options.source and options.fit_split:
        raise UsageError("--source takes the place of the run's own data, so --fit_split does not go with it")
    if options.explain:
        raise UsageError(f"--explain reads no array, but --curve={curve} needs them to find the weights")
    for flag in ("extrapolate", "order", "spacing"):
        if getattr(options, flag) is not None:
            raise UsageError(f"--{flag} changes the weights of a rule; --curve={curve} finds its own")
    if options.every is not None or options.follow:
        raise UsageError(f"--every goes with rules that need no data; --curve={curve} finds the weights of one window")
    refused = {
        "learned": {"weight_decay_aware": "they emulate no decay", "item": "", "leaves": "all leaves are averaged"},
        "search": {flag: "it learns no weights" for flag in FIT_OPTIONS if flag not in ("fit_split", "source")},
    }
    for flag, reason in refused[curve].items():
        value = getattr(options, flag)
        if value is not None and value is not False and value != []:  # 0 was asked for too
            raise UsageError(f"--{flag} does not go with --curve={curve}" + (f": {reason}" if reason else ""))
    if skipped := [pattern for pattern, policy in map(parse_rule, options.leaves or ()) if policy == SKIP]:
        raise UsageError(f"--leaves={skipped[0]}={SKIP} does not go with --curve={curve}: it evaluates whole models")


def _learned(options: argparse.Namespace, run: Run, window: Window, say: Say) -> tuple[Rule, Window, dict[str, Any]]:
    asked = {
        "split": options.fit_split or "validation",
        "steps": STEPS if options.fit_steps is None else options.fit_steps,
        "seed": options.fit_seed or 0,
        "start": options.fit_start or "linear",
        "monotone": bool(options.monotone),
    }
    fit = learn(run, window, **asked, source=options.source or "", say=say)
    if options.source:
        del asked["split"]
    record = {
        **asked,
        "optimizer": f"adam on the logits, {LEARNING_RATE:g} with cosine decay",
        "batch_size": run.config.batch_size // run.config.accumulate,
        "before": fit.before,
        "loss": fit.after,
        "chosen_step": fit.step,
        "losses": fit.losses,
    }
    return Rule("learned", by_count=lambda _: fit.weights), window, record


def _searched(
    options: argparse.Namespace, run: Run, window: Window, validate: Evaluator, say: Say
) -> tuple[Rule, Window, dict[str, Any]]:
    counts = sorted(
        {max(round(window.count * share), 2) for share in WINDOW_SHARES if window.count > 1} | {window.count}
    )
    reads = {"item": options.item or PARAMS, "weight_decay_aware": options.weight_decay_aware}
    losses = search(run, window, counts, validate, say=say, **reads, **merge_request.reading(options))
    curve, count = min(losses, key=lambda key: losses[key])
    record = {
        "before": losses["linear", window.count],
        "loss": losses[curve, count],
        "chosen": {"curve": curve, "count": count},
        "tried": [{"curve": c, "count": n, "loss": loss} for (c, n), loss in losses.items()],
    }
    return weighting.parse(curve), latest(window, count), record
