"""Averages beside a train state: where their states live, and their updates and read-outs compiled.

They are compiled apart from the training step. So a run with averages has, bit for bit, the parameters of one without,
an average that is updated every so many steps costs nothing at the others, and states in host memory travel only then.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wsm_jax.core.averages import Average, Params, State, init_all, read_all

Update = Callable[[Mapping[str, State], Params, int], dict[str, State]]
Read = Callable[[Mapping[str, State], Params, int], dict[str, Params]]
HOST = "pinned_host"


def abstract(averages: Mapping[str, Average], params: Params, *, host: bool = False) -> dict[str, State]:
    """Shapes, dtypes and shardings of the states, without allocating them.

    Accumulators are partitioned as the parameters they follow; axes before those of a parameter (the copies of LAWA and
    online WSM) are not partitioned.

    Args:
      averages: name -> average.
      params: arrays or shapes, with shardings.
      host: keep accumulators in the pinned memory of the host; counts stay on the device.
    """
    shapes = jax.eval_shape(lambda p: init_all(averages, p), params)
    structure, mesh = jax.tree.structure(params), _mesh(params)

    def follow(leaf: Any, param: Any) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(*[None] * (leaf.ndim - param.ndim), *param.sharding.spec)
        where = NamedSharding(mesh, spec, memory_kind=HOST if host else None)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    def place(part: Any) -> Any:
        if jax.tree.structure(part) == structure:
            return jax.tree.map(follow, part, params)
        everywhere = NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), part)

    return {name: {key: place(part) for key, part in state.items()} for name, state in shapes.items()}


def initialise(averages: Mapping[str, Average], params: Params, states: Mapping[str, State]) -> dict[str, State]:
    """The states that begin with ``params``, created where their abstract form ``states`` says."""
    return jax.jit(lambda p: init_all(averages, p), out_shardings=_shardings(states))(params)


def compile_update(averages: Mapping[str, Average], params: Params, states: Mapping[str, State]) -> Update:
    """(states, params, step) -> states after that step; the old states' buffers are donated.

    Args:
      averages: name -> average.
      params: abstract parameters with shardings.
      states: of :func:`abstract`.
    """

    def one(name: str) -> Any:
        def update(state: State, params: Params, step: Any) -> State:
            return averages[name].update(_to_device(state, states[name]), params, step)

        jitted = jax.jit(update, out_shardings=_shardings(states[name]), donate_argnums=0)
        return jitted.lower(states[name], params, _step_shape(params)).compile()

    compiled = {name: one(name) for name in averages}

    def update(current: Mapping[str, State], params: Params, step: int) -> dict[str, State]:
        due = {name: step % averages[name].every == 0 for name in current}
        number = np.int32(step)
        return {name: compiled[name](s, params, number) if due[name] else s for name, s in current.items()}

    return update


def compile_read(averages: Mapping[str, Average], params: Params, states: Mapping[str, State]) -> Read:
    """(states, params, step) -> {name: average}, float32, where the parameters are. Arguments as for the update."""

    if not averages:
        return lambda current, params, step: {}

    def read(current: Mapping[str, State], params: Params, step: Any) -> dict[str, Params]:
        return read_all(averages, _to_device(current, states), params, step)

    jitted = jax.jit(read, out_shardings=dict.fromkeys(averages, _shardings(params)))
    compiled = jitted.lower(dict(states), params, _step_shape(params)).compile()
    return lambda current, params, step: compiled(dict(current), params, np.int32(step))


def read_shapes(averages: Mapping[str, Average], params: Params) -> dict[str, Params]:
    """name -> shapes and dtypes of what :func:`compile_read` gives, for a forecast of the disk."""
    return jax.eval_shape(lambda p: read_all(averages, init_all(averages, p), p, np.int32(1)), params)


def _mesh(params: Params) -> Mesh:
    return jax.tree.leaves(params)[0].sharding.mesh


def _step_shape(params: Params) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(_mesh(params), PartitionSpec()))


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _to_device(tree: Any, abstract: Any) -> Any:
    """``tree`` where it can be computed with; what is on the device stays untouched."""

    def one(leaf: Any, shape: Any) -> Any:
        where = shape.sharding
        return jax.device_put(leaf, where.with_memory_kind("device")) if where.memory_kind == HOST else leaf

    return jax.tree.map(one, tree, abstract)
