"""GPT-NeoX, the architecture of Pythia: rotary positions on a share of each head, parallel residual, biases, own head.

The arithmetic is that of transformers' ``GPTNeoXForCausalLM``, so that its weights mean the same here. Its fused
projection is three here, so that each can be cut by heads.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from wsm_jax.config import setting
from wsm_jax.config.model import TransformerFields
from wsm_jax.errors import UsageError
from wsm_jax.models import family, public, rotary, transformer
from wsm_jax.models.cache import Cache, Past
from wsm_jax.models.family import Family, Leaf, Leaves
from wsm_jax.models.layers import GeluMLP, LayerNorm, Linear, RotaryAttention, normal


@dataclasses.dataclass
class NeoxFields(TransformerFields):
    """Shape and numerics of the family."""

    UNSEEN = TransformerFields.UNSEEN | {"rotary_pct", "rope_theta", "parallel_residual", "norm_eps"}

    family: str = setting("neox", "architecture, one of wsm_jax.models")
    rotary_pct: float = setting(0.25, "share of each head's features that positions rotate")
    rope_theta: float = setting(10000.0, "base of the wavelengths of the rotations")
    parallel_residual: bool = setting(
        True, "attention and feed-forward read the same stream; false = one after the other"
    )
    norm_eps: float = setting(1e-5, "added to the variance in norms")

    @property
    def rotated(self) -> int:
        """Features of a head that are rotated."""
        return int(self.d_model // self.heads * self.rotary_pct)


class Block(nnx.Module):
    """Attention and feed-forward, each with a norm of its own, side by side or one after the other."""

    def __init__(self, config: NeoxFields, rngs: nnx.Rngs):
        D, H, out_std = config.d_model, config.heads, transformer.out_std(config)
        self.norm1 = LayerNorm(D, config.norm_eps, bias=True)
        self.attention = RotaryAttention(D, H, H, D // H, config.attention, out_std, rngs, qkv_bias=True, out_bias=True)
        self.norm2 = LayerNorm(D, config.norm_eps, bias=True)
        self.mlp = GeluMLP(D, out_std, rngs, bias=True)
        self.parallel = config.parallel_residual

    def __call__(
        self, x_BxTxD: jax.Array, rotation: rotary.Tables, segments: jax.Array | None, past: Past | None
    ) -> tuple[jax.Array, Past | None]:
        attended, past = self.attention(self.norm1(x_BxTxD), rotation, segments, past)
        if self.parallel:
            return self.mlp(self.norm2(x_BxTxD)) + attended + x_BxTxD, past
        x_BxTxD = attended + x_BxTxD
        return self.mlp(self.norm2(x_BxTxD)) + x_BxTxD, past


class Neox(nnx.Module):
    """Decoder-only language model; ``__call__`` is a :class:`family.Forward`."""

    def __init__(self, config: NeoxFields, rngs: nnx.Rngs):
        self.config = config
        self.token_embedding = normal(rngs.params(), (config.vocab_size, config.d_model))
        self.blocks = transformer.stacked_blocks(functools.partial(Block, config), config.layers, rngs)
        self.final_norm = LayerNorm(config.d_model, config.norm_eps, bias=True)
        self.head = Linear(config.d_model, config.vocab_size, rngs)

    def __call__(
        self,
        tokens_BxT: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> Any:
        config, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        angles = rotary.frequencies(config.rotated, config.rope_theta)
        rotation = rotary.tables(rotary.places(tokens_BxT, positions), angles, dtype)
        x_BxTxD = transformer.look_up(self.token_embedding, tokens_BxT).astype(dtype)
        x_BxTxD, cache = transformer.through_layers(
            self.blocks, x_BxTxD, rotation, segments, cache=cache, config=config
        )
        return transformer.found(self.final_norm(x_BxTxD), self.head.kernel[...].astype(dtype), cache)


def check(config: NeoxFields) -> None:
    """Raises UsageError where the fields cannot make a network."""
    transformer.check(config)
    transformer.check_whole_heads(config)
    transformer.check_positive(config, "rope_theta", "norm_eps")
    width, rotated = config.d_model // config.heads, config.rotated
    if not 0 < rotated <= width or rotated % 2:
        raise UsageError(
            f"model.rotary_pct={config.rotary_pct} rotates {rotated} of the {width} features of a head; it must be an "
            f"even number from 2 to {width}"
        )


def leaves(config: NeoxFields) -> Leaves:
    """Every leaf, whatever the sizes are."""
    del config
    norm = Leaf(("layer", "embed"))
    matrix = functools.partial(Leaf, decayed=True, muon=(1, 2))
    found = {
        "blocks/norm1/scale": norm,
        "blocks/attention/q/kernel": matrix(("layer", "embed", "heads")),
        "blocks/attention/k/kernel": matrix(("layer", "embed", "kv")),
        "blocks/attention/v/kernel": matrix(("layer", "embed", "kv")),
        "blocks/attention/out/kernel": matrix(("layer", "heads", "embed")),
        "blocks/norm2/scale": norm,
        "blocks/mlp/up/kernel": matrix(("layer", "embed", "ff")),
        "blocks/mlp/down/kernel": matrix(("layer", "ff", "embed")),
        "final_norm/scale": Leaf(("embed",)),
    }
    return {
        "token_embedding": Leaf(("vocab", "embed"), decayed=True),
        **found,
        **family.biases(found),
        "head/kernel": Leaf(("embed", "vocab"), decayed=True),
    }


def flops_per_token(config: NeoxFields, parameters: int) -> float:
    """Training FLOPs a token; the embedding is looked up and no more."""
    looked_up = config.vocab_size * config.d_model
    return family.dense_flops_per_token(parameters - looked_up, config.layers, config.d_model, config.context)


def network(config: NeoxFields) -> tuple[family.Init, family.Forward]:
    """``init`` and ``forward`` on plain nested dictionaries."""
    return transformer.as_functions(functools.partial(Neox, config))


def pythia(layers: int, d_model: int, heads: int, vocab_size: int = 50304) -> functools.partial[NeoxFields]:
    """A preset of the Pythia suite (Biderman et al. 2023), as its configurations on the Hub have it."""
    shape = {"layers": layers, "d_model": d_model, "heads": heads, "vocab_size": vocab_size}
    return functools.partial(NeoxFields, **shape, context=2048, compute_dtype="bfloat16")


PRESETS = {
    "pythia_14m": pythia(6, 128, 4),
    "pythia_70m": pythia(6, 512, 8),
    "pythia_160m": pythia(12, 768, 12),
    "pythia_410m": pythia(24, 1024, 16),
    "pythia_1b": pythia(16, 2048, 8),
    "pythia_1_4b": pythia(24, 2048, 16),
    "pythia_2_8b": pythia(32, 2560, 32),
    "pythia_6_9b": pythia(32, 4096, 32, 50432),
    "pythia_12b": pythia(36, 5120, 40, 50688),
}


# --- as EleutherAI publishes it ---------------------------------------------------------------------------------------


def _tensors(config: NeoxFields) -> list[public.Tensor]:
    """There queries, keys and values are one projection, head after head."""
    block = f"gpt_neox.layers.{public.LAYER}."
    fused = (f"blocks/attention/{name}" for name in "qkv")
    return [
        *public.plain("gpt_neox.embed_in.weight", "token_embedding"),
        *public.norm(f"{block}input_layernorm", "blocks/norm1"),
        *public.linear(f"{block}attention.query_key_value", *fused, heads=config.heads),
        *public.linear(f"{block}attention.dense", "blocks/attention/out"),
        *public.norm(f"{block}post_attention_layernorm", "blocks/norm2"),
        *public.linear(f"{block}mlp.dense_h_to_4h", "blocks/mlp/up"),
        *public.linear(f"{block}mlp.dense_4h_to_h", "blocks/mlp/down"),
        *public.norm("gpt_neox.final_layer_norm", "final_norm"),
        public.Tensor("embed_out.weight", ("head/kernel",), turned=True),
    ]


def _read(settings: public.Settings) -> NeoxFields:
    width, rope = settings.number("hidden_size"), settings.rope("rotary_emb_base", "rotary_pct", 0.25)
    settings.only("intermediate_size", 4 * width)
    settings.only("hidden_act", "gelu")
    settings.only("attention_bias", True)
    settings.only("tie_word_embeddings", False)
    settings.full_attention()
    if rope["rope_type"] != "default":
        raise settings.refuse("rope_type", rope["rope_type"], "default")
    return NeoxFields(
        layers=settings.number("num_hidden_layers"),
        d_model=width,
        heads=settings.number("num_attention_heads"),
        context=settings.number("max_position_embeddings"),
        vocab_size=settings.number("vocab_size"),
        rotary_pct=float(rope["partial_rotary_factor"]),
        rope_theta=float(rope["rope_theta"]),
        parallel_residual=bool(settings.get("use_parallel_residual", True)),
        norm_eps=float(settings.get("layer_norm_eps", 1e-5)),
    )


def _write(config: NeoxFields) -> dict[str, object]:
    return {
        "num_hidden_layers": config.layers,
        "hidden_size": config.d_model,
        "intermediate_size": 4 * config.d_model,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.context,
        "rotary_pct": config.rotary_pct,
        "rotary_emb_base": config.rope_theta,
        "use_parallel_residual": config.parallel_residual,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": "gelu",
        "attention_bias": True,
        "tie_word_embeddings": False,
    }


PUBLIC = public.Public(
    architecture="GPTNeoXForCausalLM",
    model_type="gpt_neox",
    prefix="gpt_neox.",
    tensors=_tensors,
    read=_read,
    write=_write,
    buffers=r"(gpt_neox\.)?(layers\.\d+\.attention\.)?(bias|masked_bias|rotary_emb\.inv_freq)",
    aliases={"lm_head.weight": "embed_out.weight"},
)

family.register(
    Family(
        fields=NeoxFields,
        network=network,
        leaves=leaves,
        flops_per_token=flops_per_token,
        check=check,
        portable=transformer.portable,
        picked=transformer.picked,
        presets=PRESETS,
        public=(PUBLIC,),
    )
)
