"""Fields of Ling's mixture of experts, what makes no network of them, and its presets."""

import dataclasses

from wsm_jax.config import setting
from wsm_jax.config.model import TransformerFields
from wsm_jax.errors import UsageError
from wsm_jax.models import experts as experts_lib
from wsm_jax.models import transformer
from wsm_jax.models.layers import INIT_STD


@dataclasses.dataclass
class LingFields(TransformerFields):
    """Shape and numerics of the family; the defaults are ``ling_tiny``."""

    NUMERICS = TransformerFields.NUMERICS | {"grouped", "buffer_factor", "drop_limit", "bias_rate", "z_loss"}
    UNSEEN = TransformerFields.UNSEEN | {
        "kv_heads", "head_dim", "experts_per_token", "groups", "groups_kept", "routed_scale", "rope_theta",
        "rotary_pct", "norm_eps",
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


def rotated(config: LingFields) -> int:
    """Features of a head that positions rotate."""
    return int(config.rotary_pct * config.head_dim)


def check(config: LingFields) -> None:
    """Raises UsageError where the fields cannot make a network, or not on this machine."""
    transformer.check(config)
    if config.layers < 2:
        raise UsageError(f"model.layers is {config.layers}; the first layer is dense, so it must be at least 2")
    transformer.check_positive(
        config, "kv_heads", "head_dim", "d_ff", "experts", "expert_ff", "experts_per_token", "groups", "groups_kept",
        "routed_scale", "rope_theta", "norm_eps", "init_std", "buffer_factor",
    )  # fmt: skip
    for field, of in (("kv_heads", "heads"), ("groups", "experts")):
        if (whole := getattr(config, of)) % (part := getattr(config, field)):
            raise UsageError(f"model.{of}={whole} is not a multiple of model.{field}={part}")
    if rotated(config) < 2 or rotated(config) % 2 or config.rotary_pct > 1:
        raise UsageError(
            f"model.rotary_pct={config.rotary_pct} rotates {rotated(config)} of the {config.head_dim} features of a "
            "head; it must be an even number"
        )
    if config.groups_kept > config.groups:
        raise UsageError(f"model.groups_kept={config.groups_kept} is more than model.groups={config.groups}")
    if config.experts_per_token > (eligible := config.experts // config.groups * config.groups_kept):
        raise UsageError(
            f"model.experts_per_token={config.experts_per_token}, but model.groups_kept leaves {eligible} to it"
        )
    for field in ("bias_rate", "z_loss", "drop_limit"):
        if not 0 <= getattr(config, field) <= 1:
            raise UsageError(f"model.{field} is {getattr(config, field)}; it must be between 0 and 1")
    if config.grouped not in experts_lib.GROUPED:
        raise UsageError(f"model.grouped is {config.grouped!r}; choose {', '.join(experts_lib.GROUPED)}")
    experts_lib.chosen_product(config.grouped)


def ling_tiny() -> LingFields:
    """5.2M parameters of which a token passes 2.1M, with a 4,096-token vocabulary: trains on two CPU cores."""
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


PRESETS = {"ling_tiny": ling_tiny, "ling_small": ling_small, "ling_mini": ling_mini}
