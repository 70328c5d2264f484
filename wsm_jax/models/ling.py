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

from wsm_jax.config import setting
from wsm_jax.config.model import TransformerFields
from wsm_jax.errors import UsageError
from wsm_jax.models import experts as experts_lib
from wsm_jax.models import family, rotary, transformer
from wsm_jax.models.cross_entropy import mean_cross_entropy
from wsm_jax.models.family import Family, Leaf, Leaves, Metrics, Params
from wsm_jax.models.layers import INIT_STD, Linear, RMSNorm, RotaryAttention, SwiGLU, normal


@dataclasses.dataclass
class LingFields(TransformerFields):
    """Shape and numerics of the family; the defaults are ``ling_tiny``."""

    NUMERICS = TransformerFields.NUMERICS | {"grouped", "buffer_factor", "drop_limit", "bias_rate", "z_loss"}
    UNSEEN = TransformerFields.UNSEEN | {
        "kv_heads", "head_dim", "experts_per_token", "groups", "groups_kept", "routed_scale", "rope_theta", "rotary_pct",
        "norm_eps",
    }  # fmt: skip

    family: str = setting("ling", "architecture, one of wsm_jax.models")
    layers: int = setting(4, "transformer blocks, the first of them dense", least=2)
    heads: int = setting(4, "attention heads")
    kv_heads: int = setting(2, "heads of keys and values, a divisor of heads", least=1)
    head_dim: int = setting(32, "features of a head", least=2)
    d_ff: int = setting(512, "width of the feed-forward layer of the first block", least=1)
    experts: int = setting(16, "routed experts of a layer", least=1)
    expert_ff: int = setting(192, "width of an expert, routed or shared", least=1)
    experts_per_token: int = setting(2, "routed experts that a token goes to", least=1)
    groups: int = setting(4, "equal groups of experts", least=1)
    groups_kept: int = setting(2, "groups that a token may choose from", least=1)
    routed_scale: float = setting(2.5, "sum of the weights of a token's routed experts")
    bias_rate: float = setting(1e-3, "what an update adds to, or takes from, the router's bias of an expert")
    z_loss: float = setting(3.5e-6, "weight of the mean square of log sum exp of the router's logits, in each layer")
    rope_theta: float = setting(10000.0, "base of the wavelengths of the rotations")
    rotary_pct: float = setting(0.5, "share of a head's features that positions rotate")
    norm_eps: float = setting(1e-6, "added to the mean square in norms")
    init_std: float = setting(INIT_STD, "standard deviation of the initial matrices")
    grouped: str = setting(
        experts_lib.AUTO,
        "product of rows with their experts: blocks (padded, for CPUs and GPUs) | ragged_dot (TPUs, GPUs) | "
        "dense (every expert for every token, to compare with) | auto: what suits the machine",
        before={experts_lib.AUTO: experts_lib.BLOCKS},
        open=True,
    )
    buffer_factor: float = setting(
        2.0, "mesh.expert > 1: room for rows from another device, as a multiple of an equal share; more are dropped"
    )
    drop_limit: float = setting(0.02, "share of dropped assignments in an update above which a run stops")

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return self.layers - 1


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

    def attended(self, x_BxTxD: jax.Array, rotation: rotary.Tables, segments: jax.Array | None) -> jax.Array:
        return x_BxTxD + self.attention(self.norm1(x_BxTxD), rotation, segments)


