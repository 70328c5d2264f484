"""Merges of checkpoints on disk: to disk, or many at once into memory, from one pass over the inputs."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import jax

from wsm_jax.checkpoints import storage
from wsm_jax.core import leaves as leaves_lib
from wsm_jax.core.leaves import AVERAGE, Weights
from wsm_jax.errors import UsageError
from wsm_jax.io import disk
from wsm_jax.io import memory as memory_lib
from wsm_jax.merging import job as job_lib
from wsm_jax.merging import placement, provenance, verification
from wsm_jax.merging.job import Job
from wsm_jax.parallel.processes import all_succeed

ROOM = 0.8  # share of the host's free memory that results may take


@overload
def merge_checkpoints(
    paths: Sequence[str | os.PathLike],
    weights: Weights,
    output: str | os.PathLike,
    *,
    metadata: Mapping[str, Any] | None = None,
    verify: bool = False,
    progress: bool = False,
    format: str | None = None,
    output_item: str | None = None,
    **options: Any,
) -> dict[str, Any]: ...


@overload
def merge_checkpoints(
    paths: Sequence[str | os.PathLike], weights: Weights, output: None = None, **options: Any
) -> Any: ...


def merge_checkpoints(
    paths: Sequence[str | os.PathLike],
    weights: Weights,
    output: str | os.PathLike | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    verify: bool = False,
    progress: bool = False,
    format: str | None = None,
    output_item: str | None = None,
    shardings: Any = None,
    **options: Any,
) -> Any:
    """:func:`wsm_jax.merge` of checkpoints on disk, Orbax or Hugging Face safetensors, in one pass.

    With ``output`` it goes from disk to disk, and memory depends neither on the number of inputs nor on the size of the
    model, unless an input can only be read in larger chunks. On several processes (``jax.distributed``) each reads and
    writes its part; all see one file system.

    Args:
      paths: checkpoint folders, oldest first.
      weights: as for :func:`wsm_jax.merge`; used as they are given.
      output: the folder to write; it appears whole or not at all, an Orbax checkpoint with the item ``params`` or a
        folder of safetensors. Without it the merge comes back in memory.
      metadata: with ``output``, JSON-ready: kept in the record beside the arrays.
      verify: with ``output``: read it back and compare samples with a sum in float64 before it appears.
      progress: show a bar.
      format: with ``output``: ``orbax`` or ``safetensors``; default: as the inputs.
      output_item: with ``output``: what an Orbax checkpoint calls the tree; default ``params``.
      shardings: without ``output``, as for :func:`merge_many`.
      options: ``item`` of Orbax checkpoints, one for all or a sequence with one for each path (None, the default:
        ``params``, else their only one), ``rules`` as for :func:`wsm_jax.merge`, ``dtype`` of the averaged leaves
        (``same`` or None, ``float32``, ``bfloat16``, ``float16``), ``memory`` (bytes of what is under way).

    Returns:
      without ``output`` the merged pytree of jax arrays; else the record: ``metadata``, ``inputs``, those that have a
      weight, each with it (where all leaves have the same) and a fingerprint of what was read, their ``weights``, and
      ``leaf_policies`` other than ``average``.

    Raises:
      UsageError: before any array is read: a missing or incomplete checkpoint, leaves that differ, an ``output`` that
        exists, too little disk. While reading: an array that cannot be read or holds a NaN or an infinity, named.
    """
    if output is None:
        if metadata is not None or verify or format is not None or output_item is not None:
            raise UsageError("metadata, verify, format and output_item go with an output")
        ((_, tree),) = merge_many(paths, {"merged": weights}, shardings=shardings, progress=progress, **options)
        return tree
    if shardings is not None:
        raise UsageError(f"shardings go with a merge in memory, not with an output ({output})")
    records = write_many(
        paths,
        {"merged": weights},
        {"merged": output},
        metadata={"merged": metadata or {}},
        verify=verify,
        progress=progress,
        format=format,
        output_item=output_item,
        **options,
    )
    return records["merged"]


def write_many(
    paths: Sequence[str | os.PathLike],
    weights: Mapping[str, Weights],
    outputs: Mapping[str, str | os.PathLike],
    *,
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
    verify: bool = False,
    progress: bool = False,
    format: str | None = None,
    output_item: str | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Several merges of the same checkpoints from one pass over them, each written to its own folder.

    Args:
      paths: checkpoint folders, oldest first.
      weights: name -> weights over all ``paths``; zeros leave checkpoints out.
      outputs: name -> folder to write.
      metadata: name -> what is kept in its record, JSON-ready.
      verify, progress, format, output_item, options: as for :func:`merge_checkpoints`.

    Returns:
      name -> record.

    Raises:
      UsageError: as :func:`merge_checkpoints`.
    """
    if format not in (None, *storage.FORMATS):
        raise UsageError(f"format {format!r}: choose {' or '.join(storage.FORMATS)}")
    for name, kept in (metadata or {}).items():
        try:
            json.dumps(kept)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the metadata of {name} must be what JSON can hold ({error})") from error
    with contextlib.ExitStack() as stack:
        with all_succeed():
            for output in outputs.values():
                storage.check_free(output)
            job = stack.enter_context(job_lib.prepare(paths, weights, **options))
            disk.check_disk(Path(next(iter(outputs.values()))).parent, job.bytes * len(outputs))
        folders = [stack.enter_context(storage.unfinished(outputs[name])) for name in job.names]
        sinks = [storage.create_sink(folder, job.results, job.sources[-1], format, output_item) for folder in folders]
        with all_succeed():
            found = job.run(lambda n, *part: sinks[n].write(*part), progress=progress)
            inputs = [source.record() for source in job.sources]
        records = {}
        if jax.process_count() == 1:
            inputs = [{**entry, "xxh3": digest} for entry, digest in zip(inputs, found, strict=True)]
        special = {path: policy for path, policy in job.policies.items() if policy != AVERAGE}
        weights = {  # a record says what each leaf has, not by which rule
            name: vectors if leaves_lib.is_ruled(weights[name]) else weights[name]
            for name, vectors in zip(job.names, job.vectors, strict=True)
        }
        for name, vectors, sink, folder in zip(job.names, job.vectors, sinks, folders, strict=True):
            own = dict((metadata or {}).get(name, {}))
            used = leaves_lib.used(vectors, len(inputs))
            own.setdefault("weights", provenance.as_lists(weights[name], used))
            read = [{**inputs[i], **provenance.weight_of(weights[name], i)} for i in used]
            records[name] = {**own, "inputs": read, "leaf_policies": special}
            with all_succeed():
                if jax.process_index() == 0:
                    sink.finish(records[name])
                    if verify:
                        verification.check(job, name, folder, format)
    return records


