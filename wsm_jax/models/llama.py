"""Llama and what is built like it (SmolLM, Qwen2, Qwen3): RMSNorm, rotary positions, SwiGLU, grouped heads of keys.

The arithmetic is that of transformers' ``LlamaForCausalLM``, ``Qwen2ForCausalLM`` (``qkv_bias``),
``Qwen3ForCausalLM`` (``qk_norm``) and ``SmolLM3ForCausalLM`` (``rope_skip``), so that their weights mean the same here.
"""

import dataclasses
import functools
from collections.abc import Callable
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
from wsm_jax.models.layers import Linear, RMSNorm, RotaryAttention, SwiGLU, normal


@dataclasses.dataclass
class LlamaFields(TransformerFields):
    """Shape and numerics of the family."""

    UNSEEN = TransformerFields.UNSEEN | {
        "kv_heads", "head_dim", "rope_theta", "rope_factor", "rope_low", "rope_high", "rope_context", "rope_skip",
        "norm_eps",
    }  # fmt: skip

    family: str = setting("llama", "architecture, one of wsm_jax.models")
    heads: int = setting(4, "attention heads")
    kv_heads: int = setting(0, "heads of keys and values, a divisor of heads; 0 = as many")
    head_dim: int = setting(0, "features of a head; 0 = d_model / heads")
    d_ff: int = setting(0, "width of the feed-forward layer; 0 = 8/3 of d_model, rounded up to a multiple of 64")
    tied: bool = setting(False, "the embedding is the output projection too")
    qkv_bias: bool = setting(False, "biases of queries, keys and values (Qwen2)")
    qk_norm: bool = setting(False, "RMSNorm over each head's queries and keys (Qwen3)")
    rope_theta: float = setting(10000.0, "base of the wavelengths of the rotations")
    rope_factor: float = setting(1.0, "Llama 3.1: how much longer the slow rotations become; 1 = none")
    rope_low: float = setting(1.0, "rope_factor counts whole for rotations of fewer turns in rope_context tokens")
    rope_high: float = setting(4.0, "rope_factor does not count for rotations of more turns in rope_context tokens")
    rope_context: int = setting(8192, "context before rope_factor", least=1)
    rope_skip: int = setting(0, "one layer in so many has no rotary positions (SmolLM3: 4); 0 = none", later=True)
    norm_eps: float = setting(1e-5, "added to the mean square in norms")

    @property
    def head_width(self) -> int:
        """Features of a head."""
        return self.head_dim or self.d_model // self.heads


def rotating(config: LlamaFields) -> list[int]:
    """1 for each layer whose queries and keys are turned by position, 0 for each that has no positions."""
    return [int(not config.rope_skip or i % config.rope_skip != 0) for i in range(1, config.layers + 1)]


