"""Losses by document: sums, standard errors clustered by document, and paired differences between models."""

import dataclasses
import math
from typing import Any

import numpy as np

from wsm_jax.errors import UsageError

Z95 = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Sums over the documents of a split, or over answers given their prompts, one entry each.

    Attributes:
      nats: float64 [documents], cross-entropy summed over the document's tokens and its end-of-text.
      tokens: int64 [documents], predicted tokens, end-of-text included.
      bytes: int64 [documents], UTF-8 bytes of the text.
      data_hash: identifies tokens and split; only equal hashes may be compared.
      left_out: answers that do not fit the context with their prompts, and do not count.
    """

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    data_hash: str
    left_out: int = 0

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def loss_stderr(self) -> float:
        """Standard error of :attr:`loss`, documents being the sampling unit (ratio estimator)."""
        return clustered_stderr(self.nats, self.tokens)

    @property
    def perplexity(self) -> float:
        """exp of the loss."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Nats / ln 2 / UTF-8 bytes; end-of-text adds nats but no bytes."""
        return float(self.nats.sum() / math.log(2) / self.bytes.sum())

    @property
    def bits_per_byte_stderr(self) -> float:
        """Standard error of :attr:`bits_per_byte`, as that of the loss."""
        return clustered_stderr(self.nats / math.log(2), self.bytes)

    def intervals(self) -> dict[str, float]:
        """95% intervals of loss and bits per byte under a normal approximation; NaN of a single document."""
        found = {
            "loss": (self.loss, self.loss_stderr),
            "bits_per_byte": (self.bits_per_byte, self.bits_per_byte_stderr),
        }
        return {
            f"{name}_{end}": value + sign * Z95 * stderr
            for name, (value, stderr) in found.items()
            for end, sign in (("low", -1), ("high", 1))
        }

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


def clustered_stderr(values: np.ndarray, sizes: np.ndarray) -> float:
    """Standard error of sum(values) / sum(sizes), of which each document, or question, gives a pair; NaN of one."""
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
    return Difference(float(delta.sum() / first.tokens.sum()), clustered_stderr(delta, first.tokens))
