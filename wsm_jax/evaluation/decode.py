"""Tokens after prompts, a batch at a time: the prompt in one pass, then a token a step with what was kept of it.

Shapes are few: prompts are padded on the left to a power of two, rows to another, and a call makes CHUNK tokens in one
program, so that no token waits for Python.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wsm_jax.core.trees import path_name
from wsm_jax.errors import NonFiniteError, UsageError
from wsm_jax.evaluation.evaluator import not_finite
from wsm_jax.evaluation.sampling import Kind, Sampling, Values, choose, row_keys
from wsm_jax.models import cache as cache_lib
from wsm_jax.models import model as model_lib
from wsm_jax.models.layers import matmul
from wsm_jax.models.model import Model
from wsm_jax.parallel import activations, sharding
from wsm_jax.parallel.sharding import RULES, Rules

CHUNK = 8  # tokens of a row that one call makes
NONE = -1  # in the place of a token of a row that has ended
_SHORTEST = 16  # slots for a prompt
_ROOM = 128  # slots for new tokens at first, at most; whenever all are full they are doubled

State = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """A model with parameters on devices, as :func:`decoder` lays them out for making tokens.

    Attributes:
      model: what computes the logits.
      params: a leaf with all layers is a tuple of theirs.
      mesh, rules: the devices, and what of the model is spread over them.
      vocab_size: tokens that may be chosen; the rest of the model's are padding.
    """

    model: Model
    params: Any
    mesh: Mesh
    rules: Rules
    vocab_size: int


def decoder(
    model: Model, params: Any, mesh: Mesh | None = None, rules: Rules = RULES, vocab_size: int | None = None
) -> Decoder:
    """Puts parameters where they are wanted, a layer's apart from the next.

    Args:
      model: of a family whose forward takes a cache.
      params: as training and merging have them; those on the devices of the mesh stay as they are spread.
      mesh: default: all devices along ``data``.
      rules: logical axis -> axes of the mesh.
      vocab_size: the tokenizer's; default the model's.

    Raises:
      UsageError: parameters that are not of the model.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    placed = sharding.placed(mesh, params, model.axes, rules)

    def apart(path: Any, leaf: jax.Array) -> Any:
        known = model.leaves.get(path_name(path))
        return _layers(leaf.sharding)(leaf) if known is not None and known.stacked else leaf

    params = jax.tree_util.tree_map_with_path(apart, placed)
    return Decoder(model, params, mesh, rules, vocab_size or model.config.vocab_size)


@functools.lru_cache(maxsize=64)
def _layers(where: Any) -> Any:
    """A stacked leaf as the tuple of its layers, each cut as it was."""
    own = NamedSharding(where.mesh, P(*where.spec[1:])) if isinstance(where, NamedSharding) else where
    return jax.jit(lambda leaf: tuple(leaf[i] for i in range(leaf.shape[0])), out_shardings=own)


def slots_for(tokens: int, context: int) -> int:
    """The slots that a prompt of so many tokens is padded to."""
    return min(max(_SHORTEST, 1 << (tokens - 1).bit_length()), context)


def tokens_after(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    sampling: Sampling,
    *,
    ends: Iterable[int],
    limits: Sequence[int],
    ended: np.ndarray,
) -> Iterator[np.ndarray]:
    """Makes tokens after prompts that go on together; each row ends by itself.

    Args:
      decoder: what makes them.
      prompts: token ids of each, at least one.
      numbers: of the prompts, which their draws depend on.
      sampling: how tokens are chosen.
      ends: tokens that end a row, which are its last.
      limits: tokens that each gets at most, at least 1; with its prompt no more than the context.
      ended: bool [prompts], kept here; the caller may end rows, too.

    Yields:
      The next tokens of every row, int32 [prompts, n]; NONE after a row's last.

    Raises:
      UsageError: a model whose family takes no cache.
      NonFiniteError: logits that are not finite.
    """
    count, left, end = len(prompts), np.asarray(limits), [*ends]
    given = _placed(decoder, prompts, numbers)
    rows, filled = given["tokens"].shape
    capacity = filled + _room(min(max(limits), _ROOM))
    prefill, advance = _programs(decoder, sampling.kind)
    try:
        state, new = prefill(decoder.params, given, sampling.values, capacity)
    except TypeError as error:
        if not model_lib.lacks(error, "cache", "positions", "segments"):
            raise
        kind = decoder.model.config.family
        raise UsageError(f"models of family {kind} keep nothing of tokens before, so they cannot generate") from error
    while True:
        tokens, bad = (np.array(x[:count]) for x in new)
        if (bad := bad & ~ended).any():
            why = not_finite(decoder.params, "a logit")
            raise NonFiniteError(None, f"after prompt {numbers[np.flatnonzero(bad)[0]] + 1}: {why}")
        for column in range(tokens.shape[1]):
            tokens[ended, column] = NONE
            left = left - ~ended
            ended |= np.isin(tokens[:, column], end) | (left <= 0)
        yield tokens
        if ended.all():
            return
        steps = min(CHUNK, int(left[~ended].max()))
        if filled + steps > capacity:
            capacity = filled + _room(min(int(left.max()), filled))
            state["cache"] = cache_lib.with_slots(state["cache"], capacity)
        done = np.concatenate([ended, np.ones(rows - count, bool)])
        state, new = advance(decoder.params, state, sampling.values, steps, done, np.asarray(end, np.int32))
        filled += steps


