"""What suits the machine where a model leaves it open: the attention, how many layers are unrolled, parts of the loss.

Measured on CPUs alone; elsewhere it is the backend's attention, layers in a scan and the loss in one part. A model of
short sequences stays plain everywhere: what it would save is less than what compiling costs.
"""

from typing import Any

from wsm_jax.config.model import TransformerFields
from wsm_jax.models import attention as attention_lib
from wsm_jax.parallel import chips

LEAST_CONTEXT = 128  # two query blocks
MOST_CONTEXT = 2048  # 32 query blocks, each compiled by itself
MOST_COMPILED = 64  # query blocks of all unrolled layers together
MOST_LAYERS = 12  # unrolled
LOGITS = 2**23  # elements, at most, of one part of the loss: 32 MB; a half as many are slower


def attention(length: int, dtype: Any) -> str:
    """Query blocks on CPUs, else the kernel of the backend; see :func:`wsm_jax.models.attention.chosen`.

    Args:
      length: tokens of a sequence.
      dtype: of queries, keys and values.
    """
    if _on_cpu(length) and length <= MOST_CONTEXT:
        return "blocks"
    return attention_lib.chosen(attention_lib.AUTO, length, dtype)


def unrolled(config: TransformerFields) -> int:
    """All layers of a small model on CPUs, else 1.

    A scan keeps what the backward pass needs in stacked arrays, which XLA:CPU copies a layer at a time; without it an
    update takes about nine tenths. Compiling takes as long at 6 layers, but then grows with them (12 layers of 4 query
    blocks: 15 CPU-seconds, in a scan 9), so at most MOST_LAYERS are unrolled, and no more than MOST_COMPILED query
    blocks. Where layers are recomputed they stay in the scan: outside of it XLA would see that something is computed
    twice, and keep it.
    """
    blocks = -(-config.context // attention_lib.BLOCK) if config.attention == "blocks" else 1
    few = config.layers <= MOST_LAYERS and config.layers * blocks <= MOST_COMPILED
    return config.layers if _on_cpu(config.context) and few and config.remat == "none" else 1


def loss_blocks(context: int, width: int) -> int:
    """The fewest parts of the sequence, on CPUs, whose logits have at most LOGITS elements.

    As fast as one part where the heap is kept, faster where it is not, and without the memory of all logits.

    Args:
      context: tokens of a sequence, which the parts divide.
      width: logits of a token of all sequences of a batch together.
    """
    if not _on_cpu(context):
        return 1
    return next((n for n in range(1, context + 1) if context % n == 0 and context // n * width <= LOGITS), context)


def _on_cpu(context: int) -> bool:
    return chips.backend() == "cpu" and context >= LEAST_CONTEXT
