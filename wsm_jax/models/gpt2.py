"""GPT-2: learned positions, pre-norm, tied embeddings; as nanoGPT trains it, or as OpenAI did (biases, ``gelu_new``).

The modules define and initialise the network; training runs on the plain nested dictionary of their arrays. All blocks
live in one stacked pytree (leading axis: layer) and run in one ``lax.scan``, so compile time does not grow with depth.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from wsm_jax.config import ModelConfig
from wsm_jax.errors import UsageError
from wsm_jax.models import family, presets, public, transformer
from wsm_jax.models.cache import Cache, Past
from wsm_jax.models.family import Family, Leaf, Leaves
from wsm_jax.models.layers import ACTIVATIONS, CausalAttention, GeluMLP, LayerNorm, normal


class Block(nnx.Module):
    """Pre-norm transformer block: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, bias, out_std = config.d_model, config.bias, transformer.out_std(config)
        self.norm1 = LayerNorm(D, bias=bias)
        self.attention = CausalAttention(D, config.heads, config.attention, out_std, rngs, bias)
        self.norm2 = LayerNorm(D, bias=bias)
        self.mlp = GeluMLP(D, out_std, rngs, bias=bias, activation=config.activation)

    def __call__(
        self, x_BxTxD: jax.Array, segments: jax.Array | None, past: Past | None
    ) -> tuple[jax.Array, Past | None]:
        attended, past = self.attention(self.norm1(x_BxTxD), segments, past)
        x_BxTxD = x_BxTxD + attended
        return x_BxTxD + self.mlp(self.norm2(x_BxTxD)), past


