"""Bytes that a chip sends in one update, estimated from the declared axes of the parameters.

Ring algorithms: of an array of S bytes that n chips hold together, all-gather, reduce-scatter and all-to-all send
S (n - 1) / n from each, and an all-reduce twice that. Gradients are exchanged once a micro-batch, as they are made.
"""

import math

from wsm_jax.core.trees import named_leaves
from wsm_jax.models import model as model_lib
from wsm_jax.parallel import sharding
from wsm_jax.planning.planned import Planned

_TO_EXPERTS = 4  # there and back, in both directions of the pass


def bytes_sent(planned: Planned) -> dict[str, float]:
    """Axis of the mesh -> bytes, for the axes that have more than one chip."""
    found = {
        sharding.DATA: _gradients(planned),
        sharding.FSDP: _parameters(planned),
        sharding.EXPERT: _experts(planned),
        sharding.TENSOR: _activations(planned),
    }
    times = planned.config.accumulate
    return {axis: bytes * times for axis, bytes in found.items() if planned.axes[axis] > 1}


def _moved(count: int) -> float:
    return (count - 1) / count


def _gradients(planned: Planned) -> float:
    """All-reduced over ``data``, float32; over ``expert`` too, what is no expert's."""
    held = sharding.device_bytes(planned.state["params"])
    return 2 * held * _moved(planned.axes[sharding.DATA])


def _parameters(planned: Planned) -> float:
    """Fetched over ``fsdp`` in the compute dtype, for each direction of the pass; gradients scattered in float32."""
    count = planned.axes[sharding.FSDP]
    sent = 0.0
    for leaf in named_leaves(planned.state["params"]).values():
        if sharding.FSDP in sharding.names(leaf.sharding.spec):
            fetched = sharding.part_shape(leaf.shape, leaf.sharding, (sharding.TENSOR, sharding.EXPERT))
            sent += math.prod(fetched) * (2 * planned.width + leaf.dtype.itemsize)
    return sent * _moved(count)


def _experts(planned: Planned) -> float:
    """Tokens sent to their experts and back; gradients of all other parameters, all-reduced."""
    params, declared = named_leaves(planned.state["params"]), planned.model.leaves
    experts = {path for path in params if path in declared and {"expert", "ff"} <= {*declared[path].axes}}
    others = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for path, leaf in params.items()
        if path not in experts
    )
    into = [path for path in experts if declared[path].axes[-1] == "ff"]  # of the stream's width, for each layer
    sent = 2.0 * others
    if into:
        layers, count, width = ([1] * 4 + list(params[into[0]].shape[:-1]))[-3:]
        held = sum(params[path].size for path in experts)
        active = model_lib.active_parameters(planned.model.config, planned.parameters)
        chosen = count * (1 - (planned.parameters - active) / held)  # experts that a token goes to
        rows = planned.rows * planned.config.model.context * chosen
        sent += _TO_EXPERTS * layers * rows * width * planned.width
    return sent * _moved(planned.axes[sharding.EXPERT])


def _activations(planned: Planned) -> float:
    """All-reduced over ``tensor``: what a module's matrices of cut inputs give, and the gradients of what those of cut
    outputs are given; once more where the forward pass is recomputed."""
    leaves, declared = named_leaves(planned.state["params"]), planned.model.leaves
    modules: dict[tuple[str, str], float] = {}
    for path, leaf in leaves.items():
        axes = declared[path].axes if path in declared else ()
        if len(axes) - (axes[:1] == ("layer",)) != 2:
            continue
        first, second = (sharding.RULES.get(axis) == sharding.TENSOR for axis in axes[-2:])
        layers = leaf.shape[0] if len(axes) == 3 else 1
        parent = path.rsplit("/", 2)[0]
        if first and not second:  # its products are summed
            modules[parent, "forward"] = layers * leaf.shape[-1] * (2 if planned.recomputes else 1)
        if second and not first:
            modules[parent, "backward"] = layers * leaf.shape[-2]
    features = sum(modules.values())
    rows = planned.rows * planned.config.model.context
    return 2 * rows * features * planned.width * _moved(planned.axes[sharding.TENSOR])
