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
        raise UsageError(f"no leaf matches {idle[0]!r}; the leaves are {few(leaves)}")
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
    stem, _, name = re.fullmatch(r"(?:(.*)([./]))?([^./]*)", path, re.DOTALL).groups()  # pyrefly: ignore
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


def few(paths: Mapping[str, Any]) -> str:
    names = list(paths)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
