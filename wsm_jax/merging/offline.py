"""Merges of checkpoints on disk: to disk, or many at once into memory, from one pass over the inputs."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from wsm_jax.checkpoints import output as output_lib
from wsm_jax.checkpoints import storage
from wsm_jax.core import leaf_weights
from wsm_jax.core.leaf_weights import Weights
from wsm_jax.core.leaves import AVERAGE
from wsm_jax.errors import UsageError
from wsm_jax.io import disk, places
from wsm_jax.io import memory as memory_lib
from wsm_jax.merging import engine, provenance, verification
from wsm_jax.merging.results import Results
from wsm_jax.merging.spec import MEMORY, Merges, MergeSpec, opened
from wsm_jax.parallel.processes import all_succeed

ROOM = 0.8  # share of the host's free memory that results may take


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
    memory: int = MEMORY,
    **options: Any,
) -> Any:
    """:func:`wsm_jax.merge` of checkpoints on disk (Orbax, safetensors, PyTorch's files) in one pass.

    With ``output`` it goes from disk to disk, and memory depends neither on the number of inputs nor on the size of the
    model, unless an input can only be read in larger chunks. On several processes (``jax.distributed``) each reads and
    writes its part; all see one file system.

    Args:
      paths: checkpoint folders, or files of ``torch.save``, oldest first.
      weights: as for :func:`wsm_jax.merge`; used as they are given.
      output: the folder to write; it appears whole or not at all, an Orbax checkpoint with the item ``params`` or a
        folder of safetensors. Without it the merge comes back in memory.
      metadata: with ``output``, JSON-ready: kept in the record beside the arrays.
      verify: with ``output``: read it back and compare samples with a sum in float64 before it appears.
      progress: show a bar.
      format: with ``output``: ``orbax`` or ``safetensors``; default: as the inputs.
      output_item: with ``output``: what an Orbax checkpoint calls the tree; default ``params``.
      shardings: without ``output``, as for :func:`merge_many`.
      memory: bytes of what is under way.
      options: ``item`` of Orbax checkpoints, one for all or a sequence with one for each path (None, the default:
        ``params``, else their only one), ``rules`` as for :func:`wsm_jax.merge`, ``dtype`` of the averaged leaves
        (``same`` or None, ``float32``, ``bfloat16``, ``float16``), ``include_optimizer`` (merge what stands beside the
        ``params`` or ``model`` of a train state, too).

    Returns:
      without ``output`` the merged pytree of jax arrays; else the record: ``metadata``, ``inputs``, those that have a
      weight, each with it (where all leaves have the same) and a fingerprint of what was read, their ``weights``, and
      ``leaf_policies`` other than ``average``.

    Raises:
      UsageError: before any array is read: a missing or incomplete checkpoint, leaves that differ, an ``output`` that
        exists, too little disk. While reading: an array that cannot be read, is not what was written there, or holds a
        NaN or an infinity, named.
    """
    if output is None:
        if metadata is not None or verify or format is not None or output_item is not None:
            raise UsageError("metadata, verify, format and output_item go with an output")
        how = {"shardings": shardings, "progress": progress, "memory": memory}
        ((_, tree),) = merge_many(paths, {"merged": weights}, **how, **options)
        return tree
    if shardings is not None:
        raise UsageError(f"shardings go with a merge in memory, not with an output ({output})")
    items = options.pop("item", None)
    options |= {"output": places.at(output), "format": format, "item": output_item, "record": metadata or {}}
    spec = MergeSpec.of(paths, weights, items, **options)
    return write({"merged": spec}, verify=verify, progress=progress, memory=memory)["merged"]


def write(
    specs: Mapping[str, MergeSpec], *, verify: bool = False, progress: bool = False, memory: int = MEMORY
) -> dict[str, dict[str, Any]]:
    """Several merges with outputs from one pass over all that they read, each written to its own folder.

    Args:
      specs: name -> merge; all with the same rules and dtype.
      verify, progress, memory: as for :func:`merge_checkpoints`.

    Returns:
      name -> record.

    Raises:
      UsageError: as :func:`merge_checkpoints`.
    """
    outputs = [places.at(spec.output) for spec in specs.values() if spec.output is not None]
    with contextlib.ExitStack() as stack:
        with all_succeed():
            for output in outputs:
                output_lib.check_free(output)
            merges = stack.enter_context(opened(specs, memory))
            disk.check_disk(outputs[0].parent, merges.nbytes * len(outputs))
        folders = [stack.enter_context(output_lib.unfinished(output)) for output in outputs]
        sinks = [
            storage.create_sink(folder, merges.outputs(number), merges.sources[-1], spec.format, spec.item)
            for number, (folder, spec) in enumerate(zip(folders, specs.values(), strict=True))
        ]
        with all_succeed():
            found = engine.run(
                merges, lambda number, path, start, values: sinks[number].write(path, start, values), progress=progress
            )
            for sink in sinks:
                sink.share()
            inputs = [source.record() for source in merges.sources]
        if jax.process_count() == 1:
            inputs = [{**entry, "xxh3": digest} for entry, digest in zip(inputs, found, strict=True)]
        records = {name: _record(merges, number, inputs) for number, name in enumerate(specs)}
        for number, (record, sink, folder) in enumerate(zip(records.values(), sinks, folders, strict=True)):
            with all_succeed():
                if jax.process_index() == 0:
                    sink.finish(record)
                    if verify:
                        verification.check(merges, number, folder)
    return records


def _record(merges: Merges, number: int, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is kept of a merge: its own record, the inputs that it used with their weights, unusual policies."""
    spec, places = list(merges.specs.values())[number], merges.places[number]
    vectors = {path: vector[places] for path, vector in merges.vectors[number].items()}
    used = leaf_weights.used(vectors, len(places))
    weights = vectors if leaf_weights.is_ruled(spec.weights) else spec.weights  # what each leaf has, not by which rule
    return {
        **spec.record,
        "weights": spec.record.get("weights", provenance.as_lists(weights, used)),
        "inputs": [{**inputs[places[i]], **provenance.weight_of(weights, i)} for i in used],
        "leaf_policies": {path: policy for path, policy in merges.policies.items() if policy != AVERAGE},
    }


def merge_many(
    paths: Sequence[str | os.PathLike],
    weights: Mapping[str, Weights],
    *,
    shardings: Any = None,
    progress: bool = False,
    room: int | None = None,
    memory: int = MEMORY,
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
      memory, options: as for :func:`merge_checkpoints`.

    Yields:
      name, merged pytree of jax arrays. Orbax: the tree as it was saved, nested dictionaries and lists whose keys are
      strings, whatever classes it had, with the Python numbers and strings that were in it; safetensors: name -> array.

    Raises:
      UsageError: as :func:`merge_checkpoints`.
    """
    items = options.pop("item", None)
    specs = {name: MergeSpec.of(paths, vector, items, **options) for name, vector in weights.items()}
    return in_memory(specs, shardings=shardings, progress=progress, room=room, memory=memory)


def in_memory(
    specs: Mapping[str, MergeSpec],
    *,
    shardings: Any = None,
    progress: bool = False,
    room: int | None = None,
    memory: int = MEMORY,
) -> Iterator[tuple[str, Any]]:
    """:func:`merge_many` of ``specs``, name -> merge, all with the same rules and dtype."""
    stack = contextlib.ExitStack()
    merges = stack.enter_context(opened(specs, memory))
    return _passes(stack, merges, shardings, progress, int(memory_lib.free() * ROOM) if room is None else room)


def _passes(
    stack: contextlib.ExitStack, merges: Merges, shardings: Any, progress: bool, room: int
) -> Iterator[tuple[str, Any]]:
    with stack:
        names = list(merges.specs)
        passes = -(-len(names) // max(1, room // max(merges.nbytes, 1)))
        together = -(-len(names) // passes)  # alike in size: the smaller they are, the more inputs stay in memory
        for first in range(0, len(names), together):
            numbers = range(first, min(first + together, len(names)))
            results = Results(merges.results, merges.sources[-1].tree(), shardings, len(numbers))
            engine.run(merges, results.write, numbers=numbers, ranges=results.ranges, progress=progress)
            for number in numbers:
                yield names[number], results.take(number - first, merges.outputs(number))
