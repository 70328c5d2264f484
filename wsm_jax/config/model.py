"""Fields of a model: those that every family has, those of the default one, and which family has which."""

import dataclasses
from typing import Any, ClassVar

from wsm_jax.config.fields import setting, shown
from wsm_jax.errors import UsageError


@dataclasses.dataclass
class ModelFields:
    """What the network of every family has; a family adds its own fields in a dataclass derived from this one.

    ``NUMERICS`` names the fields that change rounding, speed or memory only, so that a branch may differ in them;
    ``UNSEEN`` those that the shapes of the parameters do not tell.
    """

    NUMERICS: ClassVar[frozenset[str]] = frozenset({"compute_dtype", "loss_blocks"})
    UNSEEN: ClassVar[frozenset[str]] = frozenset({"family"})

    family: str = setting("", "architecture, one of wsm_jax.models")
    context: int = setting(256, "tokens in one training sequence")
    vocab_size: int = setting(0, "rows of the embedding; 0 = the tokenizer's size, padded to a multiple of 128")
    compute_dtype: str = setting(
        "float32",
        "float32 or bfloat16; parameters are always float32. "
        "Products of float32 are TF32 on GPUs and bfloat16 on TPUs unless JAX_DEFAULT_MATMUL_PRECISION=highest",
    )
    loss_blocks: int = setting(
        -1,
        "parts of the sequence; the logits of one part exist at a time, so more parts need less memory; "
        "-1 = what suits the machine and the shape",
        later=True,
        before={-1: 1},
        open=True,
    )


@dataclasses.dataclass
class TransformerFields(ModelFields):
    """What the dense transformers have besides; counts and presets are in ``wsm_jax.models``."""

    NUMERICS = ModelFields.NUMERICS | {"attention", "scan_unroll", "remat"}
    UNSEEN = ModelFields.UNSEEN | {"heads"}

    layers: int = setting(4, "transformer blocks")
    d_model: int = setting(128, "width of the residual stream")
    heads: int = setting(4, "attention heads; d_model must be a multiple of it")
    attention: str = setting(
        "auto",
        "jax.nn.dot_product_attention with xla or cudnn; splash, for TPUs; blocks: query blocks, for CPUs; "
        "auto: what suits the machine and the shape",
        before={"auto": "xla"},
        open=True,
    )
    scan_unroll: int = setting(
        -1,
        "layers unrolled in one iteration of the layer scan; -1 = what suits the machine and the shape",
        before={-1: 1},
        open=True,
    )
    remat: str = setting(
        "none",
        "recompute blocks in the backward pass to save memory: none | full | dots (all but matrix products) | "
        "offload (full, and what is kept goes to the host; a CPU has one memory, so nothing goes there)",
        before={"none": False, "full": True},
    )

    def __post_init__(self) -> None:
        if isinstance(self.remat, bool):  # as earlier versions saved it
            self.remat = "full" if self.remat else "none"


@dataclasses.dataclass
class ModelConfig(TransformerFields):
    """Shape and numerics of the default family."""

    UNSEEN = TransformerFields.UNSEEN | {"activation"}

    family: str = setting("gpt2", "architecture, one of wsm_jax.models")
    bias: bool = setting(False, "biases in projections and norms, as OpenAI's GPT-2 has them", later=True)
    activation: str = setting("gelu", "gelu (exact) | gelu_new (with tanh, as OpenAI's GPT-2)", later=True)


def left_open(config: ModelFields) -> dict[str, Any]:
    """Fields that ``config`` leaves to what suits the machine -> what they were before they could be left open."""
    return {
        field.name: field.metadata["before"][field.default]
        for field in dataclasses.fields(config)
        if field.metadata["open"] and getattr(config, field.name) == field.default
    }


# Name of a family -> the dataclass of its fields; wsm_jax.models fills it, a family at a time.
MODEL_FIELDS: dict[str, type[ModelFields]] = {ModelConfig().family: ModelConfig}


def model_fields(values: dict[str, Any]) -> type[ModelFields]:
    """The dataclass for the fields of a model: its family's, or one made of ``values`` where nobody knows the family.

    So whoever only reads the configuration of a run need not have its network.

    Raises:
      UsageError: a value of an unknown family that is no text, number or boolean.
    """
    known = MODEL_FIELDS.get(str(values.get("family", ModelConfig().family)))
    if known:
        return known
    shared, own = {field.name for field in dataclasses.fields(ModelFields)}, []
    for name, value in values.items():
        if name in shared:
            continue
        if not isinstance(value, (str, int, float)) or not name.isidentifier():
            raise UsageError(f"config.model.{name} is {shown(value)}; it must be a text, a number or a boolean")
        own.append((name, type(value), setting(value, "as saved")))
    return dataclasses.make_dataclass("PlainModelFields", own, bases=(ModelFields,))
