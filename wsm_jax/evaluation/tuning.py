"""Merge weights fitted to held-out data of a run: the best of all curves and windows, or weights learned by gradient.

Fit on validation, report on test: what was chosen or learned on a split looks better there than it is.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wsm_jax.checkpoints.orbax import PARAMS
from wsm_jax.checkpoints.run import Run
from wsm_jax.core.decay import DECAYS
from wsm_jax.data.pipeline import evaluation_batches
from wsm_jax.errors import UsageError
from wsm_jax.evaluation import evaluate, learned
from wsm_jax.evaluation.evaluate import Evaluator
from wsm_jax.evaluation.learned import Fit
from wsm_jax.merging import offline, recipe, weighting
from wsm_jax.merging.selection import MEAN, Window
from wsm_jax.models.model import loss_per_token
from wsm_jax.parallel import activations, sharding
from wsm_jax.parallel import mesh as mesh_lib
from wsm_jax.parallel.sharding import RULES

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
      options: ``rules`` and ``dtype`` of the merges.

    Returns:
      (curve, count) -> nats per token.
    """
    reads = {"item": item, "weight_decay_aware": weight_decay_aware}
    candidates = {
        (curve, count): recipe.window_recipe(weighting.parse(curve), run, latest(whole, count), **reads)
        for curve in DECAYS
        for count in counts
    }
    specs = {" ".join(map(str, key)): dataclasses.replace(one, **options) for key, one in candidates.items()}
    what = "interval means" if whole.snapshot == MEAN else "checkpoints"
    say(f"merging {len(DECAYS)} curves x {len(counts)} windows in one pass over {whole.count} {what}")
    merges = offline.in_memory(specs, shardings=evaluate.shardings(run))
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
    source: str = "",
    steps: int = STEPS,
    seed: int = 0,
    start: str = "linear",
    monotone: bool = False,
    say: Say = lambda _: None,
) -> Fit:
    """Weights of ``window`` that lower the loss of the merge on a split, see :mod:`wsm_jax.evaluation.learned`.

    The checkpoints are held in memory, all at once. A batch is as large as one forward and backward pass of training;
    the split is read up to ``evaluation.tokens`` of the run's configuration, as in the search of a report.

    Args:
      run: says which data and which model.
      window: its checkpoints.
      split: one of SPLITS.
      source: text in the place of its data, see :func:`wsm_jax.evaluation.evaluate.held_out`.
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
    model, stores, split = evaluate.held_out(run, split, source)
    mesh = mesh_lib.like(run.config.mesh)
    rows = run.config.batch_size // run.config.accumulate
    where = sharding.rows_sharding(mesh, rows)
    batches = [
        jax.device_put({**batch, "document": batch["document"] >= 0}, where)
        for store in stores
        for batch in evaluation_batches(
            store,
            split,
            context=model.config.context,
            batch_size=rows,
            limit_tokens=run.config.evaluation.tokens,
        )
    ]

    def loss(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        with activations.on(mesh, RULES):
            nats = loss_per_token(model, params, batch["inputs"], batch["targets"])
        return jnp.sum(nats, where=batch["document"]), jnp.sum(batch["document"])

    return learned.fit(
        learned.load(window.paths, mesh, model.axes),
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
