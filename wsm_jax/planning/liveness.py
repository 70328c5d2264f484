"""The memory that a traced program needs beside its arguments, from its shapes alone.

The equations of a jaxpr are run through in order with what is alive after each. XLA fuses elementwise operations, so
their results take room only where an operation that is not one wants them; loops are as large as one turn of them.
What XLA does besides (other orders, padded layouts, copies) is not known here: the figure is an estimate.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jax_core

core: Any = jax_core  # in JAX 0.12 a Jaxpr is a ClosedJaxpr, and a type checker knows one of them only

Bytes = Callable[[Any], int]

# Results of these are computed where they are used, as XLA's fusions do.
_FUSED = frozenset(
    """
    abs add add_any and asin atan2 broadcast_in_dim ceil clamp concatenate convert_element_type copy copy_p cos div
    dynamic_slice eq erf erf_inv exp exp2 expand_dims expm1 floor ge gt integer_pow iota is_finite le log log1p logistic
    lt max min mul name ne neg not or pad pow reduce_precision reshape rev round rsqrt select_n shift_left sign sin
    slice sqrt square squeeze stop_gradient sub tan tanh transpose xor
    """.split()
)
_READERS = frozenset("argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum".split())
# What runs other programs: those in its place, and those in turns or on parts of its arguments. Kernels work in memory
# of their own, on the chip.
_CALLS = frozenset("pjit jit closed_call core_call remat remat2 checkpoint custom_jvp_call custom_vjp_call".split())
_TURNS = frozenset("scan while cond shard_map".split())


@dataclasses.dataclass(frozen=True, eq=False)
class _Array:
    """A result of an operation; equal to nothing but itself."""

    aval: Any


@dataclasses.dataclass(frozen=True)
class _Operation:
    """What it is called, what it reads of earlier ones and writes, the programs inside it, and the results it carries
    from turn to turn."""

    name: str
    reads: list[_Array]
    writes: list[_Array]
    inner: list[Any]
    carried: int


def peak(jaxpr: Any, nbytes: Bytes) -> int:
    """Most bytes that are alive at a time of a program's intermediate and final results; arguments do not count.

    Args:
      jaxpr: of the program.
      nbytes: of an array on one device, by its shape and dtype.
    """
    operations: list[_Operation] = []
    results = _flatten(jaxpr, {}, operations)
    sources = _sources(operations, results)
    last = {array: place for place, one in enumerate(operations) for read in one.reads for array in sources[read]}
    last |= {array: len(operations) for result in results for array in sources[result]}
    alive: dict[_Array, int] = {}
    most = 0
    for place, one in enumerate(operations):
        made = {array: nbytes(array.aval) for array in one.writes if sources[array] == {array}}
        ending = {array for read in one.reads for array in sources[read] if last[array] == place}
        freed = sum(alive[array] for array in ending)
        # An elementwise operation writes over what it reads last; a loop goes on in the arrays that it begins with.
        over = sum(list(made.values())[: len(made) if one.name in _FUSED else one.carried])
        inside = max((peak(program, nbytes) for program in one.inner), default=0)
        most = max(most, sum(alive.values()) + sum(made.values()) - min(freed, over) + inside)
        alive |= {array: size for array, size in made.items() if array in last}
        for array in ending:
            del alive[array]
    return most


def _sources(operations: list[_Operation], results: list[_Array]) -> dict[_Array, set[_Array]]:
    """array -> those in memory that it is computed from when it is used; itself alone, where it is one of them."""
    written = {*results, *(read for one in operations if one.name not in _FUSED | _READERS for read in one.reads)}
    found: dict[_Array, set[_Array]] = {}
    for one in operations:
        behind = set().union(*(found[read] for read in one.reads))
        for array in one.writes:
            found[array] = behind if one.name in _FUSED and array not in written else {array}
    return found


def _flatten(jaxpr: Any, arrays: dict[Any, _Array], operations: list[_Operation]) -> list[_Array]:
    """Appends the operations of a program, with those of all that it calls in their place.

    Args:
      jaxpr: of the program.
      arrays: its variables that are results of earlier operations.
      operations: what is appended to.

    Returns:
      those of its results that are no arguments.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = list(_programs(equation.params)) if name in _CALLS | _TURNS else []
        read = {place: arrays[var] for place, var in enumerate(equation.invars) if _is_result(var, arrays)}
        if name in _CALLS:
            body = inner[0].jaxpr if isinstance(inner[0], core.ClosedJaxpr) else inner[0]
            within = {body.invars[place]: array for place, array in read.items()}
            _flatten(body, within, operations)
            arrays |= {
                var: within[result]
                for var, result in zip(equation.outvars, body.outvars, strict=True)
                if _is_result(result, within)
            }
            continue
        writes = [_Array(var.aval) for var in equation.outvars]
        arrays |= dict(zip(equation.outvars, writes, strict=True))
        carried = _carried(equation) if name == "scan" else len(writes) if name == "while" else 0
        operations.append(_Operation(name, list(read.values()), writes, inner, carried))
    return [arrays[var] for var in jaxpr.outvars if _is_result(var, arrays)]


def _carried(scan: Any) -> int:
    """Its results that are no stacks of what every turn gives."""
    body = next(_programs(scan.params))
    inside = (body.jaxpr if isinstance(body, core.ClosedJaxpr) else body).outvars
    return sum(one.aval.shape == out.aval.shape for one, out in zip(inside, scan.outvars, strict=True))


def _is_result(var: Any, arrays: dict[Any, _Array]) -> bool:
    return not isinstance(var, core.Literal) and var in arrays


def _programs(params: Any) -> Iterator[Any]:
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(one, (core.Jaxpr, core.ClosedJaxpr)):
                yield one


def array_bytes(aval: Any) -> int:
    """Bytes of an array of such shape and dtype; of what is no array, a key or a token, none."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        return 0
    return aval.size * dtype.itemsize
