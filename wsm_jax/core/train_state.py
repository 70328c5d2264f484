"""Which part of a saved train state is its parameters."""

import re
from collections.abc import Iterable

PARAMETERS = ("params", "model")


def beside_parameters(paths: Iterable[str]) -> dict[str, list[str]]:
    """The subtrees that stand beside a subtree ``params`` or ``model``, as ``opt_state`` does in a saved train state.

    Nothing inside the parameters counts, whatever it is called. A subtree beside ``model`` counts where it is called an
    optimizer or repeats the model's paths, as Adam's moments do: a Transformer's ``lm_head`` stands beside its
    ``model``, too.

    Args:
      paths: of all leaves, "opt_state/0/mu/kernel".

    Returns:
      "opt_state" -> paths of its leaves.
    """
    split = [path.split("/") for path in paths]
    children: dict[str, set[str]] = {}  # subtree -> its subtrees
    for parts in split:
        for depth, name in enumerate(parts[:-1]):
            children.setdefault("/".join(parts[:depth]), set()).add(name)
    found: dict[str, list[str]] = {}
    beside: dict[str, str] = {}  # a subtree that was found -> the parameters that it stands beside
    for parts in split:
        for depth, name in enumerate(parts[:-1]):
            if name in PARAMETERS:
                break
            inside = children["/".join(parts[:depth])]
            if parameters := next((one for one in PARAMETERS if one in inside), None):
                subtree = "/".join(parts[: depth + 1])
                found.setdefault(subtree, []).append("/".join(parts))
                beside[subtree] = "/".join([*parts[:depth], parameters])
                break
    known = {tuple(parts) for parts in split}
    return {tree: leaves for tree, leaves in found.items() if _is_state(tree, leaves, beside[tree], known)}


def _is_state(tree: str, leaves: list[str], parameters: str, known: set[tuple[str, ...]]) -> bool:
    """Whether a subtree is the optimizer's, or a copy of the parameters, and no part of the model."""
    if parameters.rpartition("/")[2] == "params" or re.match("opt", tree.rpartition("/")[2], re.IGNORECASE):
        return True
    tails = [path.removeprefix(f"{tree}/").split("/") for path in leaves]
    root = tuple(parameters.split("/"))
    return any((*root, *tail[depth:]) in known for tail in tails for depth in range(len(tail)))
