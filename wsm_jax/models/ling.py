"""Ling's mixture of experts (inclusionAI 2025; the model of the WSM paper): grouped heads with normed queries and keys,
positions on a part of each head, a first dense layer, then layers of one shared and many routed experts.

The router is that of DeepSeek-V3: sigmoid scores, choice limited to groups, and a bias that balances the experts'
loads without a loss. Its bias is a parameter like any other on disk and in a merge, but has no gradient:
:func:`after_update` moves it. Prediction of several tokens is left out.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from wsm_jax.errors import UsageError
from wsm_jax.models import experts as experts_lib
from wsm_jax.models import family, ling_fields, ling_public, rotary, transformer
from wsm_jax.models.cache import Cache, Past
from wsm_jax.models.cross_entropy import mean_cross_entropy, token_cross_entropy
from wsm_jax.models.family import Family, Leaf, Leaves, Metrics, Params
from wsm_jax.models.layers import Linear, RMSNorm, RotaryAttention, SwiGLU, normal
from wsm_jax.models.ling_fields import LingFields


class Experts(nnx.Module):
    """The matrices of all routed experts of a layer."""

    def __init__(self, config: LingFields, rngs: nnx.Rngs):
        E, D, F = config.experts, config.d_model, config.expert_ff
        self.gate = normal(rngs.params(), (E, D, F), config.init_std)
        self.up = normal(rngs.params(), (E, D, F), config.init_std)
        self.down = normal(rngs.params(), (E, F, D), config.init_std)


class Router(nnx.Module):
    """Scores every expert; the bias, moved by :func:`after_update`, changes which are chosen."""

    def __init__(self, config: LingFields, rngs: nnx.Rngs):
        self.kernel = normal(rngs.params(), (config.d_model, config.experts), config.init_std)
        self.bias = nnx.Param(jnp.zeros((config.experts,), jnp.float32))


class Block(nnx.Module):
    """What both kinds of blocks begin with: a norm and attention, added to the residual stream; and the next norm."""

    def __init__(self, config: LingFields, rngs: nnx.Rngs):
        D, std = config.d_model, config.init_std
        self.norm1 = RMSNorm(D, config.norm_eps)
        self.attention = RotaryAttention(
            D, config.heads, config.kv_heads, config.head_dim, config.attention, std, rngs,
            qk_norm=config.norm_eps, std=std,
        )  # fmt: skip
        self.norm2 = RMSNorm(D, config.norm_eps)

    def attended(self, x_BxTxD: jax.Array, *shared: Any) -> tuple[jax.Array, Past | None]:
        attended, past = self.attention(self.norm1(x_BxTxD), *shared)
        return x_BxTxD + attended, past


class DenseBlock(Block):
    """The first one: attention, then gated feed-forward."""

    def __init__(self, config: LingFields, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.mlp = SwiGLU(config.d_model, config.d_ff, config.init_std, rngs, std=config.init_std)

    def __call__(
        self, x_BxTxD: jax.Array, rotation: rotary.Tables, segments: jax.Array | None, past: Past | None
    ) -> tuple[jax.Array, Past | None]:
        x_BxTxD, past = self.attended(x_BxTxD, rotation, segments, past)
        return x_BxTxD + self.mlp(self.norm2(x_BxTxD)), past


class ExpertsBlock(Block):
    """All others: attention, then one shared expert and a few of the routed ones; with what is known of the routing."""

    def __init__(self, config: LingFields, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.router = Router(config, rngs)
        self.experts = Experts(config, rngs)
        self.shared = SwiGLU(config.d_model, config.expert_ff, config.init_std, rngs, std=config.init_std)
        self.config = config

    def __call__(
        self, x_BxTxD: jax.Array, rotation: rotary.Tables, segments: jax.Array | None, past: Past | None
    ) -> tuple[jax.Array, Past | None, Metrics]:
        config = self.config
        x_BxTxD, past = self.attended(x_BxTxD, rotation, segments, past)
        h_BxTxD = self.norm2(x_BxTxD)
        weights = {name: getattr(self.experts, name)[...] for name in ("gate", "up", "down")}
        y_BxTxD, found = experts_lib.mixture(
            h_BxTxD, self.router.kernel[...], self.router.bias[...], weights, top=config.experts_per_token,
            groups=config.groups, kept=config.groups_kept, scale=config.routed_scale, grouped=config.grouped,
            factor=config.buffer_factor,
        )  # fmt: skip
        return x_BxTxD + y_BxTxD + self.shared(h_BxTxD), past, found


class Ling(nnx.Module):
    """Decoder-only language model; ``__call__`` is a :class:`family.Forward`."""

    def __init__(self, config: LingFields, rngs: nnx.Rngs):
        self.config = config
        D, V, std = config.d_model, config.vocab_size, config.init_std
        self.token_embedding = normal(rngs.params(), (V, D), std)
        self.first = DenseBlock(config, rngs)
        self.blocks = transformer.stacked_blocks(functools.partial(ExpertsBlock, config), config.moe_layers, rngs)
        self.final_norm = RMSNorm(D, config.norm_eps)
        self.head = Linear(D, V, rngs, std)

    def __call__(
        self,
        tokens_BxT: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        cache: Cache | None = None,
        routing: bool = False,
    ) -> Any:
        """With ``routing`` a third result: what :func:`wsm_jax.models.experts.mixture` says, of each of its layers."""
        config, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        angles = rotary.frequencies(ling_fields.rotated(config), config.rope_theta)
        rotation = rotary.tables(rotary.places(tokens_BxT, positions), angles, dtype)
        x_BxTxD = transformer.look_up(self.token_embedding, tokens_BxT).astype(dtype)
        found: Metrics = {}
        if cache is None:
            graphdef, first = nnx.split(self.first)
            block = transformer.recomputed(
                lambda x, state: nnx.merge(graphdef, state)(x, rotation, segments, None)[0], config
            )
            x_BxTxD = block(x_BxTxD, first)
            x_BxTxD, found = transformer.scan_with_found(self.blocks, x_BxTxD, rotation, segments, config=config)
        else:
            x_BxTxD, past = self.first(x_BxTxD, rotation, segments, cache.layer(0))
            assert past is not None  # it was given one
            x_BxTxD, cache = transformer.through_layers(
                self.blocks, x_BxTxD, rotation, segments, cache=cache, config=config, before=[past]
            )
        x_BxTxD, output = self.final_norm(x_BxTxD), self.head.kernel[...].astype(dtype)
        return (x_BxTxD, output, found) if routing else transformer.found(x_BxTxD, output, cache)


def leaves(config: LingFields) -> Leaves:
    """Every leaf, whatever the sizes are."""
    norm, vector = Leaf(("embed",)), Leaf(("head_dim",))

    def matrix(*axes: str) -> Leaf:
        return Leaf(axes, decayed=True, muon=(len(axes) - 2, len(axes) - 1))

    def gated(name: str, *before: str) -> dict[str, Leaf]:
        kernel = "" if before else "/kernel"
        shapes = {"gate": ("embed", "ff"), "up": ("embed", "ff"), "down": ("ff", "embed")}
        return {f"{name}/{part}{kernel}": matrix(*before, *axes) for part, axes in shapes.items()}

    def block(**own: Leaf) -> dict[str, Leaf]:
        projections = {"q": ("embed", "heads"), "k": ("embed", "kv"), "v": ("embed", "kv"), "out": ("heads", "embed")}
        return {
            "norm1/scale": norm,
            "norm2/scale": norm,
            **{f"attention/{name}/kernel": matrix(*axes) for name, axes in projections.items()},
            **{f"attention/{name}_norm/scale": vector for name in "qk"},
            **own,
        }

    scores = dataclasses.replace(matrix("embed", "expert"), muon=None)
    moe = {"router/kernel": scores, "router/bias": Leaf(("expert",), has_gradient=False)}
    layers = block(**moe, **gated("experts", "expert"), **gated("shared"))
    return {
        "token_embedding": Leaf(("vocab", "embed"), decayed=True),
        **{f"first/{path}": leaf for path, leaf in block(**gated("mlp")).items()},
        **{f"blocks/{path}": _stacked(leaf) for path, leaf in layers.items()},
        "final_norm/scale": norm,
        "head/kernel": Leaf(("embed", "vocab"), decayed=True),
    }


def _stacked(leaf: Leaf) -> Leaf:
    """The same of all layers, one after the other."""
    rank = len(leaf.axes)
    return dataclasses.replace(leaf, axes=("layer", *leaf.axes), muon=leaf.muon and (rank - 1, rank))


def active_parameters(config: LingFields, parameters: int) -> int:
    """Those that one token passes through: all but the routed experts that it is not sent to."""
    idle = config.experts - config.experts_per_token
    return parameters - config.moe_layers * idle * 3 * config.d_model * config.expert_ff


def flops_per_token(config: LingFields, parameters: int) -> float:
    """Training FLOPs a token, of the active parameters; the embedding is looked up and no more."""
    multiplied = active_parameters(config, parameters) - config.vocab_size * config.d_model
    return family.dense_flops_per_token(multiplied, config.layers, config.heads * config.head_dim, config.context)


def loss(
    built: Any,
    params: Params,
    inputs_BxT: jax.Array,
    targets_BxT: jax.Array,
    weights_BxT: jax.Array | None = None,
    **packed: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """Mean cross-entropy and the z-loss of all routers; what :func:`after_update` needs beside what is recorded."""
    x_BxTxD, kernel_DxV, found = built.hidden(params, inputs_BxT, routing=True, **packed)
    if weights_BxT is None:
        nats = mean_cross_entropy(x_BxTxD, kernel_DxV, targets_BxT, built.config.loss_blocks)
    else:
        nats = (token_cross_entropy(x_BxTxD, kernel_DxV, targets_BxT, built.config.loss_blocks) * weights_BxT).mean()
    z = found["z"].sum()
    more = {"lm_loss": nats, "router_z": z, "dropped": found["dropped"].mean(), "load": found["load"]}
    return nats + built.config.z_loss * z, more


def after_update(config: LingFields, params: Params, found: Metrics) -> tuple[Params, Metrics]:
    """Moves every router's bias towards equal loads (Wang et al. 2024): against the sign of each expert's excess.

    The moves of a layer are centred, so that its bias keeps its mean, which changes nothing that is chosen.

    Args:
      config: says by how much.
      params: after the update by the gradient, in which the bias has no part.
      found: as :func:`loss` gives it; ``load`` is float32 [layers, E].

    Returns:
      the parameters, and scalars to record: the load is told as its largest and smallest departure from the mean of its
      layer, as a share of it, averaged over layers.
    """
    load = found["load"]
    mean = load.mean(axis=1, keepdims=True)
    move = jnp.sign(mean - load)
    router = params["blocks"]["router"]
    bias = router["bias"] + config.bias_rate * (move - move.mean(axis=1, keepdims=True))
    moved = {**params, "blocks": {**params["blocks"], "router": {**router, "bias": bias}}}
    departure = (load - mean) / mean
    seen = {"max_violation": departure.max(axis=1).mean(), "min_violation": -departure.min(axis=1).mean()}
    return moved, {**{name: value for name, value in found.items() if name != "load"}, **seen}


def stops(config: LingFields, metrics: Mapping[str, float]) -> str:
    """Why a run must not go on: more assignments were dropped than may be."""
    if metrics["dropped"] <= config.drop_limit:
        return ""
    return (
        f"{metrics['dropped']:.1%} of the assignments to experts were dropped, more than "
        f"model.drop_limit={config.drop_limit}; raise model.buffer_factor={config.buffer_factor}, or lower mesh.expert"
    )


def portable(config: LingFields) -> LingFields:
    """The same function where the kernels that were asked for do not run."""
    config = transformer.portable(config)
    try:
        experts_lib.chosen_product(config.grouped)
    except UsageError:
        return dataclasses.replace(config, grouped=experts_lib.BLOCKS)
    return config


def picked(config: LingFields, rows: int) -> LingFields:
    """``config`` with what it leaves open decided; an implementation of :class:`family.Family`'s."""
    config = transformer.picked(config, rows)
    return dataclasses.replace(config, grouped=experts_lib.chosen_product(config.grouped))


def network(config: LingFields) -> tuple[family.Init, family.Forward]:
    """``init`` and ``forward`` on plain nested dictionaries."""
    return transformer.as_functions(functools.partial(Ling, config))


family.register(
    Family(
        fields=LingFields,
        network=network,
        leaves=leaves,
        flops_per_token=flops_per_token,
        check=ling_fields.check,
        portable=portable,
        picked=picked,
        active_parameters=active_parameters,
        loss=loss,
        after_update=after_update,
        stops=stops,
        presets=ling_fields.PRESETS,
        public=(ling_public.PUBLIC,),
    )
)
