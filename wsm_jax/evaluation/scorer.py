"""Log-probabilities of answers given what stands before them, in few shapes; the parameters are an argument.

Rows are padded on the right to a power of two and sorted by length. Logits are computed where an answer is scored and
nowhere else. Answers that follow the same tokens, as the letters of one question do, share a row.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wsm_jax.errors import NonFiniteError
from wsm_jax.evaluation.evaluator import not_finite
from wsm_jax.models.attention import TILE
from wsm_jax.models.layers import matmul
from wsm_jax.models.model import Model
from wsm_jax.parallel import activations, chips, sharding
from wsm_jax.parallel.sharding import RULES, Rules

BATCH_TOKENS = 4096  # of one forward pass
_SHORTEST = 32  # tokens of a row
_TOGETHER = 64  # places of a row whose logits exist at once


class Pair(NamedTuple):
    """Tokens that are scored, at least one, and those before them, at least one; without the last they fit a row."""

    given: tuple[int, ...]
    answer: tuple[int, ...]


class Found(NamedTuple):
    """Of an answer: the sum of the log-probabilities of its tokens, in nats, and whether each is the likeliest."""

    logprob: float
    greedy: bool


class _Row(NamedTuple):
    tokens: tuple[int, ...]
    pairs: list[int]
    places: int  # that are scored


def score(
    model: Model,
    params: Any,
    mesh: Mesh,
    pairs: Sequence[Pair],
    *,
    batch_tokens: int = BATCH_TOKENS,
    rules: Rules = RULES,
) -> Iterator[dict[int, Found]]:
    """Scores pairs, the longest first.

    Args:
      model: what computes the logits.
      params: on the devices of the mesh, or anywhere.
      mesh: the devices; its axes that carry the batch share the rows.
      pairs: none longer than the context.
      batch_tokens: of one forward pass, at most, where one row does not take more.
      rules: logical axis -> axes of the mesh.

    Yields:
      number of a pair -> what was found, for those of each forward pass.

    Raises:
      NonFiniteError: logits that are not finite.
    """
    params = sharding.placed(mesh, params, model.axes, rules)
    step = _compiled(model, mesh, tuple(rules.items()))
    parts = sharding.batch_parts(mesh, rules)
    for rows, length, places in _batches(pairs, model.config.context, batch_tokens, parts):
        size = _padded(len(rows), _rows(length, batch_tokens, parts), parts)
        batch = {
            "inputs": np.zeros((size, length), np.int32),
            "places": np.zeros((size, places), np.int32),
            "targets": np.zeros((size, places), np.int32),
        }
        spans = []
        for number, row in enumerate(rows):
            batch["inputs"][number, : len(row.tokens)] = row.tokens
            start = 0
            for pair in row.pairs:
                answer = pairs[pair].answer
                span = slice(start, start := start + len(answer))
                batch["places"][number, span] = np.arange(len(row.tokens) - len(answer), len(row.tokens))
                batch["targets"][number, span] = answer
                spans.append((pair, number, span))
        logprob, greedy = map(
            np.asarray, step(params, jax.device_put(batch, sharding.rows_sharding(mesh, size, rules)))
        )
        found = {
            pair: Found(float(logprob[number, span].sum(dtype=np.float64)), bool(greedy[number, span].all()))
            for pair, number, span in spans
        }
        if not all(math.isfinite(one.logprob) for one in found.values()):
            raise NonFiniteError(None, not_finite(params, "a logit"))
        yield found


def _batches(
    pairs: Sequence[Pair], context: int, batch_tokens: int, parts: int
) -> Iterator[tuple[list[_Row], int, int]]:
    """Rows of one forward pass, the length that they are padded to, and the places that are scored of each."""
    shared: dict[tuple[int, ...], list[int]] = {}
    for number, pair in enumerate(pairs):
        shared.setdefault(pair.given + pair.answer[:-1], []).append(number)
    shapes: dict[tuple[int, int], list[_Row]] = {}
    for tokens, numbers in shared.items():
        places, length = sum(len(pairs[number].answer) for number in numbers), _length(len(tokens), context)
        shapes.setdefault((length, _places(places, length)), []).append(_Row(tokens, numbers, places))
    for (length, places), rows in sorted(shapes.items(), reverse=True):
        rows.sort(key=lambda row: len(row.tokens), reverse=True)
        size = _rows(length, batch_tokens, parts)
        for start in range(0, len(rows), size):
            yield rows[start : start + size], length, places


def _rows(length: int, batch_tokens: int, parts: int) -> int:
    """Rows of one forward pass, a multiple of the parts that devices cut them into."""
    return max(1, batch_tokens // length // parts) * parts


def _padded(count: int, full: int, parts: int) -> int:
    """Rows that ``count`` are padded to: a full pass, or an eighth of it where they fit that; a rest costs little."""
    eighth = max(1, full // 8 // parts) * parts
    return eighth if count <= eighth else full


def _length(tokens: int, context: int) -> int:
    """What a row of so many tokens is padded to."""
    shortest = TILE if chips.backend() == "tpu" else _SHORTEST  # its attention kernel takes whole tiles
    return min(max(shortest, 1 << (tokens - 1).bit_length()), context)


def _places(count: int, length: int) -> int:
    """What so many scored places are padded to: 1, 4, 16, 64, ..., and no more than the row has unless they repeat."""
    rounded = next(4**power for power in range(16) if 4**power >= count)
    whole = -(-max(length, count) // _TOGETHER) * _TOGETHER
    return rounded if rounded <= _TOGETHER else min(rounded, whole)


@functools.lru_cache(maxsize=8)
def _compiled(model: Model, mesh: Mesh, rules: tuple[tuple[str, Any], ...]) -> Any:
    """(params, batch) -> log-probabilities float32 [B, N] and whether each is the likeliest, bool [B, N]."""

    def part(hidden: jax.Array, output: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits: Any = matmul(hidden, output, jnp.dtype("float32"))
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return picked - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == targets

    def step(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        with activations.on(mesh, dict(rules)):
            hidden, output = model.hidden(params, batch["inputs"])
            hidden, targets = jnp.take_along_axis(hidden, batch["places"][..., None], axis=1), batch["targets"]
            blocks = targets.shape[1] // _TOGETHER
            if blocks <= 1:
                return part(hidden, output, targets)
            cut = jax.tree.map(lambda x: jnp.stack(jnp.split(x, blocks, axis=1)), (hidden, targets))
            found = jax.lax.map(lambda block: part(block[0], output, block[1]), cut)
            return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(targets.shape), found)

    return jax.jit(step, out_shardings=sharding.replicated(mesh))
