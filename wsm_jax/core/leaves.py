"""What a merge does with each leaf, and whether several checkpoints can be merged at all."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from wsm_jax.core.train_state import beside_parameters
from wsm_jax.errors import UsageError, warn

AVERAGE, LAST, FIRST, SKIP, ERROR = POLICIES = ("average", "last", "first", "skip", "error")

# One vector for all leaves, one for each leaf by its path ("blocks/mlp/up/kernel"), or (regular expression on the path,
# vector) pairs, of which the first that matches decides.
Weights = Any

# (regular expression on the path, policy); the first that matches decides.
Rules = Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A stored array.

    Attributes:
      shape: as stored.
      dtype: as stored; unlike jax.ShapeDtypeStruct it keeps 64-bit dtypes as they are.
      quantum: elements, in C order, that can only be read together (the rows of a stored chunk); 1 for raw bytes.
      scalar: whether it was saved as a Python number.
      key: the implementation of the random keys whose bits it holds; None for other arrays.
      text: the value of what was saved as a Python string, which has no elements; None for arrays.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    quantum: int = 1
    scalar: bool = False
    key: str | None = None
    text: str | None = None

    @property
    def size(self) -> int:
        """Elements."""
        return 0 if self.text is not None else math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes, uncompressed."""
        return self.size * self.dtype.itemsize


def parse_rule(text: str) -> tuple[str, str]:
    """``REGEX=POLICY``, split at the last ``=``.

    Raises:
      UsageError: another form, a regular expression that does not compile, an unknown policy.
    """
    pattern, equals, policy = text.rpartition("=")
    if not equals or policy not in POLICIES:
        raise UsageError(f"--leaves={text}: write REGEX=POLICY with a policy of {', '.join(POLICIES)}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--leaves={text}: {pattern!r} is not a regular expression ({error})") from error
    return pattern, policy


def leaf_policies(leaves: Mapping[str, Any], rules: Rules = (), *, parameters_only: bool = False) -> dict[str, str]:
    """path -> policy: of the first rule whose expression is found in the path, else the default.

    The default is ``average`` for floating arrays and ``last`` for the others: counters, masks, token ids, random keys,
    Python numbers and strings have no average, and the newest is the one that goes with the end of the window. The
    expert bias of loss-free balancing in mixtures of experts (``expert_bias``, ``e_score_correction_bias``) is floating
    and averaged like the router that it corrects; ``expert_bias=last`` keeps the newest, whose loads it was set for.
    Which is better is open.

    Args:
      leaves: path -> anything with a dtype, or a Python number.
      rules: (expression, policy) pairs.
      parameters_only: skip, with a warning, what stands beside the parameters of a train state and has no rule; see
        :func:`wsm_jax.core.train_state.beside_parameters`.

    Raises:
      UsageError: a leaf whose policy is ``error``; an average of a leaf that has none; a complex leaf, or integers that
        stand for other numbers, without a rule; a rule that matches nothing.
    """
    # A rule may be idle because an earlier one takes all its leaves; one that fits no path at all is a mistake.
    idle = [pattern for pattern, _ in rules if not any(re.search(pattern, path) for path in leaves)]
    if idle:
        raise UsageError(f"no leaf matches {idle[0]!r}; the leaves are {_few(leaves)}")
    beside = _beside(leaves) if parameters_only else {}
    ruled = {path: _by_rule(path, leaf, rules) for path, leaf in leaves.items()}
    if left := dict.fromkeys(tree for path, tree in beside.items() if ruled[path] is None):
        warn(f"only parameters are merged: {', '.join(left)} stands beside them and is left out (--include_optimizer)")
    return {
        path: ruled[path] or (SKIP if path in beside else _default(path, leaf, leaves)) for path, leaf in leaves.items()
    }


