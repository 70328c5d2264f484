"""Batches from token stores: for training a pure function of the step, for evaluation every token once.

Training rows are non-overlapping windows of the train stream (they share one token), or conversations packed into rows,
shuffled anew each epoch, mixed by weight. Row r of a run is the same whatever the number of hosts and wherever the run
started, and batch s is rows s * batch_size to (s + 1) * batch_size - 1, so nothing but the step has to be saved.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from wsm_jax.data.packing import PackedRows
from wsm_jax.data.tokens import Corpus, Mixture, TokenStore
from wsm_jax.errors import UsageError

Batch = dict[str, np.ndarray]

# Grain cannot concatenate endless sets, so "for ever" is a number that no run reaches.
_FOR_EVER = 1 << 50
_AHEAD = 16  # batches read before they are asked for


class _Windows:
    """Random access to windows of context + 1 tokens, the last token of one being the first of the next."""

    def __init__(self, store: TokenStore, context: int):
        self._tokens = store.tokens("train")
        self._context = context
        self._name = store.hash
        if len(self) < 1:
            raise UsageError(
                f"source {store.manifest['source']!r} has {len(self._tokens)} train tokens, too few for one window of "
                f"model.context={context}"
            )

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._context

    def __getitem__(self, index: Any) -> np.ndarray:
        start = int(index) * self._context
        return self._tokens[start : start + self._context + 1]

    def __repr__(self) -> str:
        return f"_Windows({self._name}, {self._context})"


def training_set(
    corpus: Corpus,
    *,
    context: int,
    batch_size: int,
    seed: int,
    switch_step: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """The training batches as a Grain data set: element s is this host's part of the batch of step s (counted from 0).

    A source that is in both mixtures goes on after the switch where it stopped: nothing is seen twice within its epoch.
    Grain's mix rounds weights to a hundredth of the smallest one: 0.7 and 0.3 become 233 and 100 rows in 333.

    Args:
      corpus: what to read.
      context: T, tokens in a row.
      batch_size: rows in one update, over all hosts.
      seed: decides the order of the rows.
      switch_step: first step of ``corpus.switch``; None where there is none.
      process_index: this host.
      process_count: hosts; their parts, in order, make up the batch.

    Returns:
      elements {"inputs", "targets"}: int32 [batch_size / process_count, T]; of conversations also ``segments``,
      ``positions`` and ``weights``, see :class:`wsm_jax.data.packing.PackedRows`.

    Raises:
      UsageError: sizes that do not divide, a switch without its mixture or the other way round, or too little text.
    """
    if context < 1 or batch_size < 1:
        raise UsageError(f"model.context={context} and batch_size={batch_size} must be at least 1")
    if batch_size % process_count:
        raise UsageError(f"batch_size={batch_size} must be a multiple of the number of hosts, {process_count}")
    if not 0 <= process_index < process_count:
        raise UsageError(f"process_index={process_index} must be between 0 and {process_count - 1}")
    if (switch_step is None) != (not corpus.switch):
        raise UsageError("data.switch_source and data.switch_at go together; give both or none")
    if switch_step is not None and switch_step < 0:
        raise UsageError(f"data.switch_at must not be before the start (step {switch_step})")

    if switch_step is None:
        rows = _mixture(corpus.stable, {}, context, seed)
    else:
        before = switch_step * batch_size
        used = _rows_used(corpus.stable, before)
        after = _mixture(corpus.switch, used, context, seed)[:_FOR_EVER]
        stable = _mixture(corpus.stable, {}, context, seed)[:before] if before else None
        rows = after if stable is None else grain.MapDataset.concatenate([stable, after])
    # Batches of a host's size, dealt out in turn: each host reads only its own rows.
    parts = rows.batch(batch_size // process_count, drop_remainder=True)[process_index::process_count]
    return parts if corpus.is_packed else parts.map(_inputs_and_targets)


def batches(
    corpus: Corpus,
    *,
    context: int,
    batch_size: int,
    seed: int,
    switch_step: int | None = None,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 2,
) -> Iterator[Batch]:
    """Training batches from ``start_step`` on, without end, read ahead by threads.

    Args:
      start_step: the first step (counted from 0).
      workers: threads; 0 reads in the caller's.
      others: see :func:`training_set`, which also says what is raised.

    Yields:
      {"inputs", "targets"}: int32 [batch_size / process_count, context], targets one token later than inputs.
    """
    if start_step < 0:
        raise UsageError(f"start_step={start_step} must be at least 0")
    if workers < 0:
        raise UsageError(f"data.workers={workers} must be at least 0")
    steps = training_set(
        corpus,
        context=context,
        batch_size=batch_size,
        seed=seed,
        switch_step=switch_step,
        process_index=process_index,
        process_count=process_count,
    )
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=_AHEAD if workers else 0)
    return iter(steps[start_step:].to_iter_dataset(options))


def batch_at(corpus: Corpus, step: int, **arguments: Any) -> Batch:
    """The batch of one step; arguments as for :func:`training_set`."""
    batch = training_set(corpus, **arguments)[step]
    assert batch is not None
    return batch


def evaluation_batches(
    store: TokenStore,
    split: str,
    *,
    context: int,
    batch_size: int,
    limit_tokens: int = 0,
    document_tokens: int = 0,
) -> Iterator[Batch]:
    """Every token of a split once as a target, in order, or the first tokens of each document.

    The stream, with one end-of-text before it, is cut in windows of ``context``: each document starts from the
    end-of-text of the one before it, which stands there too where only its first tokens count, and a token sees nothing
    from before its window.

    Args:
      store: what to read.
      split: ``train``, ``validation`` or ``test``.
      context: T, tokens in a row.
      batch_size: B, rows in a batch; the last batch is padded to it.
      limit_tokens: stop after the last document that ends within so many tokens, at least the first; 0 = no limit.
      document_tokens: of each document the first so many, end-of-text counted as one; 0 = all.

    Yields:
      {"inputs", "targets", "document"}: int32 [B, T]; ``document`` numbers the document of the target token within the
      split, -1 where the target does not count: the end-of-text of a document that was cut, and padding (inputs and
      targets are 0 there).

    Raises:
      UsageError: the split holds no document, ``context`` or ``batch_size`` is below 1, or ``document_tokens`` below 0.
    """
    tokens, offsets, eot = store.tokens(split), store.offsets(split), store.manifest["eot"]
    if len(tokens) == 0:
        raise UsageError(f"source {store.manifest['source']!r} has no {split} documents; raise data.{split}_fraction")
    if context < 1 or batch_size < 1:
        raise UsageError(f"model.context={context} and evaluation.batch_size={batch_size} must be at least 1")
    if document_tokens < 0:
        raise UsageError(f"document_tokens={document_tokens} must be at least 1, or 0 for all")
    counts = np.diff(offsets)
    if document_tokens > 0:
        counts = np.minimum(counts, document_tokens)
    if limit_tokens > 0:
        counts = counts[: max(1, np.searchsorted(np.cumsum(counts), limit_tokens, side="right"))]
    offsets = offsets[: len(counts) + 1]
    if document_tokens > 0:
        tokens, offsets = _first_tokens(tokens, offsets, counts, eot)
    return _evaluation_batches(tokens[: offsets[-1]], offsets, counts, eot, context, batch_size)


def _first_tokens(
    tokens: np.ndarray, offsets: np.ndarray, counts: np.ndarray, eot: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of each document so many tokens, with an end-of-text behind them where it is cut, and where each starts."""
    end = np.asarray([eot], tokens.dtype)
    parts = []
    for start, stop, count in zip(offsets[:-1], offsets[1:], counts, strict=True):
        part = tokens[start : start + count]
        parts.append(part if start + count == stop else np.concatenate([part, end]))
    return np.concatenate(parts), np.cumsum([0, *map(len, parts)])


