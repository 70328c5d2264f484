"""GPT-2 as nanoGPT trains it: learned positions, pre-norm, no biases, tied embeddings.

The modules define and initialise the network; training runs on the plain nested dictionary of their arrays
(``wsm_jax.models.model``). All blocks live in one stacked pytree (leading axis: layer) and run in one ``lax.scan``, so
compile time does not grow with depth.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from wsm_jax.config import ModelConfig
from wsm_jax.models.layers import INIT_STD, CausalAttention, GeluMLP, LayerNorm, normal


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
        x_BxTxD = self.token_embedding[...][tokens_BxT] + self.position_embedding[...][None, :T]
        graphdef, stacked = nnx.split(self.blocks)

        def layer(x_BxTxD: jax.Array, block_state: nnx.State) -> tuple[jax.Array, None]:
            return nnx.merge(graphdef, block_state)(x_BxTxD), None

        if self.config.remat:
            layer = jax.checkpoint(layer, prevent_cse=False)
        x_BxTxD, _ = jax.lax.scan(layer, x_BxTxD.astype(dtype), stacked, unroll=self.config.scan_unroll)
        return self.final_norm(x_BxTxD), self.token_embedding[...].astype(dtype).T