def _beside(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Leaves that stand beside the parameters, in subtrees that have something to average: a configuration is kept."""
    return {
        path: tree
        for tree, paths in beside_parameters(leaves).items()
        if any(is_averaged(leaves[path]) for path in paths)
        for path in paths
    }


def _by_rule(path: str, leaf: Any, rules: Rules) -> str | None:
    pattern, policy = next(((p, policy) for p, policy in rules if re.search(p, path)), ("", None))
    if policy is not None and policy not in POLICIES:
        raise UsageError(f"leaf {path}: unknown policy {policy!r}; choose {', '.join(POLICIES)}")
    if policy == ERROR:
        raise UsageError(f"leaf {path} ({_kind(leaf)}) is not to be merged: the rule {pattern!r} says so")
    if policy == AVERAGE and not is_floating(leaf):
        raise UsageError(f"leaf {path} is {_kind(leaf)}, which has no average; choose last, first or skip for it")
    return policy


def _default(path: str, leaf: Any, leaves: Mapping[str, Any]) -> str:
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        raise UsageError(f"leaf {path} is {leaf.dtype}, which is not averaged here; choose last, first or skip")
    if scale := _scale_of(path, leaf, leaves):
        raise UsageError(
            f"leaf {path} is {leaf.dtype} beside {scale}: quantized weights have no average; dequantize the "
            f"checkpoints first, or say what to do with them, e.g. --leaves='^{re.escape(path)}$=last'"
        )
    return AVERAGE if is_averaged(leaf) else LAST


def is_averaged(leaf: Any) -> bool:
    """Whether a leaf is averaged where no rule says what to do: a floating array."""
    return is_floating(leaf) and not is_scalar(leaf)


def is_floating(leaf: Any) -> bool:
    """Whether a leaf, or a Python number, has an average."""
    return isinstance(leaf, float) or (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating))


def is_scalar(leaf: Any) -> bool:
    """Whether it is, or was saved as, a Python number; an array without axes is not one."""
    return not hasattr(leaf, "dtype") or getattr(leaf, "scalar", False)


def _kind(leaf: Any) -> str:
    """What a leaf is made of, in words."""
    if getattr(leaf, "text", None) is not None:
        return "a string"
    return str(leaf.dtype) if hasattr(leaf, "dtype") else f"a Python {type(leaf).__name__}"


def _scale_of(path: str, leaf: Any, leaves: Mapping[str, Any]) -> str | None:
    """The leaf that holds the scales of an integer matrix: ``q.SCB`` of ``q.weight``, ``q.scales`` of ``q.qweight``."""
    stem, _, name = re.fullmatch(r"(?:(.*)([./]))?([^./]*)", path, re.DOTALL).groups()  # pyright: ignore
    whole = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.integer) and not getattr(leaf, "key", None)
    if not (whole and re.search("weight|kernel", name)):
        return None
    scale = "(SCB|absmax|q?scales?|scale_inv|(weight|kernel)_scale(_inv)?)"
    places = [re.escape(path), *([re.escape(stem)] if stem is not None else [])]
    pattern = re.compile(f"(?:(?:{'|'.join(places)})[./]{'' if stem is not None else '|'}){scale}", re.DOTALL)
    return next((other for other in leaves if pattern.fullmatch(other) and is_floating(leaves[other])), None)


def check_same(
    leaves: Sequence[Mapping[str, Any]], names: Sequence[str], policies: Mapping[str, str], *, any_float: bool = False
) -> None:
    """Checks that all checkpoints hold the same leaves with the same shapes and dtypes.

    Leaves that are skipped may differ or be missing.

    Args:
      leaves: for each checkpoint path -> anything with shape and dtype, or a Python number.
      names: what to call each of them in the error.
      policies: path -> policy, of all leaves of all checkpoints.
      any_float: the dtype of the result is given, so that those of floating leaves may differ.

    Raises:
      UsageError: naming the checkpoint and the first leaf that departs from the first checkpoint's.
    """
    first = {path: leaf for path, leaf in leaves[0].items() if policies[path] != SKIP}
    for other, name in zip(leaves[1:], names[1:], strict=True):
        missing = [path for path in first if path not in other]
        if missing:
            raise UsageError(f"{name} has no leaf {missing[0]}, which {names[0]} has{_way_out(missing[0], other)}")
        for path, leaf in other.items():
            if policies[path] == SKIP:
                continue
            if path not in first:
                raise UsageError(f"{name} has a leaf {path}, which {names[0]} lacks{_way_out(path, first)}")
            if _look(leaf) == _look(first[path]) or (is_scalar(leaf) and is_scalar(first[path])):
                continue
            floats = all(is_floating(one) for one in (leaf, first[path])) and policies[path] == AVERAGE
            floats = floats and np.shape(leaf) == np.shape(first[path])
            if not (floats and any_float):
                hint = "; --dtype=float32 merges them all the same" if floats else ""
                raise UsageError(
                    f"{name}: leaf {path} is {_look(leaf)}, in {names[0]} it is {_look(first[path])}{hint}"
                )


def _look(leaf: Any) -> str:
    """The same with its shape."""
    return _kind(leaf) + (f"{list(leaf.shape)}" if hasattr(leaf, "dtype") and _kind(leaf) != "a string" else "")


def _way_out(path: str, others: Mapping[str, Any]) -> str:
    """How to leave out a leaf that not all checkpoints have: a tied head is stored in some and not in others."""
    top = re.split("[./]", path)[0]
    pattern = f"^{re.escape(path)}$" if any(re.split("[./]", other)[0] == top for other in others) else f"^{top}"
    return f"; --leaves='{pattern}=skip' leaves it out, which is right for a tied head"


def infinite_hint(path: str) -> str:
    """What to type where a leaf with infinities is a mask and no weight; empty where its name does not say so."""
    name = re.split("[./]", path)[-1]
    return f"; a mask is kept by --leaves='{re.escape(name)}$=last'" if re.search("mask|bias", name) else ""


def common_dtype(leaves: Sequence[Leaf]) -> np.dtype:
    """The dtype in which a leaf of several checkpoints is merged: float32 where theirs differ."""
    if all(leaf.dtype == leaves[0].dtype for leaf in leaves):
        return leaves[0].dtype
    scalars = all(leaf.scalar for leaf in leaves)  # 0 in one and 0.1 in another
    return np.result_type(*(leaf.dtype for leaf in leaves)) if scalars else np.dtype(np.float32)


def weight_vectors(weights: Weights, paths: Sequence[str], count: int) -> dict[str, np.ndarray]:
    """path -> float64 [count], checked.

    Args:
      weights: one vector, a mapping from every path to its vector, or (regular expression, vector) pairs.
      paths: leaves that are averaged.
      count: number of checkpoints.

    Raises:
      UsageError: a wrong length, a weight that is not finite, weights that are all zero, a path without weights.
    """
    if is_ruled(weights):
        weights = _vectors_by_rule(weights, paths)
    if isinstance(weights, Mapping):
        missing = [path for path in paths if path not in weights]
        if missing:
            raise UsageError(f"no weights for leaf {missing[0]}")
        per_path = {path: weights[path] for path in paths}
    else:
        per_path = dict.fromkeys(paths, weights)
    checked = {}
    for path, vector in per_path.items():
        checked[path] = np.asarray(vector, np.float64)
        if checked[path].shape != (count,):
            raise UsageError(f"{count} checkpoints need {count} weights, got shape {checked[path].shape} for {path}")
        bad = np.flatnonzero(~np.isfinite(checked[path]))
        if bad.size:
            raise UsageError(f"weight {bad[0]} for {path} is {checked[path][bad[0]]}; it must be a finite number")
        if not checked[path].any():
            raise UsageError(f"the weights for {path} are all zero; one at least must not be (a mean: {1 / count:.6g})")
    return checked


def with_texts(
    results: Mapping[str, Leaf],
    policies: Mapping[str, str],
    inputs: Sequence[Mapping[str, Leaf]],
    vectors: Mapping[str, np.ndarray],
) -> dict[str, Leaf]:
    """The leaves of one merge's result, strings with the value that the first or last input with a weight has."""
    first, last = window_ends(vectors, len(inputs))
    ends = {FIRST: inputs[first], LAST: inputs[last]}
    return {path: leaf if leaf.text is None else ends[policies[path]][path] for path, leaf in results.items()}


def is_ruled(weights: Weights) -> bool:
    """Whether ``weights`` are (regular expression, vector) pairs."""
    return (
        isinstance(weights, Sequence)
        and bool(weights)
        and all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in weights)
    )