def _placed(decoder: Decoder, prompts: Sequence[Sequence[int]], numbers: Sequence[int]) -> dict[str, jax.Array]:
    """Prompts padded on the left, and rows to a power of two that the devices can share, on the devices."""
    parts, count = sharding.batch_parts(decoder.mesh, decoder.rules), len(prompts)
    rows = -(-(1 << (count - 1).bit_length()) // parts) * parts
    slots = slots_for(max(map(len, prompts)), decoder.model.config.context)
    padded = [*prompts, *[prompts[0]] * (rows - count)]
    given = {
        "tokens": np.asarray([[0] * (slots - len(prompt)) + [*prompt] for prompt in padded], np.int32),
        "first": np.asarray([slots - len(prompt) for prompt in padded], np.int32),
        "numbers": np.asarray([*numbers, *[0] * (rows - count)], np.int32),
    }
    return jax.device_put(given, sharding.rows_sharding(decoder.mesh, rows, decoder.rules))


def _room(tokens: int) -> int:
    """Slots for so many tokens, in whole chunks."""
    return -(-tokens // CHUNK) * CHUNK


@functools.lru_cache(maxsize=16)
def _compiled(model: Model, mesh: Mesh, rules: tuple[Any, ...], vocab_size: int, kind: Kind) -> tuple[Any, Any]:
    """(prefill, advance) of a model, compiled once for each shape."""

    def chosen(state: State, hidden: jax.Array, output: jax.Array, values: Values) -> tuple[jax.Array, jax.Array]:
        """The next token of every row, and whether one of its logits is not finite."""
        last: Any = matmul(hidden[:, -1:], output, jnp.dtype("float32"))
        logits = last[:, 0]
        bad = ~jnp.isfinite(logits).all(axis=-1)
        if vocab_size < logits.shape[1]:
            logits = jnp.where((jnp.arange(logits.shape[1]) < vocab_size)[None], logits, -jnp.inf)
        keys = jax.vmap(jax.random.fold_in, (0, None))(state["keys"], state["count"])
        return choose(logits, keys, kind, values), bad

    def prefill(params: Any, given: dict[str, jax.Array], values: Values, capacity: int) -> tuple[State, Any]:
        with activations.on(mesh, dict(rules)):
            tokens, cache = given["tokens"], cache_lib.empty(given["first"])
            places = cache_lib.positions(cache, tokens.shape[1])
            seen = (jnp.arange(tokens.shape[1])[None] >= given["first"][:, None]).astype(jnp.int32)
            forward: Any = model.hidden
            hidden, output, cache = forward(params, tokens, positions=places, segments=seen, cache=cache)
            state: State = {"keys": row_keys(values["seed"], given["numbers"]), "count": jnp.zeros((), jnp.int32)}
            token, bad = chosen(state, hidden, output, values)
            cache = cache_lib.with_slots(cache, capacity)
        return {**state, "cache": cache, "token": token}, (token[:, None], bad)

    def advance(
        params: Any, state: State, values: Values, steps: jax.Array, ended: jax.Array, ends: jax.Array
    ) -> tuple[State, Any]:
        def going_on(carry: tuple[Any, ...]) -> jax.Array:
            _, _, _, ended, step = carry
            return (step < steps) & ~ended.all()

        def one(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            state, made, bad, ended, step = carry
            cache, forward = state["cache"], cast(Any, model.hidden)
            places = cache_lib.positions(cache, 1)
            hidden, output, cache = forward(params, state["token"][:, None], positions=places, cache=cache)
            state = {**state, "cache": cache, "count": state["count"] + 1}
            token, broken = chosen(state, hidden, output, values)
            made = jax.lax.dynamic_update_slice_in_dim(made, token[:, None], step, axis=1)
            bad, ended = bad | (broken & ~ended), ended | (token[:, None] == ends[None]).any(axis=1)
            return {**state, "token": token}, made, bad, ended, step + 1

        with activations.on(mesh, dict(rules)):
            rows = ended.shape[0]
            start = state, jnp.full((rows, CHUNK), NONE, jnp.int32), jnp.zeros(rows, bool), ended, jnp.int32(0)
            state, made, bad, *_ = jax.lax.while_loop(going_on, one, start)
        return state, (made, bad)

    where = (None, sharding.replicated(mesh))  # every process reads the tokens
    return (
        jax.jit(prefill, static_argnums=3, out_shardings=where),
        jax.jit(advance, donate_argnums=1, out_shardings=where),
    )


def _programs(decoder: Decoder, kind: Kind) -> tuple[Any, Any]:
    return _compiled(decoder.model, decoder.mesh, tuple(decoder.rules.items()), decoder.vocab_size, kind)
