"""What the ways to ask ``wsm merge`` share. All make MergeSpecs, complete before any array is read."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsm_jax.checkpoints import output as output_lib
from wsm_jax.checkpoints.run import Run
from wsm_jax.core.leaves import parse_rule
from wsm_jax.errors import UsageError
from wsm_jax.io import places
from wsm_jax.merging import offline, weighting
from wsm_jax.merging.spec import MergeSpec, opened
from wsm_jax.merging.weighting import Rule


def run(options: argparse.Namespace, specs: Mapping[str, MergeSpec]) -> list[dict[str, Any]]:
    """Executes ``wsm merge``; returns the records stored beside the arrays, one for each merge.

    Args:
      options: of ``wsm merge``.
      specs: what they ask for, name -> merge.

    Raises:
      UsageError: bad inputs, before anything is written.
    """
    return list(offline.write(specs, verify=options.verify, progress=not options.json).values())


def explain(specs: Mapping[str, MergeSpec]) -> list[dict[str, Any]]:
    """What ``wsm merge`` would do with each leaf: ``{"leaf", "shape", "dtype", "policy", "result", "weights of"}``.

    ``weights of`` is the first leaf with the same weights; None for a leaf that is not averaged, and where all averaged
    leaves have the same.

    Raises:
      UsageError: as :func:`run`.
    """
    with opened(specs) as merges:
        first: dict[bytes, str] = {}
        rows = []
        for path, policy in merges.policies.items():
            leaf, result = merges.leaves[path], merges.results.get(path)
            vectors = [vector[path].tobytes() for vector in merges.vectors if path in vector]
            like = first.setdefault(b"".join(vectors), path) if vectors else None
            rows.append(
                {
                    "leaf": path,
                    "shape": list(leaf.shape),
                    "dtype": leaf.dtype.name,
                    "policy": policy,
                    "result": result.dtype.name if result else None,
                    "weights of": like,
                }
            )
        return [{**row, "weights of": None} for row in rows] if len(first) == 1 else rows


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """Rules, dtype and whether all of a train state is merged, as :func:`wsm_jax.merge_checkpoints` takes them."""
    rules = [parse_rule(text) for text in options.leaves or ()]
    return {"rules": rules, "dtype": options.dtype, "include_optimizer": options.include_optimizer}


def writing(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a MergeSpec that options give as they are."""
    return {**reading(options), "format": options.format, "item": options.output_item}


def changed(options: argparse.Namespace, rule: Rule) -> Rule:
    """The rule with what --extrapolate and --order make of it."""
    return weighting.changed(rule, extrapolate=options.extrapolate, order=options.order)


def warn(doubt: str | None) -> None:
    """One line on stderr, where there is a doubt."""
    if doubt:
        print(f"wsm: warning: {doubt}", file=sys.stderr)


def output_path(options: argparse.Namespace, merging: Run, name: str, *, check: bool = True) -> Path:
    """Where a merge of that name is written.

    Raises:
      UsageError: a name that is none, or with ``check``: something is there, and the merge is not only explained.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UsageError(f"--name={name} must be the name of one folder; it is made in {merging.merged('')}")
    within = [] if options.every is None else [name]
    output = places.at(options.output).joinpath(*within) if options.output else merging.merged(name)
    return unused(options, output) if check else output


def unused(options: argparse.Namespace, output: Path) -> Path:
    """``output``, after a look whether something is there, unless the merge is only explained."""
    if not options.explain:
        output_lib.check_free(output)
    return output