def merge_many(
    paths: Sequence[str | os.PathLike],
    weights: Mapping[str, Weights],
    *,
    shardings: Any = None,
    progress: bool = False,
    room: int | None = None,
    **options: Any,
) -> Iterator[tuple[str, Any]]:
    """Several merges of the same checkpoints, in memory, without writing them.

    All come from one pass over the disk where the results fit into ``room``, else from as few passes as that takes.
    Let go of each result before taking the next, and no more than ``room`` is held by them.

    Args:
      paths: checkpoint folders, oldest first.
      weights: name -> weights over all ``paths``, as for :func:`wsm_jax.merge`; zeros leave checkpoints out.
      shardings: a jax.sharding.Sharding for all leaves, or a tree of them; default: the first local device. Each
        process reads the rows that its devices hold.
      progress: show a bar.
      room: bytes of the results held at once; default: 80% of the memory that is free.
      options: as for :func:`merge_checkpoints`.

    Yields:
      name, merged pytree of jax arrays. Orbax: the tree as it was saved, nested dictionaries and lists whose keys are
      strings, whatever classes it had; safetensors: name -> array.

    Raises:
      UsageError: as :func:`merge_checkpoints`.
    """
    stack = contextlib.ExitStack()
    job = stack.enter_context(job_lib.prepare(paths, weights, **options))
    return _results(stack, job, shardings, progress, int(memory_lib.free() * ROOM) if room is None else room)


def _results(
    stack: contextlib.ExitStack, job: Job, shardings: Any, progress: bool, room: int
) -> Iterator[tuple[str, Any]]:
    with stack:
        passes = -(-len(job.names) // max(1, room // max(job.bytes, 1)))
        together = -(-len(job.names) // passes)  # alike in size: the smaller they are, the more inputs stay in memory
        for first in range(0, len(job.names), together):
            chosen = range(first, min(first + together, len(job.names)))
            results = placement.Results(job.results, job.sources[-1].tree(), shardings, len(chosen))
            job.run(results.write, chosen=chosen, ranges=results.ranges, progress=progress)
            for i in chosen:
                yield job.names[i], results.take(i - first)