class DenseBlock(Block):
    """The first one: attention, then gated feed-forward."""

    def __init__(self, config: LingFields, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.mlp = SwiGLU(config.d_model, config.d_ff, config.init_std, rngs, std=config.init_std)

    def __call__(self, x_BxTxD: jax.Array, rotation: rotary.Tables, segments: jax.Array | None) -> jax.Array:
        x_BxTxD = self.attended(x_BxTxD, rotation, segments)
        return x_BxTxD + self.mlp(self.norm2(x_BxTxD))


class ExpertsBlock(Block):
    """All others: attention, then one shared expert and a few of the routed ones; with what is known of the routing."""

    def __init__(self, config: LingFields, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.router = Router(config, rngs)
        self.experts = Experts(config, rngs)
        self.shared = SwiGLU(config.d_model, config.expert_ff, config.init_std, rngs, std=config.init_std)
        self.config = config

    def __call__(
        self, x_BxTxD: jax.Array, rotation: rotary.Tables, segments: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        config = self.config
        x_BxTxD = self.attended(x_BxTxD, rotation, segments)
        h_BxTxD = self.norm2(x_BxTxD)
        weights = {name: getattr(self.experts, name)[...] for name in ("gate", "up", "down")}
        y_BxTxD, found = experts_lib.mixture(
            h_BxTxD, self.router.kernel[...], self.router.bias[...], weights, top=config.experts_per_token,
            groups=config.groups, kept=config.groups_kept, scale=config.routed_scale, grouped=config.grouped,
            factor=config.buffer_factor,
        )  # fmt: skip
        return x_BxTxD + y_BxTxD + self.shared(h_BxTxD), found


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
        routing: bool = False,
    ) -> tuple[jax.Array, ...]:
        """With ``routing`` a third result: what :func:`wsm_jax.models.experts.mixture` says, of each of its layers."""
        config, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        angles = rotary.frequencies(rotated(config), config.rope_theta)
        rotation = rotary.tables(rotary.places(tokens_BxT, positions), angles, dtype)
        x_BxTxD = transformer.look_up(self.token_embedding, tokens_BxT).astype(dtype)
        first = transformer.recomputed(lambda x, block: block(x, rotation, segments), config)
        x_BxTxD = first(x_BxTxD, self.first)
        x_BxTxD, found = transformer.scan_with_found(self.blocks, x_BxTxD, rotation, segments, config=config)
        x_BxTxD, output = self.final_norm(x_BxTxD), self.head.kernel[...].astype(dtype)
        return (x_BxTxD, output, found) if routing else (x_BxTxD, output)


def rotated(config: LingFields) -> int:
    """Features of a head that positions rotate."""
    return int(config.rotary_pct * config.head_dim)


def check(config: LingFields) -> None:
    """Raises UsageError where the fields cannot make a network, or not on this machine."""
    transformer.check(config)
    if config.layers < 2:
        raise UsageError(f"model.layers is {config.layers}; the first layer is dense, so it must be at least 2")
    for field, of in (("kv_heads", "heads"), ("groups", "experts")):
        if getattr(config, of) % max(getattr(config, field), 1):
            raise UsageError(f"model.{of}={getattr(config, of)} is not a multiple of model.{field}")
    if rotated(config) < 2 or rotated(config) % 2 or config.rotary_pct > 1:
        raise UsageError(
            f"model.rotary_pct={config.rotary_pct} rotates {rotated(config)} of the {config.head_dim} features of a "
            "head; it must be an even number"
        )
    transformer.check_positive(
        config, "kv_heads", "head_dim", "d_ff", "experts", "expert_ff", "experts_per_token", "groups", "groups_kept",
        "routed_scale", "rope_theta", "norm_eps", "init_std", "buffer_factor",
    )  # fmt: skip
    if config.groups_kept > config.groups:
        raise UsageError(f"model.groups_kept={config.groups_kept} is more than model.groups={config.groups}")
    if config.experts_per_token > (eligible := config.experts // config.groups * config.groups_kept):
        raise UsageError(
            f"model.experts_per_token={config.experts_per_token}, but model.groups_kept leaves {eligible} to choose from"
        )
    for field in ("bias_rate", "z_loss", "drop_limit"):
        if not 0 <= getattr(config, field) <= 1:
            raise UsageError(f"model.{field} is {getattr(config, field)}; it must be between 0 and 1")
    if config.grouped not in experts_lib.GROUPED:
        raise UsageError(f"model.grouped is {config.grouped!r}; choose {', '.join(experts_lib.GROUPED)}")
    experts_lib.chosen_product(config.grouped)


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

    moe = {"router/kernel": dataclasses.replace(matrix("embed", "expert"), muon=None), "router/bias": Leaf(("expert",))}
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
    muon = leaf.muon and tuple(axis + 1 for axis in leaf.muon)
    return Leaf(("layer", *leaf.axes), leaf.decayed, muon)


def active_parameters(config: LingFields, parameters: int) -> int:
    """Those that one token passes through: all but the routed experts that it is not sent to."""
    idle = config.experts - config.experts_per_token
    return parameters - config.moe_layers * idle * 3 * config.d_model * config.expert_ff


def flops_per_token(config: LingFields, parameters: int) -> float:
    """Training FLOPs a token, of the active parameters; the embedding is looked up and no more."""
    multiplied = active_parameters(config, parameters) - config.vocab_size * config.d_model
    return family.dense_flops_per_token(multiplied, config.layers, config.heads * config.head_dim, config.context)


def loss(built: Any, params: Params, inputs_BxT: jax.Array, targets_BxT: jax.Array) -> tuple[jax.Array, Metrics]:
    """Mean cross-entropy and the z-loss of all routers; what :func:`after_update` needs beside what is recorded."""
    x_BxTxD, kernel_DxV, found = built.hidden(params, inputs_BxT, routing=True)
    nats = mean_cross_entropy(x_BxTxD, kernel_DxV, targets_BxT, built.config.loss_blocks)
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


def ling_tiny() -> LingFields:
    """4.7M parameters of which a token passes 2.0M, with a 4,096-token vocabulary: trains on two CPU cores."""
    return LingFields()


def ling_small() -> LingFields:
    """About 50M parameters of which a token passes 17M, for one GPU."""
    return LingFields(
        layers=9, d_model=256, heads=4, kv_heads=2, head_dim=64, d_ff=768, experts=32, expert_ff=192, groups=4,
        experts_per_token=4, context=1024, vocab_size=16384, compute_dtype="bfloat16",
    )  # fmt: skip


def ling_mini() -> LingFields:
    """The paper's model: 16,255,643,392 parameters, 1,432,973,056 active."""
    return LingFields(
        layers=20, d_model=2048, heads=16, kv_heads=4, head_dim=128, d_ff=5120, experts=256, expert_ff=512,
        experts_per_token=8, groups=8, groups_kept=4, rope_theta=600000.0, init_std=0.006, context=8192,
        vocab_size=157184, compute_dtype="bfloat16", remat="full",
    )  # fmt: skip


family.register(
    Family(
        fields=LingFields,
        network=network,
        leaves=leaves,
        flops_per_token=flops_per_token,
        check=check,
        portable=portable,
        picked=picked,
        active_parameters=active_parameters,
        loss=loss,
        after_update=after_update,
        stops=stops,
        presets={"ling_tiny": ling_tiny, "ling_small": ling_small, "ling_mini": ling_mini},
    )
)
