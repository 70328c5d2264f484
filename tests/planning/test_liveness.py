"""The memory of traced programs, where it can be told by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from wsm_jax.planning import liveness

N = 64
ARRAY = 4 * N * N  # bytes


def peak(function: Any, *shapes: tuple[int, ...]) -> float:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return liveness.peak(jax.make_jaxpr(function)(*arguments), liveness.array_bytes) / ARRAY


SQUARE = (N, N)


@pytest.mark.parametrize(
    ("function", "arrays"),
    [
        (lambda x: x @ x, 1),
        (lambda x: (x @ x) @ x, 2),  # the first product is read while the second is made
        (lambda x: ((x @ x) @ x) @ x, 2),
        (lambda x: jnp.tanh(x * 2 + 1), 1),  # one pass
        (lambda x: jnp.tanh(x @ x), 1),  # over what it reads last
        (lambda x: jnp.tanh(x) @ x, 2),  # a product wants its operand in memory
        (lambda x: jax.jit(lambda y: y @ y)(x) @ x, 2),
        (lambda x: [x @ x for _ in range(3)], 3),
        (lambda x: jnp.sum(jnp.exp(x) * x), 0),
    ],
)
def test_of_products_and_what_is_fused(function, arrays):
    assert peak(function, SQUARE) == pytest.approx(arrays, abs=0.01)


def test_a_function_that_is_called_twice_takes_its_memory_twice():
    square = jax.jit(lambda x: x @ x)
    assert peak(lambda x: (square(x), square(x.T)), SQUARE) == pytest.approx(2 + 1)  # and the operand turned round


def test_a_loop_takes_one_turn_and_what_it_stacks():
    def turns(x: jax.Array, ws: jax.Array) -> Any:
        return jax.lax.scan(lambda x, w: (x @ w, jnp.sum(x)), x, ws)

    def stacks(x: jax.Array, ws: jax.Array) -> Any:
        return jax.lax.scan(lambda x, w: (x @ w, x @ w), x, ws)

    assert peak(turns, SQUARE, (8, N, N)) == pytest.approx(1 + 1, abs=0.01)
    assert peak(stacks, SQUARE, (8, N, N)) == pytest.approx(1 + 8 + 2)


def test_recomputation_keeps_what_it_begins_with_and_no_more():
    def loss(xs: jax.Array, policy: bool) -> jax.Array:
        layer = lambda x: jnp.tanh(jnp.tanh(x @ x) @ x) @ x  # noqa: E731
        for _ in range(6):
            xs = (jax.checkpoint(layer) if policy else layer)(xs)
        return xs.sum()

    kept, recomputed = (peak(jax.grad(lambda x, p=policy: loss(x, p)), SQUARE) for policy in (False, True))
    assert kept > 3 * 5 and recomputed < kept / 1.5