class GPT2(nnx.Module):
    """Decoder-only language model; ``__call__`` maps tokens [B, T] to its last hidden states [B, T, D] and the output
    projection [D, V], both of the compute dtype. Their product, the logits, is taken where the loss wants it."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.token_embedding = normal(rngs.params(), (config.vocab_size, config.d_model))
        self.position_embedding = normal(rngs.params(), (config.context, config.d_model))
        self.blocks = transformer.stacked_blocks(functools.partial(Block, config), config.layers, rngs)
        self.final_norm = LayerNorm(config.d_model, bias=config.bias)

    def __call__(
        self,
        tokens_BxT: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> Any:
        dtype, table = jnp.dtype(self.config.compute_dtype), self.position_embedding[...]
        places = table[None, : tokens_BxT.shape[1]] if positions is None else table[positions]
        x_BxTxD = (transformer.look_up(self.token_embedding, tokens_BxT) + places).astype(dtype)
        x_BxTxD, cache = transformer.through_layers(self.blocks, x_BxTxD, segments, cache=cache, config=self.config)
        return transformer.found(self.final_norm(x_BxTxD), self.token_embedding[...].astype(dtype).T, cache)


def check(config: ModelConfig) -> None:
    """Raises UsageError where the fields cannot make a network."""
    transformer.check(config)
    transformer.check_whole_heads(config)
    if config.activation not in ACTIVATIONS:
        raise UsageError(f"model.activation is {config.activation!r}; choose {', '.join(ACTIVATIONS)}")


def leaves(config: ModelConfig) -> Leaves:
    """Every leaf, whatever the sizes are; the fused projection counts queries, keys and values along ``heads``."""
    norm = Leaf(("layer", "embed"))
    matrix = functools.partial(Leaf, decayed=True, muon=(1, 2))
    found = {
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
    return {**found, **family.biases(found)} if config.bias else found


def flops_per_token(config: ModelConfig, parameters: int) -> float:
    """Training FLOPs a token; with tied embeddings only the positions are looked up and no more."""
    looked_up = config.context * config.d_model
    return family.dense_flops_per_token(parameters - looked_up, config.layers, config.d_model, config.context)


def network(config: ModelConfig) -> tuple[family.Init, family.Forward]:
    """``init`` and ``forward`` on plain nested dictionaries."""
    return transformer.as_functions(functools.partial(GPT2, config))


# --- as OpenAI published it -------------------------------------------------------------------------------------------

_GELUS = {"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu"}  # there -> here


def _tensors(config: ModelConfig) -> list[public.Tensor]:
    """Its matrices are [in, out] there too, and the fused projection has the same columns."""
    del config
    block = f"transformer.h.{public.LAYER}."
    matrices = {"attention/qkv": "attn.c_attn", "attention/out": "attn.c_proj", "mlp/up": "mlp.c_fc"}
    matrices["mlp/down"] = "mlp.c_proj"
    return [
        *public.plain("transformer.wte.weight", "token_embedding"),
        *public.plain("transformer.wpe.weight", "position_embedding"),
        *public.norm(f"{block}ln_1", "blocks/norm1"),
        *public.norm(f"{block}ln_2", "blocks/norm2"),
        *(t for ours, name in matrices.items() for t in public.linear(block + name, f"blocks/{ours}", turned=False)),
        *public.norm("transformer.ln_f", "final_norm"),
    ]


def _read(settings: public.Settings) -> ModelConfig:
    width, epsilon = settings.number("n_embd", "hidden_size"), settings.get("layer_norm_epsilon", 1e-5)
    settings.only("n_inner", 4 * width)
    settings.only("scale_attn_weights", True)
    settings.only("tie_word_embeddings", True)
    for field in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        settings.only(field, False)
    if epsilon != 1e-5:
        raise settings.refuse("layer_norm_epsilon", epsilon, "1e-05")
    activation = settings.only("activation_function", *_GELUS)
    return ModelConfig(
        layers=settings.number("n_layer", "num_hidden_layers"),
        d_model=width,
        heads=settings.number("n_head", "num_attention_heads"),
        context=settings.number("n_positions", "max_position_embeddings"),
        vocab_size=settings.number("vocab_size"),
        bias=True,
        activation=_GELUS[activation],
    )


def _write(config: ModelConfig) -> dict[str, object]:
    return {
        "n_layer": config.layers,
        "n_embd": config.d_model,
        "n_head": config.heads,
        "n_positions": config.context,
        "n_ctx": config.context,
        "activation_function": config.activation,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


PUBLIC = public.Public(
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    prefix="transformer.",
    tensors=_tensors,
    read=_read,
    write=_write,
    buffers=r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",
    copies={"lm_head.weight": "transformer.wte.weight"},
    fills=True,
    bounded=True,
)

# --- as nanoGPT saves it ----------------------------------------------------------------------------------------------

_ARGUMENTS = {"n_layer": "layers", "n_embd": "d_model", "n_head": "heads", "block_size": "context"}  # there -> here


def _nanogpt_tensors(config: ModelConfig) -> list[public.Tensor]:
    """The same names; its matrices are those of torch's Linear."""
    return [dataclasses.replace(each, turned=each.leaves[0].endswith("/kernel")) for each in _tensors(config)]


def _read_nanogpt(settings: public.Settings) -> ModelConfig:
    shape = {here: settings.number(there) for there, here in _ARGUMENTS.items()}
    return ModelConfig(**shape, vocab_size=settings.number("vocab_size"), bias=bool(settings.need("bias")))


NANOGPT = public.Public(
    architecture="nanoGPT",
    model_type="nanogpt",
    prefix="transformer.",
    tensors=_nanogpt_tensors,
    read=_read_nanogpt,
    write=lambda config: None,  # transformers loads GPT2LMHeadModel
    buffers=r"transformer\.h\.\d+\.attn\.bias",
    copies={"lm_head.weight": "transformer.wte.weight"},
    bounded=True,
)

family.register(
    Family(
        fields=ModelConfig,
        network=network,
        leaves=leaves,
        flops_per_token=flops_per_token,
        check=check,
        portable=transformer.portable,
        picked=transformer.picked,
        presets=presets.PRESETS,
        public=(PUBLIC, NANOGPT),
    )
)
