"""A mixture of experts: routing, and the product of every row with the expert it is for.

Shapes in names: N tokens of this device, E experts, k experts of a token, M = N k assignments, S slots, D d_model,
F width of an expert. On one device no assignment is lost. Where experts are spread over devices, each device sends
every other one a buffer of fixed size; what does not fit is dropped and counted.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from wsm_jax.errors import UsageError
from wsm_jax.models.dispatch import layout, moved
from wsm_jax.models.layers import PRODUCT, swiglu
from wsm_jax.parallel import activations, chips
from wsm_jax.parallel.activations import Cut
from wsm_jax.parallel.sharding import BATCH

AUTO, BLOCKS, RAGGED, DENSE = GROUPED = ("auto", "blocks", "ragged_dot", "dense")
LARGEST_BLOCK = 128  # rows; on CPUs 64 are slower by a seventh
_RAGGED_ON_TPU = (0, 12)  # jax before it computes the weights' gradient densely, so that FLOPs grow with experts

Weights = Mapping[str, jax.Array]  # gate, up [E, D, F] and down [E, F, D]


class Routing(NamedTuple):
    """Which experts every token goes to.

    Attributes:
      chosen: int32 [N, k].
      weights: float32 [N, k], what their answers are multiplied by.
      load: float32 [E], assignments.
    """

    chosen: jax.Array
    weights: jax.Array
    load: jax.Array


def route(logits: jax.Array, bias: jax.Array, *, top: int, groups: int, kept: int, scale: float) -> Routing:
    """Sigmoid scores, choice limited to groups, and normalised weights, as DeepSeek-V3 and Ling have it.

    Args:
      logits: float32 [N, E].
      bias: float32 [E], added to the scores for the choice alone; it has no gradient.
      top: k.
      groups: equal parts of the experts, next to each other.
      kept: groups a token may choose from: those whose two best experts score highest together.
      scale: sum of a token's weights.
    """
    N, E = logits.shape
    scores = jax.nn.sigmoid(logits)
    biased = lax.stop_gradient(scores + bias[None])
    if kept < groups:
        grouped = biased.reshape(N, groups, E // groups)
        best = lax.top_k(grouped, min(2, E // groups))[0].sum(axis=-1)
        allowed = jax.nn.one_hot(lax.top_k(best, kept)[1], groups).sum(axis=1) > 0
        biased = jnp.where(allowed[..., None], grouped, -jnp.inf).reshape(N, E)
    chosen = lax.top_k(biased, top)[1]
    hits = jax.nn.one_hot(chosen, E)  # gathers of single numbers, and their gradients, are slow
    weights = (scores[:, None] * hits).sum(axis=-1)
    weights = scale * weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return Routing(chosen, weights, lax.stop_gradient(hits).sum(axis=(0, 1)))


def chosen_product(grouped: str) -> str:
    """How rows are multiplied with their experts where ``auto`` is asked for; any other name is itself.

    Raises:
      UsageError: not on this machine, saying what would be.
    """
    backend = chips.backend()
    grouped = {"tpu": RAGGED}.get(backend, BLOCKS) if grouped == AUTO else grouped
    if grouped == RAGGED and backend == "cpu":
        raise UsageError("model.grouped=ragged_dot computes every expert for every row on CPUs; choose blocks")
    if grouped == RAGGED and jax.default_backend() == "tpu" and jax.__version_info__ < _RAGGED_ON_TPU:
        raise UsageError(
            f"model.grouped=ragged_dot on TPUs needs jax 0.12 or newer (Python 3.12), this is {jax.__version__}, which "
            "computes the gradient of every expert densely; choose blocks"
        )
    return grouped


def block_of(rows: int, count: int) -> int:
    """Rows of a padded block, a power of two of at most half of what ``count`` experts have of ``rows`` on average."""
    return 2 ** int(math.log2(min(max(rows // (2 * count), 8), LARGEST_BLOCK)))


def feed_forward(x: jax.Array, weights: Weights, group: jax.Array, count: int, grouped: str, each: int) -> jax.Array:
    """The answer of its expert for every assignment, dropless.

    Args:
      x: [N, D].
      weights: of ``count`` experts.
      group: int [N * each], the expert of every assignment; ``count`` for none, whose answer is 0.
      count: number of experts.
      grouped: blocks (of padded rows, each with a copy of its expert's weights) or ragged_dot.
      each: assignments of a row.

    Returns:
      [N * each, D].
    """
    blocks = grouped == BLOCKS
    placed = layout(group, count, block=block_of(group.shape[0], count) if blocks else 1)
    rows = moved(x, placed.source, placed.slot, each)

    def product(rows: Any, name: str) -> jax.Array:
        if not blocks:
            return checkpoint_name(lax.ragged_dot(rows, weights[name], placed.sizes.astype(jnp.int32)), PRODUCT)
        own = weights[name][placed.owner]
        y = jnp.einsum("bri,bio->bro", rows.reshape(own.shape[0], -1, rows.shape[-1]), own)
        return checkpoint_name(y.reshape(rows.shape[0], -1), PRODUCT)

    answers = product(swiglu(product(rows, "gate"), product(rows, "up")), "down")
    return moved(answers, placed.slot, placed.source)


def exchanged(
    x: jax.Array, weights: Weights, chosen: jax.Array, axes: tuple[str, ...], grouped: str, factor: float
) -> tuple[jax.Array, jax.Array]:
    """As :func:`feed_forward` where each device along ``axes`` of the mesh has its own experts; inside ``shard_map``.

    Rows go to the devices of their experts and back by two ``all_to_all`` of fixed size: a device has room for
    ``factor`` times its equal share of the rows of each other one.

    Args:
      x: [N, D], of this device.
      weights: of this device's experts.
      chosen: int32 [N, k] among all experts.
      axes: of the mesh.
      grouped: as :func:`feed_forward` has it.
      factor: of the buffer.

    Returns:
      [N k, D], zeros for dropped assignments; and their share, float32.
    """
    k, parts, count = chosen.shape[1], lax.axis_size(axes), weights["gate"].shape[0]
    flat = chosen.reshape(-1)
    capacity = min(flat.size, math.ceil(flat.size / parts * factor / 8) * 8)
    sent = layout(flat // count, parts, capacity=capacity)

    def swapped(rows: jax.Array) -> jax.Array:
        return lax.all_to_all(rows, axes, 0, 0, tiled=True)

    group = swapped((flat % count).at[sent.source].get(mode="fill", fill_value=count))
    rows = swapped(moved(x, sent.source, sent.slot, k))
    answers = swapped(feed_forward(rows, weights, group, count, grouped, 1))
    dropped = (sent.slot == sent.source.shape[0]).mean(dtype=jnp.float32)
    return moved(answers, sent.slot, sent.source), dropped


def dense(x: jax.Array, weights: Weights, routing: Routing) -> jax.Array:
    """Every expert for every token in a loop over experts, [N, D]: what the others are compared with."""
    E = weights["gate"].shape[0]
    shares = (jax.nn.one_hot(routing.chosen, E) * routing.weights[..., None]).sum(axis=1).astype(x.dtype)

    def add(total: jax.Array, expert: tuple[Weights, jax.Array]) -> tuple[jax.Array, None]:
        own, share = expert
        return total + share[:, None] * (swiglu(x @ own["gate"], x @ own["up"]) @ own["down"]), None

    return lax.scan(add, jnp.zeros_like(x), (dict(weights), shares.T))[0]


def mixture(
    x_BxTxD: jax.Array, router_DxE: jax.Array, bias_E: jax.Array, weights: Weights, *,
    top: int, groups: int, kept: int, scale: float, grouped: str, factor: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:  # fmt: skip
    """The weighted answers of every token's experts, and what is to be known of the routing.

    Args:
      x_BxTxD: in the compute dtype.
      router_DxE: float32.
      bias_E, top, groups, kept, scale: as :func:`route` has them.
      weights: of the experts.
      grouped: one of ``GROUPED``.
      factor: of the buffers, see :func:`exchanged`.

    Returns:
      [B, T, D]; and float32 ``load`` [E], assignments of each expert, ``z``, the mean square of log sum exp of the
      logits, and ``dropped``, the share of assignments that were lost.
    """
    grouped = chosen_product(grouped)

    def part(cut: Cut, x: jax.Array, router: jax.Array, bias: jax.Array, *own: jax.Array):
        rows, batch, spread = x.reshape(-1, x.shape[-1]), cut.get(BATCH, ()), cut.get("expert", ())
        weights = _gathered(dict(zip(("gate", "up", "down"), own, strict=True)), cut, x.dtype)
        logits = jnp.matmul(rows.astype(jnp.float32), router, precision="highest")
        routing = route(logits, bias, top=top, groups=groups, kept=kept, scale=scale)
        dropped = jnp.zeros((), jnp.float32)
        if grouped == DENSE:
            if spread:
                weights = {name: lax.all_gather(array, spread, axis=0, tiled=True) for name, array in weights.items()}
            y = dense(rows, weights, routing)
        else:
            if spread:
                y, dropped = exchanged(rows, weights, routing.chosen, spread, grouped, factor)
            else:
                y = feed_forward(rows, weights, routing.chosen.reshape(-1), router.shape[1], grouped, top)
            y = jnp.einsum("nkd,nk->nd", y.reshape(-1, top, x.shape[-1]), routing.weights.astype(x.dtype))
        if features := cut.get("ff", ()):
            y = lax.psum(y, features)
        z = jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean()
        load = routing.load
        if batch:
            load, z, dropped = lax.psum(load, batch), lax.pmean(z, batch), lax.pmean(dropped, batch)
        return y.reshape(x.shape), load, z, dropped

    rising, falling = ("expert", "embed", "ff"), ("expert", "ff", "embed")
    y, load, z, dropped = activations.by_part(
        part, x_BxTxD, router_DxE, bias_E, weights["gate"], weights["up"], weights["down"],
        axes=[(BATCH,), (), (), rising, rising, falling], out=[(BATCH,), (), (), ()],
    )  # fmt: skip
    return y, {"load": load, "z": z, "dropped": dropped}


def _gathered(weights: Weights, cut: Cut, dtype: jnp.dtype) -> Weights:
    """In the compute dtype, and whole along ``embed``; the transpose reduces and scatters their gradient at once."""
    found = {name: array.astype(dtype) for name, array in weights.items()}
    if not (along := cut.get("embed", ())):
        return found
    axis = {"gate": 1, "up": 1, "down": 2}
    return {name: lax.all_gather(array, along, axis=axis[name], tiled=True) for name, array in found.items()}
