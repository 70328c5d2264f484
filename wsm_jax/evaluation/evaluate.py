"""Loss on held-out documents of a run's data, for the parameters of its checkpoints and merges."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from wsm_jax.checkpoints import compatibility, orbax
from wsm_jax.checkpoints.run import Run
from wsm_jax.config import DataConfig, ModelFields
from wsm_jax.data import packing
from wsm_jax.data.pipeline import evaluation_batches
from wsm_jax.data.tokens import Corpus, TokenStore, prepare
from wsm_jax.errors import UsageError
from wsm_jax.evaluation.evaluator import Evaluator, over
from wsm_jax.evaluation.losses import Difference, Evaluation, paired_difference
from wsm_jax.interchange.beside import tokenizer_place
from wsm_jax.io import places
from wsm_jax.models import family
from wsm_jax.models.attention import TILE
from wsm_jax.models.model import Model, build
from wsm_jax.models.presets import with_vocabulary
from wsm_jax.parallel import mesh as mesh_lib
from wsm_jax.parallel import sharding
from wsm_jax.parallel.sharding import RULES, Rules

__all__ = [
    "Difference", "Evaluation", "Evaluator", "check_fits", "checkpoint_path", "fields_of", "held_out",
    "held_out_stores", "load", "make_evaluator", "model_and_data", "model_of", "paired_difference", "run_evaluator",
    "shardings", "tokenizer_place",
]  # fmt: skip


def held_out_stores(corpus: Corpus, split: str) -> list[TokenStore]:
    """The distinct stores of both mixtures of a corpus, in order; of the switch's those that have the split."""
    later = [store for store, _ in corpus.switch if store.manifest["splits"][split]["documents"]]
    return list({store.hash: store for store in [*(store for store, _ in corpus.stable), *later]}.values())


def make_evaluator(
    model: Model,
    mesh: Mesh,
    stores: Sequence[TokenStore],
    split: str,
    *,
    batch_size: int,
    limit_tokens: int = 0,
    document_tokens: int = 0,
    rules: Rules = RULES,
) -> Evaluator:
    """params -> Evaluation on a split of some stores; the batches are read once and the step is compiled once.

    Args:
      model: what computes the loss.
      mesh: the devices; its axes that carry the batch share the rows where ``batch_size`` is a multiple of them.
      stores: one after the other; of conversations the responses count, of those that fit the model's context.
      split: ``validation``, ``test`` or ``train``.
      batch_size: sequences in one batch.
      limit_tokens: stop after the last document that ends within so many tokens of each store; 0 = all.
      document_tokens: of each document the first so many count, end-of-text as one of them; 0 = all.
      rules: logical axis -> axes of the mesh.

    Returns:
      As :func:`wsm_jax.evaluation.evaluator.over`.

    Raises:
      UsageError: an empty split or a batch size below 1.
    """
    batches, counts, sizes, left_out = [], [], [], 0
    for store in stores:
        first, taken = len(sizes), 0
        if store.has_learnt:
            context, learnt, offsets = model.config.context, store.learnt(split), store.offsets(split)
            chosen = packing.fitting(store, split, context, limit_tokens)
            left_out += int((np.diff(offsets) - 1 > context).sum())
            longest = int((np.diff(offsets)[chosen] - 1).max())
            for batch in packing.evaluation_batches(store, split, chosen, _row(model, longest), batch_size):
                document = batch["document"]
                batches.append({**batch, "document": np.where(document < 0, -1, document + first)})
            counts.extend(learnt[offsets[n] + 1 : offsets[n + 1]].sum(dtype=np.int64) for n in chosen)
            sizes.extend(store.document_bytes(split)[chosen])
            continue
        for batch in evaluation_batches(
            store,
            split,
            context=_row(model, len(store.tokens(split))),
            batch_size=batch_size,
            limit_tokens=limit_tokens,
            document_tokens=document_tokens,
        ):
            document = batch["document"]
            batches.append({**batch, "document": np.where(document < 0, -1, document + first)})
            taken = max(taken, int(document.max()) + 1)
        lengths = np.diff(store.offsets(split)[: taken + 1])
        counts.extend(np.minimum(lengths, document_tokens) if document_tokens else lengths)
        sizes.extend(store.document_bytes(split, document_tokens)[:taken])
    limits = f"{limit_tokens}" + (f"x{document_tokens}" if document_tokens else "")
    data_hash = "-".join([split, limits, *(store.hash[:16] for store in stores)])
    return over(batches, model, mesh, tokens=counts, sizes=sizes, data_hash=data_hash, left_out=left_out, rules=rules)


def _row(model: Model, tokens: int) -> int:
    """The length of rows that hold so many tokens: the context, halved while they fit and kernels and loss allow it."""
    length, parts = model.config.context, math.lcm(TILE, model.config.loss_blocks)
    while length % (2 * parts) == 0 and length // 2 >= tokens:
        length //= 2
    return length


def model_and_data(run: Run) -> tuple[Model, Corpus]:
    """The model of a run and the data it was trained on.

    Raises:
      UsageError: the data are not those the run was trained on.
    """
    if "imported" in run.facts:
        raise UsageError(f"{run.path} was imported and has no data of its own; give it text: --source=text:PATH")
    corpus = prepare(run.config.data)
    if corpus.hash != run.facts["data_hash"]:
        raise UsageError(
            f"the data of {run.path} have changed since it was trained (hash {corpus.hash[:12]}, "
            f"then {run.facts['data_hash'][:12]}); losses would not be comparable"
        )
    return model_of(run), corpus


