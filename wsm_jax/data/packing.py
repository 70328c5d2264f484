"""Rows of several conversations each, none of which sees another: a table for every epoch, looked up by row.

An epoch's table depends on the data, the seed and the epoch alone, so nothing but the step has to be saved.
"""

import functools
import hashlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from wsm_jax.data.store import TokenStore
from wsm_jax.errors import UsageError

OPEN = 64  # rows that a conversation may still go into; more make fuller rows, slowly
Row = dict[str, np.ndarray]


def pack(lengths: np.ndarray, capacity: int, order: np.ndarray) -> list[list[int]]:
    """Numbers of items for each row, first fit among the last ``OPEN`` rows that have room.

    Args:
      lengths: of the items, each at most ``capacity``; those of length 0 are left out.
      capacity: of a row.
      order: in which items are packed.
    """
    rows: list[list[int]] = []
    open: list[tuple[int, int]] = []  # (row, room)
    for item in order[lengths[order] > 0].tolist():
        size = int(lengths[item])
        place = next((at for at, (_, room) in enumerate(open) if room >= size), None)
        if place is None:
            rows.append([])
            open = [*open[-(OPEN - 1) :], (len(rows) - 1, capacity)]
            place = len(open) - 1
        row, room = open[place]
        rows[row].append(item)
        open[place] = (row, room - size)
    return rows


class PackedRows:
    """Row r of the training rows, epoch after epoch without end: see :meth:`__getitem__`.

    Args:
      store: of conversations.
      context: T, tokens in a row. Of a longer conversation the first T count, if a token that is learnt is among them.
      seed: decides the order within each epoch.

    Raises:
      UsageError: no conversation has a response within the context.
    """

    def __init__(self, store: TokenStore, context: int, seed: int):
        self._store, self._context, self._seed = store, context, seed
        self._tokens, self._learnt = store.tokens("train"), store.learnt("train")
        self._offsets = store.offsets("train")
        sizes = np.minimum(np.diff(self._offsets) - 1, context)
        sums = np.concatenate([[0], np.cumsum(self._learnt, dtype=np.int64)])
        starts = self._offsets[:-1] + 1  # the first token is given, not predicted
        self._lengths = np.where(sums[starts + sizes] > sums[starts], sizes, 0)
        if not self._lengths.any():
            raise UsageError(
                f"source {store.manifest['source']!r}: no response begins within model.context={context} tokens"
            )
        self._ends = [0]  # of the epochs known so far, in rows
        self._lock = threading.Lock()

    @property
    def left_out(self) -> int:
        """Conversations whose prompt alone fills the context."""
        return int((self._lengths == 0).sum())

    @property
    def cut(self) -> int:
        """Conversations of which the end does not fit."""
        return int(((np.diff(self._offsets) - 1 > self._context) & (self._lengths > 0)).sum())

    @property
    def full(self) -> float:
        """Share of the first epoch's rows that is not padding."""
        return float(self._lengths.sum() / (self.rows(1) * self._context))

    def rows(self, epochs: int) -> int:
        """Rows in the first epochs."""
        self._know(lambda: len(self._ends) <= epochs)
        return self._ends[epochs]

    def __len__(self) -> int:
        return 1 << 50  # as good as for ever

    def __repr__(self) -> str:
        return f"PackedRows({self._store.hash}, {self._context}, {self._seed})"

    def __getitem__(self, index: Any) -> Row:
        """Row ``index``: ``inputs``, ``targets`` (one token later), ``segments`` (which conversation, from 1; 0 is
        padding), ``positions`` within it, int32 [T]; and ``weights``, float32 [T], 1 where the target is learnt."""
        index = int(index)
        self._know(lambda: self._ends[-1] <= index)
        epoch = int(np.searchsorted(self._ends, index, side="right")) - 1
        row: Row = {name: np.zeros(self._context, np.int32) for name in ("inputs", "targets", "segments", "positions")}
        row["weights"] = np.zeros(self._context, np.float32)
        place = 0
        for number, item in enumerate(self._table(epoch)[index - self._ends[epoch]], 1):
            start, size = int(self._offsets[item]), int(self._lengths[item])
            here = slice(place, place + size)
            row["inputs"][here] = self._tokens[start : start + size]
            row["targets"][here] = self._tokens[start + 1 : start + size + 1]
            row["weights"][here] = self._learnt[start + 1 : start + size + 1]
            row["segments"][here], row["positions"][here] = number, np.arange(size)
            place += size
        return row

    def _know(self, more: Any) -> None:
        with self._lock:
            while more():
                self._ends.append(self._ends[-1] + len(self._table(len(self._ends) - 1)))

    @functools.lru_cache(maxsize=2)  # noqa: B019  # one for the whole run
    def _table(self, epoch: int) -> list[list[int]]:
        digest = hashlib.sha256(f"{self._seed} {self._store.hash} {epoch}".encode()).digest()
        order = np.random.default_rng(list(digest[:16])).permutation(len(self._lengths))
        return pack(self._lengths, self._context, order)


def fitting(store: TokenStore, split: str, context: int, limit_tokens: int = 0) -> np.ndarray:
    """Numbers of the conversations of a split that fit ``context``, int64, in order.

    Args:
      store, split: what is read.
      context: T, tokens in a row.
      limit_tokens: stop after the last one that ends within so many tokens, at least the first; 0 = all.

    Raises:
      UsageError: the split holds none, or none that fits.
    """
    lengths = np.diff(store.offsets(split)) - 1
    found = np.flatnonzero(lengths <= context)
    if not len(found):
        raise UsageError(
            f"source {store.manifest['source']!r}: of its {len(lengths)} {split} conversations none fits "
            f"model.context={context}" + ("" if len(lengths) else f"; raise data.{split}_fraction")
        )
    if limit_tokens > 0:
        found = found[: max(1, np.searchsorted(np.cumsum(lengths[found]), limit_tokens, side="right"))]
    return found


def evaluation_batches(
    store: TokenStore, split: str, numbers: np.ndarray, context: int, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """A row for each of some conversations that fit, in order; the last batch is padded.

    Yields:
      {"inputs", "targets", "document"}: int32 [batch_size, context]; ``document`` is the conversation's place in
      ``numbers`` where the target is learnt, else -1.
    """
    tokens, learnt, offsets = store.tokens(split), store.learnt(split), store.offsets(split)
    for first in range(0, len(numbers), batch_size):
        batch = {name: np.zeros((batch_size, context), np.int32) for name in ("inputs", "targets", "document")}
        batch["document"] -= 1
        for row, number in enumerate(numbers[first : first + batch_size].tolist()):
            start, stop = offsets[number], offsets[number + 1]
            here = (row, slice(0, stop - start - 1))
            batch["inputs"][here], batch["targets"][here] = tokens[start : stop - 1], tokens[start + 1 : stop]
            batch["document"][here] = np.where(learnt[start + 1 : stop], first + row, -1)
        yield batch
