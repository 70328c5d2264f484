"""Ling-mini 2.0 as inclusionAI publishes it: names of tensors and configuration, both ways.

From the published code (``modeling_bailing_moe_v2.py``), without which transformers does not read the weights; not
tried on them.
"""

from typing import Any

from wsm_jax.models import public
from wsm_jax.models.ling_fields import LingFields, rotated

_GATED = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
# Where it differs from what is computed here, a model is another one.
_SAME = {
    "hidden_act": "silu", "score_function": "sigmoid", "use_qkv_bias": False, "use_bias": False, "use_qk_norm": True,
    "norm_topk_prob": True, "tie_word_embeddings": False, "norm_head": False, "first_k_dense_replace": 1,
    "num_shared_experts": 1, "moe_router_enable_expert_bias": True,
}  # fmt: skip
_NUMBERS = {
    "layers": "num_hidden_layers", "d_model": "hidden_size", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "context": "max_position_embeddings", "vocab_size": "vocab_size",
    "d_ff": "intermediate_size", "experts": "num_experts", "expert_ff": "moe_intermediate_size",
    "experts_per_token": "num_experts_per_tok", "groups": "n_group", "groups_kept": "topk_group",
}  # fmt: skip


def _block(config: LingFields, ours: str, there: str) -> list[public.Tensor]:
    """What the first block and all others have."""
    width = config.head_dim
    attention, qkv = f"{there}attention", tuple(f"{ours}/attention/{name}/kernel" for name in "qkv")
    rows = (config.heads * width, config.kv_heads * width, config.kv_heads * width)
    return [
        *public.norm(f"{there}input_layernorm", f"{ours}/norm1"),
        public.Tensor(f"{attention}.query_key_value.weight", qkv, turned=True, rows=rows),
        *public.norm(f"{attention}.query_layernorm", f"{ours}/attention/q_norm"),
        *public.norm(f"{attention}.key_layernorm", f"{ours}/attention/k_norm"),
        *public.linear(f"{attention}.dense", f"{ours}/attention/out"),
        *public.norm(f"{there}post_attention_layernorm", f"{ours}/norm2"),
    ]


def tensors(config: LingFields) -> list[public.Tensor]:
    """The first layer is dense, so that the stacked ones begin with layer 1."""
    first, block = "model.layers.0.", f"model.layers.{public.LAYER}."
    mlp, expert = f"{block}mlp", f"{block}mlp.experts.{public.EXPERT}"
    stacked = [
        *_block(config, "blocks", block),
        public.Tensor(f"{mlp}.gate.weight", ("blocks/router/kernel",), turned=True),
        public.Tensor(f"{mlp}.gate.expert_bias", ("blocks/router/bias",)),
        *(t for k, v in _GATED.items() for t in public.linear(f"{mlp}.shared_experts.{v}", f"blocks/shared/{k}")),
        *(public.Tensor(f"{expert}.{v}.weight", (f"blocks/experts/{k}",), turned=True) for k, v in _GATED.items()),
    ]
    return [
        *public.plain("model.word_embeddings.weight", "token_embedding"),
        *_block(config, "first", first),
        *(t for k, v in _GATED.items() for t in public.linear(f"{first}mlp.{v}", f"first/mlp/{k}")),
        *(public.Tensor(t.name, t.leaves, t.turned, t.heads, t.rows, first=1) for t in stacked),
        *public.norm("model.norm", "final_norm"),
        public.Tensor("lm_head.weight", ("head/kernel",), turned=True),
    ]


def read(settings: public.Settings) -> LingFields:
    """Fields of a config.json; UsageError for what is not computed here."""
    for name, value in _SAME.items():
        settings.only(name, value)
    settings.full_attention()
    rope = settings.rope(share="partial_rotary_factor")
    if rope["rope_type"] != "default":
        raise settings.refuse("rope_type", rope["rope_type"], "default")
    numbers = {ours: settings.number(name) for ours, name in _NUMBERS.items()}
    settings.only("moe_shared_expert_intermediate_size", numbers["expert_ff"])
    return LingFields(
        **numbers,
        head_dim=int(settings.get("head_dim", numbers["d_model"] // numbers["heads"])),
        routed_scale=float(settings.need("routed_scaling_factor")),
        rope_theta=float(rope["rope_theta"]),
        rotary_pct=float(rope["partial_rotary_factor"]),
        norm_eps=float(settings.get("rms_norm_eps", 1e-6)),
    )


def write(config: LingFields) -> dict[str, Any]:
    """What config.json says of the fields."""
    return {
        **_SAME,
        **{name: getattr(config, ours) for ours, name in _NUMBERS.items()},
        "moe_shared_expert_intermediate_size": config.expert_ff,
        "head_dim": config.head_dim,
        "routed_scaling_factor": config.routed_scale,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "partial_rotary_factor": rotated(config) / config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "use_rmsnorm": True,
        "router_dtype": "fp32",
        "num_nextn_predict_layers": 0,
    }


PUBLIC = public.Public(
    architecture="BailingMoeV2ForCausalLM",
    model_type="bailing_moe_v2",
    prefix="model.",
    tensors=tensors,
    read=read,
    write=write,
    buffers=r"(model\.)?(layers\.\d+\.attention\.)?rotary_emb\.inv_freq",
    more_layers=True,
)