def _evaluation_batches(
    tokens: np.ndarray, offsets: np.ndarray, counts: np.ndarray, eot: int, context: int, batch_size: int
) -> Iterator[Batch]:
    size = context * batch_size
    for start in range(0, len(tokens), size):
        targets = tokens[start : start + size].astype(np.int32)
        before = tokens[start - 1] if start else eot
        inputs = np.concatenate([[before], targets[:-1]]).astype(np.int32)
        places = np.arange(start, start + len(targets))
        document = (np.searchsorted(offsets, places, side="right") - 1).astype(np.int32)
        document[places - offsets[document] >= counts[document]] = -1
        flat = {"inputs": (inputs, 0), "targets": (targets, 0), "document": (document, -1)}
        yield {
            name: np.pad(values, (0, size - len(values)), constant_values=filler).reshape(batch_size, context)
            for name, (values, filler) in flat.items()
        }


def _mixture(mixture: Mixture, used: dict[str, int], context: int, seed: int) -> grain.MapDataset[np.ndarray]:
    """Rows without end; ``used`` says how many of a store's (by hash) were read before."""
    streams = []
    for store, _ in mixture:
        # Grain adds the epoch to the seed, so neighbouring seeds would share orders; a hash keeps them apart, and gives
        # each source an order that does not depend on what it is mixed with.
        own = int.from_bytes(hashlib.sha256(f"{seed} {store.hash}".encode()).digest()[:4], "little")
        if store.has_learnt:
            endless = grain.MapDataset.source(PackedRows(store, context, seed))
        else:
            windows = grain.MapDataset.source(_Windows(store, context)).shuffle(seed=own)
            endless = windows.repeat(reseed_each_epoch=True)
        streams.append(endless[used.get(store.hash, 0) :])
    return grain.MapDataset.mix(streams, weights=[weight for _, weight in mixture])


def _rows_used(mixture: Mixture, rows: int) -> dict[str, int]:
    """Rows that each store (by hash) gave in the first ``rows`` of a mixture."""
    # Grain keeps its counting to itself, so the same mix over plain numbers is read backwards until each was met.
    numbers = [grain.MapDataset.range(_FOR_EVER).map(lambda n, i=i: (i, n)) for i in range(len(mixture))]
    mixed = grain.MapDataset.mix(numbers, weights=[weight for _, weight in mixture])
    used: dict[str, int] = {}
    for row in range(rows - 1, -1, -1):
        element = mixed[row]
        assert element is not None
        which, number = element
        used.setdefault(mixture[which][0].hash, number + 1)
        if len(used) == len(mixture):
            break
    return used


def _inputs_and_targets(windows: np.ndarray) -> Batch:
    wide = windows.astype(np.int32)
    return {"inputs": wide[:, :-1], "targets": wide[:, 1:]}
