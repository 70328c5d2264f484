"""Merge weights fitted to held-out data of a run: the best of all curves and windows, or weights learned by gradient.

Fit on validation, report on test: what was chosen or learned on a split looks better there than it is.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wsm_jax import checkpoints, evaluate, sharding
from wsm_jax.checkpoints import PARAMS
from wsm_jax.data.pipeline import evaluation_batches
from wsm_jax.decay import DECAYS
from wsm_jax.errors import UsageError
from wsm_jax.evaluate import Evaluator
from wsm_jax.merging import command, learned, offline, recipe, selection, weighting
from wsm_jax.merging.command import Request
from wsm_jax.merging.learned import Fit
from wsm_jax.merging.leaves import SKIP, parse_rule
from wsm_jax.merging.selection import MEAN, Window
from wsm_jax.merging.weighting import Rule
from wsm_jax.models.model import loss_per_token
from wsm_jax.run import Run

SPLITS = ("validation", "train")  # TWA fits on the training data
# Windows of a search, as shares of the longest; those of a report are these, from 1/4 to 2 times the decay.
WINDOW_SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
STEPS, LEARNING_RATE = 100, 0.1

Say = Callable[[str], None]


def search(
    run: Run,
    whole: Window,
    counts: Sequence[int],
    validate: Evaluator,
    *,
    item: str = PARAMS,
    weight_decay_aware: bool = False,
    say: Say = lambda _: None,
    **options: Any,
) -> dict[tuple[str, int], float]:
    """Loss of the merges along every curve of DECAYS over the latest checkpoints, from one pass over them.

    Args:
      run: the run.
      whole: the longest window, of point checkpoints or of interval means.
      counts: how many of its latest checkpoints or means to try.
      validate: params -> Evaluation.
      item: what is read of point checkpoints.
      weight_decay_aware: as for :func:`wsm_jax.merging.weighting.window_weights`.
      say: told what is being done.
      options: as for :func:`wsm_jax.merge_many`.

    Returns:
      (curve, count) -> nats per token.
    """
    candidates = {
        (curve, count): recipe.window_recipe(
            weighting.parse(curve), run, latest(whole, count), item=item, weight_decay_aware=weight_decay_aware
        )
        for curve in DECAYS
        for count in counts
    }
    paths, items, weights = recipe.union({f"{curve} {count}": r for (curve, count), r in candidates.items()})
    what = "interval means" if whole.snapshot == MEAN else "checkpoints"
    say(f"merging {len(DECAYS)} curves x {len(counts)} windows in one pass over {whole.count} {what}")
    merges = offline.merge_many(paths, weights, item=items, **options)
    losses = {}
    for number, (key, (_, merged)) in enumerate(zip(candidates, merges, strict=True), 1):
        losses[key] = validate(merged).loss
        if number % 10 == 0 or number == len(candidates):
            say(f"validated {number} of {len(candidates)} merges")
    return losses


def latest(window: Window, count: int) -> Window:
    """The newest ``count`` checkpoints of a window."""
    return dataclasses.replace(window, paths=window.paths[-count:], steps=window.steps[-count:])


def learn(
    run: Run,
    window: Window,
    *,
    split: str = "validation",
    steps: int = STEPS,
    seed: int = 0,
    start: str = "linear",
    monotone: bool = False,
    say: Say = lambda _: None,
) -> Fit:
    """Weights of ``window`` that lower the loss of the merge on a split, see :mod:`wsm_jax.merging.learned`.

    The checkpoints are held in memory, all at once. A batch is as large as one forward and backward pass of training;
    the split is read up to ``evaluation.tokens`` of the run's configuration, as in the search of a report.

    Args:
      run: says which data and which model.
      window: its checkpoints.
      split: one of SPLITS.
      steps: updates.
      seed: of the order of the batches.
      start: the rule whose weights are the start, one that needs no run.
      monotone: older checkpoints never weigh more than newer ones.
      say: told the loss every so often.

    Raises:
      UsageError: the test split, an unknown start, data that have changed, too little memory, a value out of range.
    """
    check_split(split)
    learned.check_settings(steps, seed)
    first = weighting.count_weights(weighting.parse(start), window.count)
    learned.mixture(first, learned.vertices(window.count, monotone))  # complains before anything is read
    model, corpus = evaluate.model_and_data(run)
    mesh = sharding.make_mesh()
    rows = run.config.batch_size // run.config.accumulate
    where = sharding.batch_sharding(mesh) if rows % mesh.size == 0 else sharding.replicated(mesh)
    batches = [
        jax.device_put({**batch, "document": batch["document"] >= 0}, where)
        for store in evaluate.held_out_stores(corpus, split)
        for batch in evaluation_batches(
            store,
            split,
            context=model.config.context,
            batch_size=rows,
            limit_tokens=run.config.evaluation.tokens,
        )
    ]

    def loss(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        nats = loss_per_token(model, params, batch["inputs"], batch["targets"])
        return jnp.sum(nats, where=batch["document"]), jnp.sum(batch["document"])

    return learned.fit(
        learned.load(window.paths, mesh),
        loss,
        batches,
        first,
        steps=steps,
        learning_rate=LEARNING_RATE,
        seed=seed,
        monotone=monotone,
        where=sharding.replicated(mesh),
        say=say,
    )


def check_split(split: str) -> None:
    """Raises UsageError for a split to which nothing may be fitted."""
    if split == "test":
        raise UsageError(
            "fit_split=test: weights fitted to the test split could not be measured on it; fit on validation, then "
            "wsm eval --merged=NAME --split=test"
        )
    if split not in SPLITS:
        raise UsageError(f"fit_split={split!r}: choose {' or '.join(SPLITS)}")


# --- wsm merge --curve=learned | search ------------------------------------------------------------------------------


def make_request(options: argparse.Namespace, *, say: Say = lambda _: None) -> Request:
    """The request of ``wsm merge --run=RUN`` with a curve of FITTED, its weights found.

    ``search`` tries every curve of DECAYS over WINDOW_SHARES of the window that is asked for. The record says under
    ``fit`` what was tried and what came of it.

    Raises:
      UsageError: options that do not go together, and as :func:`learn`.
    """
    _check(options)
    run = Run(options.directory)
    snapshot = command.choose_snapshot(options, run)
    if snapshot == MEAN and options.curve == "learned":
        raise UsageError("--curve=learned takes point checkpoints; interval means take --curve=search or a decay curve")
    count, interval = selection.window_shape(run, window=options.window, count=options.count, interval=options.interval)
    window = selection.select(run, count, last_step=options.last_step, interval=interval, snapshot=snapshot)
    name = options.name or selection.default_name(options.curve, window)
    command.output_path(options, run, name)  # complains of one that exists, before anything is fitted
    split, limit = options.fit_split or "validation", run.config.evaluation.tokens
    newest = recipe.end_point(run, window.steps[-1]) if snapshot == MEAN else window.paths[-1]
    validate = evaluate.run_evaluator(run, split, limit_tokens=limit)
    # What no merge at all gives. Without an end point a search over means is refused, as some curves need it.
    last_loss = validate(checkpoints.load_tree(newest, options.item or PARAMS)).loss if newest else None
    if options.curve == "learned":
        rule, window, fit = _learned(options, run, window, say)
    else:
        rule, window, fit = _searched(options, run, window, validate, say)
    request = command.window_request(options, run, rule, {name: window})
    command.warn_of_warmup(run, [window])
    merge = request.merges[name]
    fit = {"split": split, "limit_tokens": limit, "last_checkpoint": last_loss, **fit}
    merges = {name: dataclasses.replace(merge, record={**merge.record, "fit": fit})}
    return dataclasses.replace(request, merges=merges)


def _check(options: argparse.Namespace) -> None:
    curve = options.curve
    check_split(options.fit_split or "validation")
    if options.inputs:
        raise UsageError("wsm merge takes either checkpoint folders or --run=DIR")
    if options.explain:
        raise UsageError(f"--explain reads no array, but --curve={curve} needs them to find the weights")
    if options.every is not None:
        raise UsageError(f"--every goes with rules that need no data; --curve={curve} finds the weights of one window")
    refused = {
        "learned": {"weight_decay_aware": "they emulate no decay", "item": "", "leaves": "all leaves are averaged"},
        "search": {flag: "it learns no weights" for flag in command.FIT_OPTIONS if flag != "fit_split"},
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
    fit = learn(run, window, **asked, say=say)
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
    losses = search(run, window, counts, validate, say=say, **reads, **command.reading(options))
    curve, count = min(losses, key=lambda key: losses[key])
    record = {
        "before": losses["linear", window.count],
        "loss": losses[curve, count],
        "chosen": {"curve": curve, "count": count},
        "tried": [{"curve": c, "count": n, "loss": loss} for (c, n), loss in losses.items()],
    }
    return weighting.parse(curve), latest(window, count), record
