"""What lies in a folder – a run, a checkpoint, a merge – told from metadata, without reading an array."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsm_jax.checkpoints import huggingface, integrity, orbax, storage, torch_source
from wsm_jax.checkpoints.run import Run
from wsm_jax.errors import UsageError
from wsm_jax.io import hashes, places
from wsm_jax.io.files import read_json


def inspect(path: str | os.PathLike, item: str | None = None) -> dict[str, Any]:
    """Facts about a run directory or a checkpoint (Orbax, safetensors, PyTorch), JSON-ready.

    Args:
      path: the folder, or the file.
      item: of an Orbax checkpoint; default ``params``, else its only one. Of a file of PyTorch: which of its tensors.

    Returns:
      for a run ``kind="run"``, its length, streams and merges; else ``kind="checkpoint"``, format, counts, ``leaves``
      (path -> shape and dtype) and ``record`` (what was saved beside the arrays: for a merge where it comes from).

    Raises:
      UsageError: neither.
    """
    path = places.at(path)
    return (
        _run(path) if (path / "config.json").is_file() and (path / "checkpoints").is_dir() else _checkpoint(path, item)
    )


def verify(path: str | os.PathLike) -> dict[str, Any]:
    """Compares everything under a run, a stream, a step or a merge with the hashes that were saved with it.

    Returns:
      JSON-ready: ``checked``, how many checkpoints; ``damaged``, a list of ``file``, ``what`` and ``advice``; and
      ``unhashed``, the checkpoints without hashes, as earlier versions saved them.

    Raises:
      UsageError: no checkpoint there.
    """
    path = places.at(path)
    found = list(_checkpoints(path))
    if not found:
        raise UsageError(f"{path} is no checkpoint and no run or stream that holds any")
    damaged, unhashed = [], []
    for place in found:
        try:
            if not (place / hashes.FILE).exists():
                integrity.note_absence(place)
                unhashed.append(str(place))
        except UsageError:
            damaged.append((place, integrity.Damage(place / hashes.FILE, "is missing")))
        damaged += [(place, damage) for damage in integrity.damages(place)]
    listed = [{"file": str(d.file), "what": d.what, "advice": integrity.advice(place)} for place, d in damaged]
    return {"kind": "hashes", "path": str(path), "checked": len(found), "damaged": listed, "unhashed": unhashed}


def _checkpoints(path: Path) -> Iterator[Path]:
    """Folders of a run's streams and merges, or of a stream, or a checkpoint itself, also where its metadata are gone.

    A step is a step by its name: damage may make it none for Orbax.
    """
    if (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        for inside in (path / "checkpoints" / "resume", path / "checkpoints" / "merge", path / "merged"):
            yield from _checkpoints(inside) if inside.is_dir() else ()
    elif (path / hashes.FILE).exists() or storage.is_checkpoint(path):
        yield path
    elif path.is_dir():
        inside = [
            p for p in path.iterdir() if p.name[0] != "." and ((p / hashes.FILE).exists() or storage.is_checkpoint(p))
        ]
        yield from sorted(
            inside, key=lambda p: (not p.name.isdecimal(), int(p.name) if p.name.isdecimal() else 0, p.name)
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
    if isinstance(source, torch_source.Source):
        form, record, items = "torch", {}, {"left_out": source.left_out}
    elif isinstance(source, huggingface.Source):
        beside = path / huggingface.RECORD
        form, record, items = storage.SAFETENSORS, read_json(beside) if beside.is_file() else {}, {}
    else:
        form, record, items = storage.ORBAX, orbax.user_metadata(path), {"items": orbax.item_names(path)}
    return {
        "kind": "checkpoint",
        "path": str(path),
        "format": form,
        **items,
        "arrays": len(leaves),
        "elements": sum(leaf.size for leaf in leaves.values()),
        "bytes": sum(leaf.nbytes for leaf in leaves.values()),
        "dtypes": dict(Counter(leaf.dtype.name for leaf in leaves.values())),
        # Raw bytes are read at the disk's speed; others as whole chunks through TensorStore.
        "raw": all(leaf.quantum == 1 for leaf in leaves.values()),
        "leaves": {name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name} for name, leaf in leaves.items()},
        "record": record,
    }