def held_out(run: Run, split: str, source: str = "") -> tuple[Model, list[TokenStore], str]:
    """The model of a run, the stores that it is measured on, and which split of them.

    Args:
      run: says which model, and which data where no other text is given.
      split: of its own data.
      source: any text instead, as ``data.source`` names it, all of which counts, in the tokens of the run.

    Raises:
      UsageError: the data are not those the run was trained on, no such text, or a run without data or tokenizer.
    """
    if not source:
        model, corpus = model_and_data(run)
        return model, held_out_stores(corpus, split), split
    text = DataConfig(
        source=source,
        tokenizer=str(tokenizer_place(run)),
        store=run.config.data.store,
        validation_fraction=0.0,
        test_fraction=0.0,
    )
    return model_of(run), held_out_stores(prepare(text), "train"), "train"


def fields_of(run: Run) -> ModelFields:
    """The fields of the model of a run, its vocabulary included, as this machine can compute it."""
    fields = dataclasses.replace(run.config.model, **run.picked)
    shape = with_vocabulary(fields, run.facts["data"]["vocab_size"], pad_given=not run.format)
    return family.of(shape).portable(shape)


def model_of(run: Run) -> Model:
    """The model of a run, as this machine can compute it."""
    return build(fields_of(run))


def run_evaluator(
    run: Run, split: str, *, source: str = "", limit_tokens: int = 0, mesh: Mesh | None = None, rules: Rules = RULES
) -> Evaluator:
    """params -> Evaluation on a split of the data a run was trained on, or on any text.

    Args:
      run: says which data and which model.
      split: ``validation``, ``test`` or ``train``.
      source: text in the place of its data, see :func:`held_out`.
      limit_tokens: tokens of each store; 0 = all.
      mesh: the devices; default: all, as near to the run's mesh as they allow.
      rules: logical axis -> axes of the mesh.

    Raises:
      UsageError: as :func:`held_out`.
    """
    model, stores, split = held_out(run, split, source)
    return make_evaluator(
        model,
        mesh or mesh_lib.like(run.config.mesh),
        stores,
        split,
        batch_size=run.config.evaluation.batch_size,
        limit_tokens=limit_tokens,
        rules=rules,
    )


def load(run: Run, path: str | Path, item: str | None = None) -> Any:
    """The parameters at ``path`` on the devices where :func:`run_evaluator` wants them, each with its part alone.

    Raises:
      UsageError: as :func:`wsm_jax.load_tree`; a leaf that the model of ``run`` lacks.
    """
    stored = orbax.abstract_tree(path, item)
    where = sharding.tree_shardings(mesh_lib.like(run.config.mesh), stored, model_of(run).axes)
    return orbax.load_tree(path, item, abstract=jax.tree.map(_at, stored, where))


def _at(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def shardings(run: Run) -> Any:
    """Where :func:`run_evaluator` wants the parameters of the run's model."""
    model = model_of(run)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return sharding.tree_shardings(mesh_lib.like(run.config.mesh), shapes, model.axes)


def check_fits(run: Run, path: Path) -> None:
    """Raises UsageError where the parameters at ``path``, which may lie elsewhere, are not of the model of ``run``."""
    compatibility.check_params(path, jax.eval_shape(model_of(run).init, jax.random.key(0)))
    if origin := compatibility.origin_of(path):
        compatibility.check_unseen(path, origin, run.config)
        if origin.facts["data"]["tokenizer_hash"] != run.facts["data"]["tokenizer_hash"]:
            raise UsageError(f"{path} is of {origin.path}, which has another tokenizer than {run.path}")


def checkpoint_path(run: Run, *, step: int | None = None, merged: str | None = None, item: str = orbax.PARAMS) -> Path:
    """Folder of a run's parameters: a merge by name or path, a step of either stream, or the newest step.

    Args:
      run: the run.
      step: the saved step.
      merged: name of a merge of the run, or path of one elsewhere.
      item: what is wanted of a saved step: ``params``, or an average that the run keeps, e.g. ``ema`` or ``mean``.

    Raises:
      UsageError: not there, naming what is.
    """
    if merged is not None:
        path = next((p for p in (run.merged(merged), places.at(merged)) if p.is_dir()), None)
        if path is None:
            there = run.merged("").glob("*")
            names = ", ".join(sorted(p.name for p in there if orbax.is_checkpoint(p))) or "none"
            raise UsageError(f"{run.path} has no merge {merged!r}, and no such folder is there; it has {names}")
        if not orbax.is_checkpoint(path):
            raise UsageError(f"{path} is no Orbax checkpoint, which an evaluation reads; merge with --format=orbax")
        return path
    everywhere = [
        stream / str(there)
        for stream in (run.resume_stream, run.merge_stream)
        for there in orbax.complete_steps(stream)
    ]
    if not everywhere:
        raise UsageError(f"{run.path} holds no complete checkpoint")
    items = {path: set(orbax.item_names(path)) - {"opt_state", "averages"} for path in everywhere}
    there = {int(path.name): path for path in everywhere if item in items[path]}
    if not there:
        known = sorted(set().union(*items.values()))
        raise UsageError(f"no checkpoint of {run.path} has an item {item!r}; they have {', '.join(known)}")
    step = max(there) if step is None else step
    if step not in there:
        known = ", ".join(map(str, sorted(there)))
        raise UsageError(f"{run.path} has no checkpoint of {item} at step {step}; it has {known}")
    return there[step]
