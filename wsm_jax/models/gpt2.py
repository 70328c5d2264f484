"""GPT-2 as nanoGPT trains it: learned positions, pre-norm, no biases, tied embeddings.

The modules define and initialise the network; training runs on the plain nested dictionary of their arrays. All blocks
live in one stacked pytree (leading axis: layer) and run in one ``lax.scan``, so compile time does not grow with depth.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from wsm_jax.config import ModelConfig
from wsm_jax.errors import UsageError
from wsm_jax.models import family, presets
from wsm_jax.models.attention import IMPLEMENTATIONS
from wsm_jax.models.family import Family, Leaf, Leaves
from wsm_jax.models.layers import INIT_STD, CausalAttention, GeluMLP, LayerNorm, normal
from wsm_jax.parallel.activations import spread
from wsm_jax.parallel.sharding import BATCH


class Block(nnx.Module):
    """Pre-norm transformer block: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        # Residual projections start smaller so that the stream's variance does not grow with depth (GPT-2).
        out_std = INIT_STD / (2 * config.layers) ** 0.5
        self.norm1 = LayerNorm(config.d_model)
        self.attention = CausalAttention(config.d_model, config.heads, config.attention, out_std, rngs)
        self.norm2 = LayerNorm(config.d_model)
        self.mlp = GeluMLP(config.d_model, out_std, rngs)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        x_BxTxD = x_BxTxD + self.attention(self.norm1(x_BxTxD))
        return x_BxTxD + self.mlp(self.norm2(x_BxTxD))


class GPT2(nnx.Module):
    """Decoder-only language model; ``__call__`` maps tokens [B, T] to its last hidden states [B, T, D] and the output
    projection [D, V], both of the compute dtype. Their product, the logits, is taken where the loss wants it."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.token_embedding = normal(rngs.params(), (config.vocab_size, config.d_model))
        self.position_embedding = normal(rngs.params(), (config.context, config.d_model))
        keys = jax.random.split(rngs.params(), config.layers)
        self.blocks = nnx.vmap(lambda key: Block(config, nnx.Rngs(params=key)))(keys)
        self.final_norm = LayerNorm(config.d_model)

    def __call__(self, tokens_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
        dtype = jnp.dtype(self.config.compute_dtype)
        T = tokens_BxT.shape[1]
        x_BxTxD = spread(self.token_embedding[...], "vocab")[tokens_BxT] + self.position_embedding[...][None, :T]
        graphdef, stacked = nnx.split(self.blocks)

        def layer(x_BxTxD: jax.Array, block_state: nnx.State) -> tuple[jax.Array, None]:
            return spread(nnx.merge(graphdef, block_state)(x_BxTxD), BATCH), None

        if self.config.remat:
            layer = jax.checkpoint(layer, prevent_cse=False)
        x_BxTxD, _ = jax.lax.scan(layer, spread(x_BxTxD.astype(dtype), BATCH), stacked, unroll=self.config.scan_unroll)
        return self.final_norm(x_BxTxD), self.token_embedding[...].astype(dtype).T


def check(config: ModelConfig) -> None:
    """Raises UsageError where the fields cannot make a network."""
    for field in ("layers", "d_model", "heads", "scan_unroll"):
        if getattr(config, field) < 1:
            raise UsageError(f"model.{field} is {getattr(config, field)}; it must be at least 1")
    if config.d_model % config.heads:
        raise UsageError(f"model.d_model={config.d_model} is not a multiple of model.heads={config.heads}")
    if config.attention not in IMPLEMENTATIONS:
        raise UsageError(f"model.attention is {config.attention!r}; choose {', '.join(IMPLEMENTATIONS)}")
    if config.attention == "cudnn" and jax.default_backend() != "gpu":
        raise UsageError(f"model.attention=cudnn needs an NVIDIA GPU, this is {jax.default_backend()}; choose xla")
    if config.attention == "cudnn" and config.compute_dtype != "bfloat16":
        raise UsageError(f"model.attention=cudnn needs compute_dtype=bfloat16, not {config.compute_dtype}")


def portable(config: ModelConfig) -> ModelConfig:
    """The same function where there is no NVIDIA GPU."""
    if config.attention == "cudnn" and jax.default_backend() != "gpu":
        return dataclasses.replace(config, attention="xla")
    return config


def leaves(config: ModelConfig) -> Leaves:
    """Every leaf, whatever the sizes are; the fused projection counts queries, keys and values along ``heads``."""
    del config
    norm = Leaf(("layer", "embed"))
    matrix = functools.partial(Leaf, decayed=True, muon=(1, 2))
    return {
        "token_embedding": Leaf(("vocab", "embed"), decayed=True),
        "position_embedding": Leaf(("position", "embed"), decayed=True),
        "blocks/norm1/scale": norm,
        "blocks/attention/qkv/kernel": matrix(("layer", "embed", "heads")),
        "blocks/attention/out/kernel": matrix(("layer", "heads", "embed")),
        "blocks/norm2/scale": norm,
        "blocks/mlp/up/kernel": matrix(("layer", "embed", "ff")),
        "blocks/mlp/down/kernel": matrix(("layer", "ff", "embed")),
        "final_norm/scale": Leaf(("embed",)),
    }


def flops_per_token(config: ModelConfig, parameters: int) -> float:
    """Training FLOPs a token; with tied embeddings only the positions are looked up and no more."""
    looked_up = config.context * config.d_model
    return family.dense_flops_per_token(parameters - looked_up, config.layers, config.d_model, config.context)


def network(config: ModelConfig) -> tuple[family.Init, family.Forward]:
    """``init`` and ``forward`` on plain nested dictionaries: ``jax.jit`` on these dispatches about nine times faster on
    CPU than ``nnx.jit`` on a module (measured)."""
    abstract = nnx.eval_shape(lambda: GPT2(config, nnx.Rngs(params=0)))
    graphdef, abstract_state = nnx.split(abstract)

    def init(key: jax.Array) -> family.Params:
        return nnx.to_pure_dict(nnx.state(GPT2(config, nnx.Rngs(params=key)), nnx.Param))

    def forward(params: family.Params, tokens_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = jax.tree.map(lambda x: x, abstract_state)  # a fresh container: replacing must not touch the shared one
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)(tokens_BxT)

    return init, forward


family.register(
    Family(
        fields=ModelConfig,
        network=network,
        leaves=leaves,
        flops_per_token=flops_per_token,
        check=check,
        portable=portable,
        presets=presets.PRESETS,
    )
)
