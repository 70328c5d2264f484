"""Loss on held-out documents, with standard errors clustered by document and paired differences between models."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wsm_jax.checkpoints import compatibility, orbax
from wsm_jax.checkpoints.run import Run
from wsm_jax.core.trees import named_leaves
from wsm_jax.data.pipeline import evaluation_batches
from wsm_jax.data.tokens import Corpus, TokenStore, prepare
from wsm_jax.errors import NonFiniteError, UsageError
from wsm_jax.io import places
from wsm_jax.models import family
from wsm_jax.models.model import Model, build, loss_per_token
from wsm_jax.models.presets import with_vocabulary
from wsm_jax.parallel import activations, sharding
from wsm_jax.parallel import mesh as mesh_lib
from wsm_jax.parallel.sharding import RULES, Rules

Z95 = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Sums over the documents of a split, one entry a document.

    Attributes:
      nats: float64 [documents], cross-entropy summed over the document's tokens and its end-of-text.
      tokens: int64 [documents], predicted tokens, end-of-text included.
      bytes: int64 [documents], UTF-8 bytes of the text.
      data_hash: identifies tokens and split; only equal hashes may be compared.
    """

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    data_hash: str

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def loss_stderr(self) -> float:
        """Standard error of :attr:`loss`, documents being the sampling unit (ratio estimator)."""
        return _clustered_stderr(self.nats, self.tokens)

    @property
    def perplexity(self) -> float:
        """exp of the loss."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Nats / ln 2 / UTF-8 bytes; end-of-text adds nats but no bytes."""
        return float(self.nats.sum() / math.log(2) / self.bytes.sum())

    def summary(self) -> dict[str, Any]:
        """The figures ``wsm eval --json`` prints."""
        return {
            "loss": self.loss,
            "loss_stderr": self.loss_stderr,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": int(self.tokens.sum()),
            "documents": len(self.tokens),
            "data_hash": self.data_hash,
        }


def _clustered_stderr(values: np.ndarray, sizes: np.ndarray) -> float:
    count = len(values)
    if count < 2:
        return float("nan")
    residual = values - values.sum() / sizes.sum() * sizes
    return float(math.sqrt(count / (count - 1) * np.square(residual).sum()) / sizes.sum())


