"""What lies in a folder – a run, a checkpoint, a merge – told from metadata, without reading an array."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from wsm_jax.checkpoints import huggingface, orbax, storage
from wsm_jax.checkpoints.run import Run
from wsm_jax.io.files import read_json


def inspect(path: str | os.PathLike, item: str | None = None) -> dict[str, Any]:
    """Facts about a run directory, an Orbax checkpoint or a safetensors folder, JSON-ready.

    Args:
      path: the folder.
      item: of an Orbax checkpoint; default ``params``, else its only one.

    Returns:
      for a run ``kind="run"``, its length, streams and merges; else ``kind="checkpoint"``, format, counts, ``leaves``
      (path -> shape and dtype) and ``record`` (what was saved beside the arrays: for a merge where it comes from).

    Raises:
      UsageError: neither.
    """
    path = Path(path)
    return (
        _run(path) if (path / "config.json").is_file() and (path / "checkpoints").is_dir() else _checkpoint(path, item)
    )


def _run(path: Path) -> dict[str, Any]:
    run = Run(path)
    merged = (
        sorted(p.name for p in run.merged("").iterdir() if storage.is_checkpoint(p)) if run.merged("").is_dir() else []
    )
    return {
        "kind": "run",
        "path": str(path),
        "steps": run.plan.steps,
        "tokens_per_step": run.plan.tokens_per_step,
        "schedule": run.config.schedule.name,
        "parameters": run.facts["parameters"],
        "config_hash": run.facts["config_hash"],
        "config_id": run.config_id,
        "resume_steps": orbax.complete_steps(run.resume_stream),
        "merge_interval": run.plan.merge_interval,
        "merge_steps": orbax.complete_steps(run.merge_stream),
        "merged": merged,
    }


def _checkpoint(path: Path, item: str | None) -> dict[str, Any]:
    source = storage.open_source(path, item)
    try:
        leaves = source.leaves
    finally:
        source.close()
    safetensors = isinstance(source, huggingface.Source)
    if safetensors:
        beside = path / huggingface.RECORD
        record = read_json(beside) if beside.is_file() else {}
    else:
        record = orbax.user_metadata(path)
    return {
        "kind": "checkpoint",
        "path": str(path),
        "format": storage.SAFETENSORS if safetensors else storage.ORBAX,
        **({} if safetensors else {"items": orbax.item_names(path)}),
        "arrays": len(leaves),
        "elements": sum(leaf.size for leaf in leaves.values()),
        "bytes": sum(leaf.nbytes for leaf in leaves.values()),
        "dtypes": dict(Counter(leaf.dtype.name for leaf in leaves.values())),
        # Raw bytes are read at the disk's speed; others as whole chunks through TensorStore.
        "raw": all(leaf.quantum == 1 for leaf in leaves.values()),
        "leaves": {name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name} for name, leaf in leaves.items()},
        "record": record,
    }
