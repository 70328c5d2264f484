"""A run on chips that are not here: everything that is known of it before anything is traced or compiled."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wsm_jax.checkpoints import plan as plan_lib
from wsm_jax.checkpoints.plan import Plan
from wsm_jax.config import Config
from wsm_jax.data import tokens
from wsm_jax.models import model as model_lib
from wsm_jax.models import presets
from wsm_jax.models.model import Model
from wsm_jax.parallel import chips, sharding, topologies
from wsm_jax.parallel import mesh as mesh_lib
from wsm_jax.parallel.topologies import Topology
from wsm_jax.training import prepare, tracking, train_state
from wsm_jax.training.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run and where it is to be trained.

    Attributes:
      config, plan: what was asked for, and its durations in steps.
      topology: the chips.
      axes: axis of the mesh -> chips along it.
      mesh: of devices that are not here.
      model, optimizer: as they suit those chips.
      rows: sequences that a chip computes at a time.
      state: shapes, dtypes and shardings of the train state.
      saved: shapes of what a merge checkpoint holds, by item.
      note: what is whole on every chip although the mesh could cut it; "" for nothing.
    """

    config: Config
    plan: Plan
    topology: Topology
    axes: Mapping[str, int]
    mesh: Any
    model: Model
    optimizer: optax.GradientTransformation
    rows: int
    state: TrainState
    saved: dict[str, Any]
    note: str

    @property
    def parameters(self) -> int:
        """Of the model, all of them."""
        return model_lib.parameter_count(self.state["params"])

    @property
    def batch_bytes(self) -> int:
        """Of one update's inputs and targets, int32, on each chip."""
        return 2 * 4 * self.rows * self.config.accumulate * self.config.model.context

    @property
    def state_bytes(self) -> int:
        """Of the train state on each chip."""
        return sharding.device_bytes(self.state)

    @property
    def recomputes(self) -> bool:
        """Whether the backward pass computes the forward pass once more."""
        return getattr(self.model.config, "remat", "none") in ("full", "offload")

    @property
    def width(self) -> int:
        """Bytes of a number that the network computes with."""
        return jnp.dtype(self.model.config.compute_dtype).itemsize

    def part(self, axes: Sequence[str]) -> Any:
        """Shapes of the parameters' parts on a chip, where of the axes of the mesh only some cut them."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(sharding.part_shape(leaf.shape, leaf.sharding, axes), leaf.dtype),
            self.state["params"],
        )


def planned(config: Config, topology: Topology, mesh: Any = None, like: Planned | None = None) -> Planned:
    """Resolves ``config`` for the chips of ``topology``.

    Args:
      config: of the run; the tokenizer is looked for only where it decides the vocabulary.
      topology: where it is to be trained.
      mesh: over devices of the topology; default: one of devices that nobody has.
      like: the same run on another mesh of these chips, whose model and shapes need not be made again.

    Raises:
      UsageError: what :func:`wsm_jax.training.prepare.prepare` would refuse there, but for the documents.
    """
    plan = plan_lib.plan(config)
    axes = mesh_lib.axes(config.mesh, topology.count)
    mesh = topologies.abstract_mesh(axes) if mesh is None else mesh
    rows = prepare.rows(config, mesh)
    parts = prepare.parts_of(config, plan, None)
    with chips.programs_for(topology.chip.platform):
        model = like.model if like else _model(config, rows)
        shapes = like.state if like else train_state.abstract(model, parts.optimizer, mesh)
    state = _laid_out(shapes, model, mesh)
    state["averages"] = tracking.abstract(parts.averages, state["params"], host=config.averaging.host)
    return Planned(
        config,
        plan,
        topology,
        axes,
        mesh,
        model,
        parts.optimizer,
        rows,
        state,
        prepare.saved_shapes(config, parts.averages, state["params"]),
        sharding.check_spread(state["params"]),
    )


def _model(config: Config, rows: int) -> Model:
    vocabulary = config.model.vocab_size or tokens.check(config.data)
    return model_lib.build(presets.with_vocabulary(config.model, vocabulary), rows)


def _laid_out(state: TrainState, model: Model, mesh: Any) -> TrainState:
    """Shapes of a train state without averages on a mesh."""
    bare = {**state, "averages": {}}
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        bare,
        sharding.tree_shardings(mesh, bare, model.axes),
    )
