"""Merge weights learned by gradient through the merge, inside the simplex.

For theta(c) = sum_j c_j theta_j the gradient is d loss / d c_j = <d loss / d theta, theta_j>, which ``jax.grad`` takes
through :func:`combine`; only the weights are trained, never the parameters.

Source: Trainable Weight Averaging (TWA, ICLR 2023), which trains in the span of saved solutions. Where this departs:
TWA takes any coefficients of an orthonormal basis of the span, and trains them on the training data with SGD. Here the
weights stay on the simplex, the data are held out, and the optimizer is Adam on the logits of a softmax.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from wsm_jax.core import coefficients
from wsm_jax.core.coefficients import Vector
from wsm_jax.core.leaves import AVERAGE
from wsm_jax.core.trees import named_leaves
from wsm_jax.errors import UsageError
from wsm_jax.merging import offline
from wsm_jax.merging.spec import MergeSpec, opened
from wsm_jax.parallel import chips, sharding
from wsm_jax.parallel.sharding import LeafAxes

Loss = Callable[[Any, Any], tuple[jax.Array, jax.Array]]

# Share of the start that is spread over all vertices: the gradient of a softmax vanishes where its output is zero.
_SPREAD = 0.05


@dataclasses.dataclass(frozen=True)
class Fit:
    """Learned weights and how they were found.

    Attributes:
      weights: float64 [K], oldest first, non-negative, summing to 1: those of the lowest loss that was measured.
      step: the update after which they were measured; 0 = the start.
      losses: [(update, loss of the whole data)], the first at the start.
    """

    weights: Vector
    step: int
    losses: list[tuple[int, float]]

    @property
    def before(self) -> float:
        """Loss at the start."""
        return self.losses[0][1]

    @property
    def after(self) -> float:
        """Loss of :attr:`weights`, never above :attr:`before`."""
        return dict(self.losses)[self.step]


def vertices(count: int, monotone: bool = False) -> Vector:
    """The extreme points of the set in which the weights are sought, float64 [count, count], a point in each row.

    On the simplex every c already emulates a non-increasing decay (Theorem 3.1), and the vertices are the single
    checkpoints. ``monotone`` asks for more: c_0 <= c_1 <= ... <= c_k, no checkpoint weighs more than a newer one. The
    update weights w then fall ever faster, a concave decay: the uniform mean (``linear``), ``square`` and WMA are such,
    1-sqrt is not. The vertices of that set are the uniform means of the latest 1, 2, ..., count checkpoints, so a point
    of it is a mixture of LAWA averages. It has as many degrees of freedom but cannot single out an old checkpoint that
    happens to suit the fitted data.
    """
    if not monotone:
        return np.eye(count)
    return np.asarray([np.where(np.arange(count) >= count - n, 1.0 / n, 0.0) for n in range(1, count + 1)])


def mixture(start: Vector, corners: Vector) -> Vector:
    """The shares of ``corners`` that make up the weights ``start``, float64 [count], on the simplex.

    Raises:
      UsageError: ``start`` lies outside their convex hull.
    """
    shares = np.linalg.solve(corners.T, np.asarray(start, np.float64))
    if shares.min() < -1e-9:
        place = int(np.argmax(np.diff(start) < -1e-12))
        raise UsageError(
            f"the start gives checkpoint {place} (0 = oldest) more weight, {start[place]:.6g}, than checkpoint "
            f"{place + 1}, {start[place + 1]:.6g}, which monotone does not allow; start from linear, square or wma"
        )
    return np.maximum(shares, 0.0) / np.maximum(shares, 0.0).sum()


def combine(stacked: Any, weights: jax.Array) -> Any:
    """sum_j weights_j theta_j for a tree whose leaves have the checkpoints in front, [K, ...]; differentiable."""
    # Accelerators would multiply float32 in fewer bits.
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1, precision="highest"), stacked)


def fit(
    stacked: Any,
    loss: Loss,
    batches: Sequence[Any],
    start: Vector,
    *,
    steps: int = 100,
    learning_rate: float = 0.1,
    seed: int = 0,
    monotone: bool = False,
    checks: int = 10,
    where: jax.sharding.Sharding | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Fit:
    """Weights that lower the loss of the merge, by Adam with a cosine decay of its rate, over single batches.

    The batches come in an order that only ``seed`` decides, each once in an epoch. Of the start and the weights after
    ``checks`` evenly spaced updates those with the lowest loss over all batches are taken.

    Args:
      stacked: a tree of floating leaves [K, ...], oldest first.
      loss: (tree, batch) -> (summed loss, number of summands); scalars.
      batches: trees that ``loss`` takes, at least one; all are used in every check.
      start: weights [K] on the simplex, e.g. of :func:`wsm_jax.merge_weights`.
      steps: updates, at least 1.
      learning_rate: of Adam, on the logits, at the first update.
      seed: of the order of the batches, at least 0.
      monotone: see :func:`vertices`.
      checks: how often the loss over all batches is measured, beside the start.
      where: the devices of the weights, those of ``stacked``; default: the first one.
      say: told the loss at every check.

    Raises:
      UsageError: a value out of range, a start off the simplex or that ``monotone`` does not allow, a loss that is
        not finite.
    """
    check_settings(steps, seed)
    start = np.asarray(start, np.float64)
    _check_fit(stacked, batches, start, checks)
    count = len(start)
    corners = vertices(count, monotone)
    logits = jnp.asarray(np.log((1 - _SPREAD) * mixture(start, corners) + _SPREAD / count), jnp.float32)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    # Placed like what an update returns, or the second update would be compiled anew.
    logits, state, points = jax.device_put(
        (logits, optimizer.init(logits), jnp.asarray(corners, jnp.float32)), where or jax.local_devices()[0]
    )

    whole = _whole_loss(stacked, loss, batches)
    before, number = whole(start)
    # So scaled, the gradient averaged over an epoch is that of the whole loss, however full the batches are.
    scale = len(batches) / number

    @jax.jit
    def update(logits: jax.Array, state: Any, corners: jax.Array, stacked: Any, batch: Any) -> tuple[jax.Array, Any]:
        def objective(logits: jax.Array) -> jax.Array:
            weights = jnp.matmul(jax.nn.softmax(logits), corners, precision="highest")
            return scale * loss(combine(stacked, weights), batch)[0]

        change, state = optimizer.update(jax.grad(objective)(logits), state)
        return optax.apply_updates(logits, change), state  # pyrefly: ignore

    losses, best = [(0, before)], (before, 0, start)
    say(f"update 0 of {steps}: loss {before:.5f}")
    due = {round(step) for step in np.linspace(0, steps, min(checks, steps) + 1)}
    for step in range(1, steps + 1):
        epoch, place = divmod(step - 1, len(batches))
        if place == 0:
            order = np.random.default_rng([seed, epoch]).permutation(len(batches))
        logits, state = update(logits, state, points, stacked, batches[order[place]])
        if step in due:
            weights = on_simplex(logits, corners)
            losses.append((step, whole(weights)[0]))
            best = min(best, (losses[-1][1], step, weights), key=lambda entry: entry[0])
            say(f"update {step} of {steps}: loss {losses[-1][1]:.5f}")
    return Fit(best[2], best[1], losses)


def _whole_loss(stacked: Any, loss: Loss, batches: Sequence[Any]) -> Callable[[Vector], tuple[float, float]]:
    """weights -> the loss of their merge over all batches, and the number of summands."""
    merged, evaluate = jax.jit(combine), jax.jit(loss)

    def whole(weights: Vector) -> tuple[float, float]:
        params = merged(stacked, jnp.asarray(weights, jnp.float32))
        # One batch after the other: programs that run at once on several devices may wait for one another for ever.
        parts = [jax.device_get(evaluate(params, batch)) for batch in batches]
        total, number = np.sum(np.asarray(parts, np.float64), axis=0)
        if not np.isfinite(total):
            raise UsageError(f"the loss of a merge with the weights {np.round(weights, 4).tolist()} is {total}")
        return float(total / number), float(number)

    return whole


def _check_fit(stacked: Any, batches: Sequence[Any], start: Vector, checks: int) -> None:
    if checks < 1:
        raise UsageError(f"checks={checks} must be at least 1")
    if not batches:
        raise UsageError("there is nothing to fit to: no batch was given")
    coefficients.update_weights(start)  # complains about weights that are not on the simplex
    if any(leaf.shape[:1] != start.shape for leaf in jax.tree.leaves(stacked)):
        raise UsageError(f"the start has {len(start)} weights, but the leaves do not hold as many checkpoints each")


def check_settings(steps: int, seed: int) -> None:
    """Raises UsageError where :func:`fit` cannot work with them."""
    for name, value, least, most in (("steps", steps, 1, 10**6), ("seed", seed, 0, 2**63 - 1)):
        if value < least:
            raise UsageError(f"fit_{name}={value} must be at least {least}")
        if value > most:
            raise UsageError(f"fit_{name}={value} must be at most {most}")


def on_simplex(logits: Any, corners: Vector) -> Vector:
    """softmax(logits) @ corners, in float64: non-negative, summing to 1 to rounding, inside the hull of ``corners``."""
    exponents = np.asarray(logits, np.float64)
    shares = np.exp(exponents - exponents.max())
    return shares / shares.sum() @ corners


def load(paths: Sequence[Path], mesh: Mesh, axes: LeafAxes | None = None, *, room: int | None = None) -> Any:
    """The checkpoints as one tree of float32 leaves [K, ...], oldest first, after a look at the memory that takes.

    Each leaf is cut as the rules say, and the checkpoints are shared out over ``data`` where K is a multiple of it.

    Args:
      paths: checkpoint folders.
      mesh: the devices.
      axes: path -> logical axes of a leaf; None: leaves are whole.
      room: bytes that each device has; default: what is free on it, or on the host.

    Raises:
      UsageError: too little memory (activations are not counted), checkpoints that cannot be merged, a leaf that is not
        floating, a NaN or an infinity.
    """
    count = len(paths)
    mean = MergeSpec.of(paths, np.full(count, 1.0 / count), dtype="float32")
    with opened({"mean": mean}) as merges:
        for leaf, policy in merges.policies.items():
            if policy != AVERAGE:
                raise UsageError(f"leaf {leaf} of {paths[0]} is not floating, so its weights cannot be learned")
        shapes = {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in merges.results.items()}
        one = sharding.tree_shardings(mesh, shapes, axes)
        every = {path: sharding.stacked(where, count) for path, where in one.items()}
        needed = 3 * sharding.device_bytes(shapes, one) + sharding.device_bytes(
            {path: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype) for path, leaf in shapes.items()}, every
        )
        free = chips.free_memory(mesh) if room is None else room
        if needed > free:
            raise UsageError(
                f"learning the weights of {count} checkpoints of {merges.nbytes / 1e9:.3f} GB takes {needed / 1e9:.3f} "
                "GB on each device (the checkpoints, their merge, its gradient and one being read), but "
                f"{free / 1e9:.3f} GB are free; take fewer, or --curve=search, which needs few merges at a time"
            )

    @jax.jit(donate_argnums=0, out_shardings=every)
    def put(stacked: Any, tree: Any, place: Any) -> Any:
        return {path: rows.at[place].set(tree[path]) for path, rows in stacked.items()}

    stacked = {path: jnp.zeros((count, *leaf.shape), leaf.dtype, device=every[path]) for path, leaf in shapes.items()}
    options = {"dtype": "float32", "shardings": one, "room": 0}  # no room: one after the other
    single = {str(place): row for place, row in enumerate(np.eye(count))}
    tree: Any = None
    for place, tree in offline.merge_many(paths, single, **options):
        stacked = put(stacked, named_leaves(tree), int(place))
    return jax.tree.unflatten(jax.tree.structure(tree), [stacked[path] for path in named_leaves(tree)])