class Block(nnx.Module):
    """Attention, then gated feed-forward, each added to the residual stream."""

    def __init__(self, config: LlamaFields, rngs: nnx.Rngs):
        D, H, out_std = config.d_model, config.heads, transformer.out_std(config)
        self.norm1 = RMSNorm(D, config.norm_eps)
        self.attention = RotaryAttention(
            D, H, config.kv_heads or H, config.head_width, config.attention, out_std, rngs,
            qkv_bias=config.qkv_bias, qk_norm=config.norm_eps if config.qk_norm else None,
        )  # fmt: skip
        self.norm2 = RMSNorm(D, config.norm_eps)
        self.mlp = SwiGLU(D, config.d_ff or -(-8 * D // (3 * 64)) * 64, out_std, rngs)

    def __call__(
        self,
        x_BxTxD: jax.Array,
        rotation: rotary.Tables,
        segments: jax.Array | None,
        rotates: jax.Array | None,
        past: Past | None,
    ) -> tuple[jax.Array, Past | None]:
        if rotates is not None:
            cos, sin = rotation
            rotation = jnp.where(rotates, cos, jnp.ones_like(cos)), jnp.where(rotates, sin, jnp.zeros_like(sin))
        attended, past = self.attention(self.norm1(x_BxTxD), rotation, segments, past)
        x_BxTxD = x_BxTxD + attended
        return x_BxTxD + self.mlp(self.norm2(x_BxTxD)), past


class Llama(nnx.Module):
    """Decoder-only language model; ``__call__`` is a :class:`family.Forward`."""

    def __init__(self, config: LlamaFields, rngs: nnx.Rngs):
        self.config = config
        self.token_embedding = normal(rngs.params(), (config.vocab_size, config.d_model))
        self.blocks = transformer.stacked_blocks(functools.partial(Block, config), config.layers, rngs)
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = None if config.tied else Linear(config.d_model, config.vocab_size, rngs)

    def __call__(
        self,
        tokens_BxT: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> Any:
        config, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        stretched = rotary.Llama3Scaling(config.rope_factor, config.rope_low, config.rope_high, config.rope_context)
        angles = rotary.frequencies(
            config.head_width, config.rope_theta, stretched if config.rope_factor != 1 else None
        )
        rotation = rotary.tables(rotary.places(tokens_BxT, positions), angles, dtype)
        x_BxTxD = transformer.look_up(self.token_embedding, tokens_BxT).astype(dtype)
        rotates = jnp.asarray(rotating(config)) != 0 if config.rope_skip else None
        x_BxTxD, cache = transformer.through_layers(
            self.blocks, x_BxTxD, rotation, segments, each=(rotates,), cache=cache, config=config
        )
        output = self.token_embedding[...].T if self.head is None else self.head.kernel[...]
        return transformer.found(self.final_norm(x_BxTxD), output.astype(dtype), cache)


def check(config: LlamaFields) -> None:
    """Raises UsageError where the fields cannot make a network."""
    transformer.check(config)
    for field in ("kv_heads", "head_dim", "d_ff", "rope_skip"):
        if getattr(config, field) < 0:
            raise UsageError(f"model.{field} is {getattr(config, field)}; it must not be negative")
    if config.kv_heads and config.heads % config.kv_heads:
        raise UsageError(f"model.heads={config.heads} is not a multiple of model.kv_heads={config.kv_heads}")
    if not config.head_dim:
        transformer.check_whole_heads(config)
    if config.head_width % 2:
        raise UsageError(
            f"a head has {config.head_width} features; positions rotate pairs: choose an even model.head_dim"
        )
    transformer.check_positive(config, "rope_theta", "norm_eps", "rope_factor")
    if not config.rope_low < config.rope_high:
        raise UsageError(f"model.rope_low={config.rope_low} must be below model.rope_high={config.rope_high}")


def leaves(config: LlamaFields) -> Leaves:
    """Every leaf that the options ask for, whatever the sizes are."""
    norm, vector = Leaf(("layer", "embed")), Leaf(("layer", "head_dim"))
    matrix = functools.partial(Leaf, decayed=True, muon=(1, 2))
    projections = {
        "blocks/attention/q/kernel": matrix(("layer", "embed", "heads")),
        "blocks/attention/k/kernel": matrix(("layer", "embed", "kv")),
        "blocks/attention/v/kernel": matrix(("layer", "embed", "kv")),
    }
    return {
        "token_embedding": Leaf(("vocab", "embed"), decayed=True),
        "blocks/norm1/scale": norm,
        **projections,
        **(family.biases(projections) if config.qkv_bias else {}),
        **({f"blocks/attention/{name}_norm/scale": vector for name in "qk"} if config.qk_norm else {}),
        "blocks/attention/out/kernel": matrix(("layer", "heads", "embed")),
        "blocks/norm2/scale": norm,
        "blocks/mlp/gate/kernel": matrix(("layer", "embed", "ff")),
        "blocks/mlp/up/kernel": matrix(("layer", "embed", "ff")),
        "blocks/mlp/down/kernel": matrix(("layer", "ff", "embed")),
        "final_norm/scale": Leaf(("embed",)),
        **({} if config.tied else {"head/kernel": Leaf(("embed", "vocab"), decayed=True)}),
    }


def flops_per_token(config: LlamaFields, parameters: int) -> float:
    """Training FLOPs a token; an embedding that is not the output projection too is looked up and no more."""
    looked_up = 0 if config.tied else config.vocab_size * config.d_model
    width = config.heads * config.head_width
    return family.dense_flops_per_token(parameters - looked_up, config.layers, width, config.context)


def network(config: LlamaFields) -> tuple[family.Init, family.Forward]:
    """``init`` and ``forward`` on plain nested dictionaries."""
    return transformer.as_functions(functools.partial(Llama, config))


def preset(layers: int, d_model: int, heads: int, kv_heads: int, d_ff: int, **more: Any) -> Callable[[], LlamaFields]:
    """A public model, as its configuration on the Hub has it; ``context`` is what most of its pre-training had."""
    shape = {"layers": layers, "d_model": d_model, "heads": heads, "kv_heads": kv_heads, "d_ff": d_ff}
    return functools.partial(LlamaFields, **shape, compute_dtype="bfloat16", **more)


_LLAMA_3 = {"vocab_size": 128256, "context": 8192, "rope_theta": 500000.0}
_SMOLLM2 = {"vocab_size": 49152, "context": 2048, "tied": True}
_SMOLLM3 = {"vocab_size": 128256, "context": 4096, "rope_theta": 50000.0, "rope_skip": 4, "norm_eps": 1e-6}
_QWEN3 = {"vocab_size": 151936, "context": 4096, "rope_theta": 1e6, "qk_norm": True, "norm_eps": 1e-6}

PRESETS = {
    "llama_3_2_1b": preset(16, 2048, 32, 8, 8192, **_LLAMA_3, rope_factor=32.0, tied=True),
    "llama_3_2_3b": preset(28, 3072, 24, 8, 8192, **_LLAMA_3, rope_factor=32.0, tied=True),
    "llama_3_1_8b": preset(32, 4096, 32, 8, 14336, **_LLAMA_3, rope_factor=8.0),
    "smollm2_135m": preset(30, 576, 9, 3, 1536, **_SMOLLM2, rope_theta=100000.0),
    "smollm2_360m": preset(32, 960, 15, 5, 2560, **_SMOLLM2, rope_theta=100000.0),
    "smollm2_1_7b": preset(24, 2048, 32, 32, 8192, **_SMOLLM2, rope_theta=130000.0),
    "smollm3_3b": preset(36, 2048, 16, 4, 11008, **_SMOLLM3, tied=True),
    "qwen3_0_6b": preset(28, 1024, 16, 8, 3072, **_QWEN3, head_dim=128, tied=True),
}


# --- as Meta, Hugging Face and Alibaba publish it ---------------------------------------------------------------------


def _tensors(config: LlamaFields) -> list[public.Tensor]:
    """One table for all; Qwen2 has biases, Qwen3 norms of queries and keys."""
    del config
    block = f"model.layers.{public.LAYER}."
    attention = {**{name: f"{name}_proj" for name in "qkv"}, "out": "o_proj"}
    return [
        *public.plain("model.embed_tokens.weight", "token_embedding"),
        *public.norm(f"{block}input_layernorm", "blocks/norm1"),
        *(t for k, v in attention.items() for t in public.linear(f"{block}self_attn.{v}", f"blocks/attention/{k}")),
        *(t for k in "qk" for t in public.norm(f"{block}self_attn.{k}_norm", f"blocks/attention/{k}_norm")),
        *public.norm(f"{block}post_attention_layernorm", "blocks/norm2"),
        *(t for k in ("gate", "up", "down") for t in public.linear(f"{block}mlp.{k}_proj", f"blocks/mlp/{k}")),
        *public.norm("model.norm", "final_norm"),
        public.Tensor("lm_head.weight", ("head/kernel",), turned=True),
    ]


_STRETCHED = {"rope_factor": "factor", "rope_low": "low_freq_factor", "rope_high": "high_freq_factor"}
_STRETCHED["rope_context"] = "original_max_position_embeddings"


def _read(settings: public.Settings, *, tied: bool = False, theta: float = 1e4, **own: Any) -> LlamaFields:
    """What all have in common, with defaults that differ; ``own``: what one of them has besides."""
    settings.only("hidden_act", "silu")
    settings.only("mlp_bias", False)
    settings.full_attention()
    rope, stretched = settings.rope(theta=theta), {}
    if rope["partial_rotary_factor"] != 1:
        raise settings.refuse("partial_rotary_factor", rope["partial_rotary_factor"], "1.0")
    if rope["rope_type"] == "llama3":
        inner = public.Settings(rope, f"{settings.place}: the rope_parameters")
        kinds = {"rope_context": int}
        stretched = {ours: inner.number(name, kind=kinds.get(ours, float)) for ours, name in _STRETCHED.items()}
    elif rope["rope_type"] != "default":
        raise settings.refuse("rope_type", rope["rope_type"], "default, llama3")
    return LlamaFields(
        layers=settings.number("num_hidden_layers"),
        d_model=settings.number("hidden_size"),
        context=settings.number("max_position_embeddings"),
        vocab_size=settings.number("vocab_size"),
        d_ff=settings.number("intermediate_size"),
        rope_theta=float(rope["rope_theta"]),
        norm_eps=float(settings.get("rms_norm_eps", 1e-6)),
        tied=bool(settings.get("tie_word_embeddings", tied)),
        heads=settings.number("num_attention_heads"),
        **stretched,
        **own,
    )


def _read_llama(settings: public.Settings) -> LlamaFields:
    settings.only("attention_bias", False)
    kv_heads = settings.get("num_key_value_heads", settings.need("num_attention_heads"))
    return _read(settings, kv_heads=int(kv_heads), head_dim=int(settings.get("head_dim", 0)))


def _read_qwen2(settings: public.Settings) -> LlamaFields:
    own = {"kv_heads": settings.number("num_key_value_heads"), "head_dim": int(settings.get("head_dim", 0))}
    return _read(settings, **own, qkv_bias=True)


def _read_qwen3(settings: public.Settings) -> LlamaFields:
    settings.only("attention_bias", False)
    own = {"kv_heads": settings.number("num_key_value_heads"), "head_dim": int(settings.get("head_dim", 128))}
    return _read(settings, **own, qk_norm=True)


def _read_smollm3(settings: public.Settings) -> LlamaFields:
    settings.only("attention_bias", False)
    own = {"kv_heads": int(settings.get("num_key_value_heads", 4)), "head_dim": int(settings.get("head_dim", 0))}
    given = settings.get("no_rope_layers", None)  # in spite of its name, 1 is for layers that have positions
    skip = int(settings.get("no_rope_layer_interval", 4)) if given is None else [*given, 0].index(0) + 1
    fields = _read(settings, tied=True, theta=2e6, **own, rope_skip=skip)
    if given is not None and list(given[: fields.layers]) != rotating(fields):
        raise settings.refuse("no_rope_layers", given, "0 for one layer in so many, the last of them")
    return fields


def _write(
    config: LlamaFields, *, qkv_bias: bool = False, qk_norm: bool = False, skips: bool = False
) -> dict[str, Any] | None:
    if (config.qkv_bias, config.qk_norm, config.rope_skip > 0) != (qkv_bias, qk_norm, skips):
        return None
    stretched = {name: getattr(config, ours) for ours, name in _STRETCHED.items()}
    return {
        "num_hidden_layers": config.layers,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff or -(-8 * config.d_model // (3 * 64)) * 64,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads or config.heads,
        **({"head_dim": config.head_width} if config.head_dim or qk_norm else {}),
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_theta,
        "rope_scaling": {"rope_type": "llama3", **stretched} if config.rope_factor != 1 else None,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        **({} if qkv_bias else {"attention_bias": False}),
        **({"no_rope_layers": rotating(config), "no_rope_layer_interval": config.rope_skip} if skips else {}),
    }


def _public(
    architecture: str, model_type: str, read: Callable[[public.Settings], LlamaFields], **own: bool
) -> public.Public:
    return public.Public(
        architecture=architecture,
        model_type=model_type,
        prefix="model.",
        tensors=_tensors,
        read=read,
        write=functools.partial(_write, **own),
        buffers=r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
        copies={"lm_head.weight": "model.embed_tokens.weight"},
    )


PUBLIC = (
    _public("LlamaForCausalLM", "llama", _read_llama),
    _public("Qwen2ForCausalLM", "qwen2", _read_qwen2, qkv_bias=True),
    _public("Qwen3ForCausalLM", "qwen3", _read_qwen3, qk_norm=True),
    _public("SmolLM3ForCausalLM", "smollm3", _read_smollm3, skips=True),
)

family.register(
    Family(
        fields=LlamaFields,
        network=network,
        leaves=leaves,
        flops_per_token=flops_per_token,
        check=check,
        portable=transformer.portable,
        picked=transformer.picked,
        presets=PRESETS,
        public=PUBLIC,
    )
)