def _vectors_by_rule(rules: Sequence[tuple[str, Any]], paths: Sequence[str]) -> dict[str, Any]:
    """path -> the vector of the first rule whose expression is found in it; a path that none matches is left out.

    Raises:
      UsageError: an expression that is none, or that matches no path.
    """
    for pattern, _ in rules:
        try:
            matches = any(re.search(pattern, path) for path in paths)
        except re.error as error:
            raise UsageError(f"weights for {pattern!r}: no regular expression ({error})") from error
        if not matches:
            raise UsageError(
                f"weights for {pattern!r}: no averaged leaf matches; they are {_few(dict.fromkeys(paths))}"
            )
    found = {path: next((v for pattern, v in rules if re.search(pattern, path)), None) for path in paths}
    return {path: vector for path, vector in found.items() if vector is not None}


def window_ends(vectors: Mapping[str, np.ndarray], count: int) -> tuple[int, int]:
    """The first and last of :func:`used`, where ``first`` and ``last`` leaves come from."""
    numbers = used(vectors, count)
    return numbers[0], numbers[-1]


def used(vectors: Mapping[str, np.ndarray], count: int) -> list[int]:
    """Which of ``count`` checkpoints have a weight.

    Args:
      vectors: path -> weights; where there is none, or all are zero, every checkpoint counts.
      count: number of checkpoints.
    """
    return [i for i in range(count) if any(vector[i] for vector in vectors.values())] or list(range(count))


def _few(paths: Mapping[str, Any]) -> str:
    names = list(paths)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
