"""What ``wsm merge`` does with its options: explicit inputs, or a window of a run."""

import argparse
import re
from typing import Any

import numpy as np

from wsm_jax import coefficients
from wsm_jax.errors import UsageError
from wsm_jax.merging import offline, provenance, selection, storage
from wsm_jax.run import Run

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def parse_input(text: str) -> tuple[str, float | None]:
    """``PATH[:WEIGHT]``, split at the last ``:`` only where a number follows."""
    path, colon, weight = text.rpartition(":")
    if colon and path and _NUMBER.fullmatch(weight):
        return path, float(weight)
    return text, None


def input_weights(inputs: list[tuple[str, float | None]], curve: str | None) -> np.ndarray:
    """One weight for each input: as given, of a curve, or uniform.

    Raises:
      UsageError: weights and a curve together, weights for some inputs only.
    """
    given = [weight for _, weight in inputs if weight is not None]
    if given and curve:
        raise UsageError("give weights after the inputs or --curve, not both")
    if given and len(given) != len(inputs):
        bare = next(path for path, weight in inputs if weight is None)
        raise UsageError(f"{bare} has no weight but other inputs do; give all of them one or none")
    if given:
        return np.asarray(given)
    return coefficients.merge_weights(curve or "linear", len(inputs))


def merge_inputs(options: argparse.Namespace) -> dict[str, Any]:
    """``wsm merge IN[:WEIGHT] ... --output=OUT``; returns the record that is stored beside the arrays."""
    if not options.output:
        raise UsageError("wsm merge IN ... needs --output=OUT")
    for flag in ("count", "last_step", "interval", "name"):
        if getattr(options, flag) is not None:
            raise UsageError(f"--{flag} goes with --run, not with explicit inputs")
    if options.weight_decay_aware:
        raise UsageError("--weight_decay_aware goes with --run, which knows rate, decay and mask")
    inputs = [parse_input(text) for text in options.inputs]
    paths = [path for path, _ in inputs]
    storage.check(paths)
    weights = input_weights(inputs, options.curve)
    record = provenance.record(paths, weights, curve=options.curve, output=str(options.output))
    _write(options, paths, weights, record)
    return record


def merge_run(options: argparse.Namespace) -> dict[str, Any]:
    """``wsm merge --run=RUN --curve=C --count=N``; returns the record that is stored beside the arrays."""
    if not options.curve or options.count is None:
        raise UsageError("wsm merge --run=DIR needs --curve=C and --count=N")
    run = Run(options.directory)
    coefficients.merge_weights(options.curve, options.count)  # complains about the curve before looking for files
    window = selection.select(run, options.count, last_step=options.last_step, interval=options.interval)
    weights = selection.curve_weights(run, window, options.curve, weight_decay_aware=options.weight_decay_aware)
    name = options.name or selection.default_name(options.curve, window)
    options.output = options.output or str(run.merged(name))
    record = provenance.record(
        window.paths,
        weights,
        name=name,
        curve=options.curve,
        count=window.count,
        interval=window.interval,
        steps=list(window.steps),
        weight_decay_aware=options.weight_decay_aware,
        config_hash=run.facts["config_hash"],
        data_hash=run.facts["data_hash"],
        output=str(options.output),
    )
    _write(options, window.paths, weights, record)
    return record


def _write(options: argparse.Namespace, paths: Any, weights: Any, record: dict[str, Any]) -> None:
    offline.merge_checkpoints(
        paths,
        weights,
        item=options.item,
        output=options.output,
        metadata=record,
    )
