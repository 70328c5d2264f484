"""What a run takes of each chip, estimated from shapes alone: seconds, no compiler, any chip."""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp

from wsm_jax.core.trees import named_leaves
from wsm_jax.models import model as model_lib
from wsm_jax.models.attention import TILE
from wsm_jax.models.model import Model
from wsm_jax.parallel import chips, sharding
from wsm_jax.planning import liveness, traffic
from wsm_jax.planning.needs import Needs
from wsm_jax.planning.planned import Planned


class Estimator:
    """Estimates runs; what is alike in them is traced once."""

    def __init__(self) -> None:
        self._traced: dict[str, Any] = {}

    def __call__(self, planned: Planned) -> Needs:
        """The needs of ``planned``, an estimate."""
        gradients = sharding.device_bytes(planned.state["params"])
        accumulated = gradients if planned.config.accumulate > 1 else 0
        return Needs(
            how="estimated from shapes",
            state=planned.state_bytes,
            temporaries=liveness.peak(self._trace(planned), _bytes_on(planned)) + accumulated,
            batch=planned.batch_bytes,
            collectives=traffic.bytes_sent(planned),
        )

    def _trace(self, planned: Planned) -> Any:
        """The gradient of one micro-batch of a chip, with parameters as ``tensor`` cuts them."""
        key = json.dumps([dataclasses.asdict(planned.model.config), planned.rows, planned.axes[sharding.TENSOR]])
        if key not in self._traced:
            with chips.programs_for(planned.topology.chip.platform):
                self._traced[key] = _gradient(planned)
        return self._traced[key]


def _gradient(planned: Planned) -> Any:
    model = _traceable(planned.model)
    rows = jax.ShapeDtypeStruct((planned.rows, model.config.context), jnp.int32)

    def gradient(params: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        return jax.value_and_grad(lambda p: model_lib.training_loss(model, p, inputs, targets)[0])(params)

    try:
        return jax.make_jaxpr(gradient)(planned.part((sharding.TENSOR,)), rows, rows)
    except (TypeError, ValueError):  # a family that takes a width from its fields and not from its parameters
        return jax.make_jaxpr(gradient)(planned.part(()), rows, rows)


def _traceable(model: Model) -> Model:
    """The same with attention that is traced anywhere: cuDNN's asks for a GPU; the kernel for TPUs keeps as much."""
    if getattr(model.config, "attention", "") != "cudnn":
        return model
    kernel = "xla" if model.config.context % TILE else "splash"
    with chips.programs_for("tpu"):
        return model_lib.build(dataclasses.replace(model.config, attention=kernel))


def _bytes_on(planned: Planned) -> liveness.Bytes:
    """Bytes of an array of the traced program on a chip.

    Its rows are a chip's already. What has the shape of a parameter is that parameter, its gradient or its cast: all
    layers of one lie as it does, and one layer of it is fetched whole but for its experts.
    """
    leaves, declared = named_leaves(planned.state["params"]), planned.model.leaves
    shares: dict[tuple[int, ...], float] = {}
    for path, leaf in leaves.items():
        cut = sharding.part_shape(leaf.shape, leaf.sharding, (sharding.TENSOR,))
        held = sharding.part_shape(leaf.shape, leaf.sharding, sharding.AXES)
        experts = sharding.part_shape(leaf.shape, leaf.sharding, (sharding.TENSOR, sharding.EXPERT))
        fetched = math.prod(experts) / math.prod(cut)
        stacked = path in declared and declared[path].stacked
        shares[cut] = math.prod(held) / math.prod(cut) if stacked else fetched
        if stacked:
            shares.setdefault(cut[1:], fetched)
            shares.setdefault((1, *cut[1:]), fetched)

    def nbytes(aval: Any) -> int:
        return int(liveness.array_bytes(aval) * shares.get(getattr(aval, "shape", ()), 1.0))

    return nbytes