@dataclasses.dataclass(frozen=True)
class Difference:
    """Loss of one model minus that of another on the same documents, nats per token, with its standard error."""

    loss: float
    stderr: float

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval under a normal approximation."""
        return self.loss - Z95 * self.stderr, self.loss + Z95 * self.stderr


def paired_difference(first: Evaluation, second: Evaluation) -> Difference:
    """``first`` minus ``second``, paired by document, so that what is common to both cancels.

    Raises:
      UsageError: evaluated on different data.
    """
    if first.data_hash != second.data_hash:
        raise UsageError("the two evaluations are of different data and cannot be compared")
    delta = first.nats - second.nats
    return Difference(float(delta.sum() / first.tokens.sum()), _clustered_stderr(delta, first.tokens))


Evaluator = Callable[[Any], Evaluation]


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
    rules: Rules = RULES,
) -> Evaluator:
    """params -> Evaluation on a split of some stores; the batches are read once and the step is compiled once.

    Parameters that lie on the devices of the mesh stay as they are spread; others are put there as the rules say.

    Args:
      model: what computes the loss.
      mesh: the devices; its axes that carry the batch share the rows where ``batch_size`` is a multiple of them.
      stores: one after the other.
      split: ``validation``, ``test`` or ``train``.
      batch_size: sequences in one batch.
      limit_tokens: stop after the last document that ends within so many tokens of each store; 0 = all.
      rules: logical axis -> axes of the mesh.

    Raises:
      UsageError: an empty split or a batch size below 1. What is returned raises NonFiniteError for a loss that is
        not finite, naming the leaf.
    """
    where = sharding.rows_sharding(mesh, batch_size, rules)
    step = _compiled_loss(model, mesh, tuple(rules.items()))
    batches, documents, counts, sizes = [], [], [], []
    for store in stores:
        first, taken = len(sizes), 0
        for batch in evaluation_batches(
            store, split, context=model.config.context, batch_size=batch_size, limit_tokens=limit_tokens
        ):
            document = batch.pop("document")
            batches.append(jax.device_put(batch, where))
            documents.append(np.where(document < 0, -1, document + first).ravel())
            taken = max(taken, int(document.max()) + 1)
        counts.extend(np.diff(store.offsets(split)[: taken + 1]))
        sizes.extend(store.document_bytes(split)[:taken])
    data_hash = "-".join([split, str(limit_tokens), *(store.hash[:16] for store in stores)])

    def evaluate(params: Any) -> Evaluation:
        params = sharding.placed(mesh, params, model.axes, rules)
        nats = np.zeros(len(sizes))
        # Every batch is dispatched before the first result is waited for, where that is safe.
        arrived = jax.block_until_ready if sharding.in_turn(mesh) else lambda loss: loss
        losses = [arrived(step(params, batch)) for batch in batches]
        for loss, document in zip(losses, documents, strict=True):
            real = document >= 0
            nats += np.bincount(document[real], np.asarray(loss, np.float64).ravel()[real], minlength=len(sizes))
        if not np.isfinite(nats).all():
            raise NonFiniteError(None, _not_finite(params))
        return Evaluation(nats, np.asarray(counts, np.int64), np.asarray(sizes, np.int64), data_hash)

    return evaluate


def _not_finite(params: Any) -> str:
    """Why a loss is not finite: the first leaf with a NaN or an infinity, where there is one."""
    for name, leaf in named_leaves(params).items():
        if bad := int(jnp.sum(~jnp.isfinite(leaf))):
            return f"leaf {name} has {bad} of {leaf.size} values that are NaN or infinite"
    return "the loss is not finite, though every parameter is"


@functools.lru_cache(maxsize=8)
def _compiled_loss(
    model: Model, mesh: Mesh, rules: tuple[tuple[str, Any], ...]
) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
    """One for all splits and stores of a model, so that it is compiled once for each shape of a batch."""

    def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        with activations.on(mesh, dict(rules)):
            return loss_per_token(model, params, batch["inputs"], batch["targets"])

    return jax.jit(loss, out_shardings=sharding.replicated(mesh))


def model_and_data(run: Run) -> tuple[Model, Corpus]:
    """The model of a run and the data it was trained on.

    Raises:
      UsageError: the data are not those the run was trained on.
    """
    corpus = prepare(run.config.data)
    if corpus.hash != run.facts["data_hash"]:
        raise UsageError(
            f"the data of {run.path} have changed since it was trained (hash {corpus.hash[:12]}, "
            f"then {run.facts['data_hash'][:12]}); losses would not be comparable"
        )
    return _model(run), corpus


def _model(run: Run) -> Model:
    shape = with_vocabulary(run.config.model, run.facts["data"]["vocab_size"], pad_given=not run.format)
    return build(family.of(shape).portable(shape))


def run_evaluator(
    run: Run, split: str, *, limit_tokens: int = 0, mesh: Mesh | None = None, rules: Rules = RULES
) -> Evaluator:
    """params -> Evaluation on a split of the data a run was trained on.

    Args:
      run: says which data and which model.
      split: ``validation``, ``test`` or ``train``.
      limit_tokens: tokens of each store; 0 = all.
      mesh: the devices; default: all, as near to the run's mesh as they allow.
      rules: logical axis -> axes of the mesh.

    Raises:
      UsageError: the data are not those the run was trained on.
    """
    model, corpus = model_and_data(run)
    return make_evaluator(
        model,
        mesh or mesh_lib.like(run.config.mesh),
        held_out_stores(corpus, split),
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
    where = sharding.tree_shardings(mesh_lib.like(run.config.mesh), stored, _model(run).axes)
    return orbax.load_tree(path, item, abstract=jax.tree.map(_at, stored, where))


def _at(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def shardings(run: Run) -> Any:
    """Where :func:`run_evaluator` wants the parameters of the run's model."""
    model = _model(run)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return sharding.tree_shardings(mesh_lib.like(run.config.mesh), shapes, model.axes)


def check_fits(run: Run, path: Path) -> None:
    """Raises UsageError where the parameters at ``path``, which may lie elsewhere, are not of the model of ``run``."""
    compatibility.check_params(path, jax.eval_shape(_model(run).init, jax.random.key(0)))
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
