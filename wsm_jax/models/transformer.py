"""What the dense transformers share around their layers: stacked blocks in one scan, checks, a module as functions."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from wsm_jax.config import left_open
from wsm_jax.config.model import TransformerFields
from wsm_jax.errors import UsageError
from wsm_jax.models import family, picks
from wsm_jax.models.attention import BACKENDS, IMPLEMENTATIONS
from wsm_jax.models.cache import Cache, Past, gathered
from wsm_jax.models.layers import INIT_STD, PRODUCT
from wsm_jax.parallel import chips
from wsm_jax.parallel.activations import spread
from wsm_jax.parallel.sharding import BATCH

STREAM = "stream"  # the residual stream between blocks

Fields = TypeVar("Fields", bound=TransformerFields)


# What of a block is kept for the backward pass; matrix products have a rule of their own, so they are named.
REMAT: dict[str, Any] = {
    "none": None,
    "full": None,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[STREAM],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def out_std(config: TransformerFields) -> float:
    """Of the projections into the residual stream: smaller, so that its variance does not grow with depth (GPT-2)."""
    return INIT_STD / (2 * config.layers) ** 0.5


def stacked_blocks(make: Callable[[nnx.Rngs], Any], layers: int, rngs: nnx.Rngs) -> Any:
    """``layers`` blocks as one module whose every leaf has a leading axis: layer."""
    return nnx.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), layers))


def scan_layers(
    blocks: Any, x_BxTxD: jax.Array, *shared: Any, each: tuple[Any, ...] = (), config: TransformerFields
) -> jax.Array:
    """The residual stream after all of ``blocks``, in one ``lax.scan``: compile time does not grow with depth.

    Args:
      blocks: what :func:`stacked_blocks` made; a block maps (x, *shared, *each, past) to x and past, and to
        more where it has something to tell.
      x_BxTxD: the stream before.
      shared: what every block is given besides.
      each: what blocks are given a row of: arrays with a leading axis, layer; None is given as it is.
      config: says whether blocks are recomputed in the backward pass, and how many an iteration holds.
    """
    return scan_with_found(blocks, x_BxTxD, *shared, each=each, config=config)[0]


def scan_with_found(
    blocks: Any, x_BxTxD: jax.Array, *shared: Any, each: tuple[Any, ...] = (), config: TransformerFields
) -> tuple[jax.Array, Any]:
    """As :func:`scan_layers`; and what blocks say beside x, if they do, with a leading axis: layer."""
    graphdef, stacked = nnx.split(blocks)

    def layer(x_BxTxD: jax.Array, own: tuple[nnx.State, tuple[Any, ...]]) -> tuple[jax.Array, Any]:
        x_BxTxD, (state, row) = checkpoint_name(x_BxTxD, STREAM), own
        x_BxTxD, _, *found = nnx.merge(graphdef, state)(x_BxTxD, *shared, *row, None)
        return spread(x_BxTxD, BATCH), found[0] if found else None

    through = recomputed(layer, config)
    return jax.lax.scan(through, spread(x_BxTxD, BATCH), (stacked, each), unroll=config.scan_unroll)


def recomputed(layer: Callable[..., Any], config: TransformerFields) -> Callable[..., Any]:
    """``layer``, a function of arrays, computed again in the backward pass where ``config`` says so."""
    if config.remat == "none":
        return layer
    return jax.checkpoint(layer, prevent_cse=False, policy=REMAT[config.remat])


def through_layers(
    blocks: Any,
    x_BxTxD: jax.Array,
    *shared: Any,
    each: tuple[Any, ...] = (),
    cache: Cache | None,
    config: TransformerFields,
    before: Sequence[Past] = (),
) -> tuple[jax.Array, Cache | None]:
    """As :func:`scan_layers`; with a cache one layer after the other, and the cache with what each has kept.

    Out of a stack a scan would copy a layer's parameters for every token. So they may be apart: a leaf of ``blocks`` is
    stacked, or a tuple with the array of each layer. ``before`` is what layers in front of the blocks have kept.
    """
    if cache is None:
        return scan_layers(blocks, x_BxTxD, *shared, each=each, config=config), None
    graphdef, state = nnx.split(blocks)
    x_BxTxD, kept = spread(x_BxTxD, BATCH), [*before]
    for i in range(config.layers - len(before)):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], state, is_leaf=lambda leaf: isinstance(leaf, tuple))
        row = jax.tree.map(lambda array, i=i: array[i], each)
        x_BxTxD, past, *_ = nnx.merge(graphdef, own)(x_BxTxD, *shared, *row, cache.layer(len(kept)))
        x_BxTxD = spread(x_BxTxD, BATCH)
        kept.append(past)
    return x_BxTxD, gathered(kept, x_BxTxD.shape[1])


def found(hidden: jax.Array, output: jax.Array, cache: Cache | None) -> tuple[Any, ...]:
    """What a :class:`family.Forward` returns."""
    return (hidden, output) if cache is None else (hidden, output, cache)


def look_up(table: nnx.Param, tokens_BxT: jax.Array) -> jax.Array:
    """The rows of an embedding [V, D] at ``tokens``, [B, T, D]; the devices fetch the table, not the looked-up rows."""
    return spread(table[...], "vocab")[tokens_BxT]


def as_functions(make: Callable[[nnx.Rngs], Any]) -> tuple[family.Init, family.Forward]:
    """``init`` and ``forward`` on plain nested dictionaries, of the module that ``make`` makes.

    ``jax.jit`` on these dispatches about nine times faster on CPU than ``nnx.jit`` on a module (measured).
    """
    graphdef, abstract_state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(params=0))))

    def init(key: jax.Array) -> family.Params:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=key)), nnx.Param))

    def forward(params: family.Params, tokens_BxT: jax.Array, **more: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = jax.tree.map(lambda x: x, abstract_state)  # a fresh container: replacing must not touch the shared one
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)(tokens_BxT, **more)

    return init, forward


def check(config: TransformerFields) -> None:
    """Raises UsageError where the fields that dense transformers share cannot make a network."""
    for field in ("layers", "d_model", "heads", "scan_unroll"):
        if getattr(config, field) < 1 and field not in left_open(config):
            raise UsageError(f"model.{field} is {getattr(config, field)}; it must be at least 1")
    if config.remat not in REMAT:
        known = f"{', '.join(REMAT)}; what was true is full now, what was false is none"
        raise UsageError(f"model.remat is {config.remat!r}; choose {known}")
    if config.attention not in IMPLEMENTATIONS:
        raise UsageError(f"model.attention is {config.attention!r}; choose {', '.join(IMPLEMENTATIONS)}")
    if (backend := BACKENDS.get(config.attention, chips.backend())) != chips.backend():
        needs = {"gpu": "an NVIDIA GPU", "tpu": "a TPU"}[backend]
        raise UsageError(f"model.attention={config.attention} needs {needs}, this is {chips.backend()}; choose xla")
    if config.attention == "cudnn" and config.compute_dtype != "bfloat16":
        raise UsageError(f"model.attention=cudnn needs compute_dtype=bfloat16, not {config.compute_dtype}")


def check_whole_heads(config: TransformerFields) -> None:
    """Raises UsageError where the width of the stream is not that of the heads together."""
    if config.d_model % config.heads:
        raise UsageError(f"model.d_model={config.d_model} is not a multiple of model.heads={config.heads}")


def check_positive(config: TransformerFields, *fields: str) -> None:
    """Raises UsageError for one of ``fields`` that is not positive."""
    for field in fields:
        if not 0 < getattr(config, field) < math.inf:
            raise UsageError(f"model.{field} is {getattr(config, field)}; it must be positive and finite")


def portable(config: Fields) -> Fields:
    """The same function where the kernel that was asked for does not run."""
    if BACKENDS.get(config.attention, chips.backend()) != chips.backend():
        return dataclasses.replace(config, attention="xla")
    return config


def picked(config: Fields, rows: int) -> Fields:
    """``config`` with an attention and a number of unrolled layers; an implementation of :class:`family.Family`'s."""
    del rows
    open = left_open(config)
    if "attention" in open:
        config = dataclasses.replace(config, attention=picks.attention(config.context, config.compute_dtype))
    if "scan_unroll" in open:
        config = dataclasses.replace(config, scan_unroll=picks.unrolled(config))
    return config
