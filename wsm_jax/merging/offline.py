"""Merges of checkpoints on disk: to disk, or many at once into memory, from one pass over the inputs."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from wsm_jax import disk
from wsm_jax import memory as memory_lib
from wsm_jax.errors import UsageError
from wsm_jax.merging import engine, placement, plan, storage, verification
from wsm_jax.merging import leaves as leaves_lib
from wsm_jax.merging.leaves import AVERAGE, SKIP, Leaf, Rules, Weights
from wsm_jax.merging.storage import Source
from wsm_jax.processes import all_succeed

DTYPES = ("same", "float32", "bfloat16", "float16")
ROOM = 0.8  # share of the host's free memory that results may take


@dataclasses.dataclass(frozen=True)
class Job:
    """Merges of the same checkpoints, checked and ready to run.

    Attributes:
      sources: the inputs, oldest first.
      names: of the merges.
      vectors: for each merge path -> float64 [inputs].
      policies: path -> policy.
      leaves: path -> leaf of the inputs, with the quantum of the coarsest.
      results: path -> leaf of the result; what is skipped is not there.
      memory: bytes of the workers together.
    """

    sources: list[Source]
    names: list[str]
    vectors: list[dict[str, np.ndarray]]
    policies: dict[str, str]
    leaves: dict[str, Leaf]
    results: dict[str, Leaf]
    memory: int

    @property
    def bytes(self) -> int:
        """Bytes of one result."""
        return sum(leaf.nbytes for leaf in self.results.values())

    def run(
        self,
        write: engine.Write,
        *,
        chosen: range | None = None,
        ranges: Mapping[str, tuple[int, int]] | None = None,
        progress: bool = False,
    ) -> list[str | None]:
        """Executes the merges ``chosen`` (default: all).

        Args:
          write: see :func:`engine.execute`.
          chosen: numbers of the merges.
          ranges: what of each leaf this process wants; without it the processes of a distributed run share all groups.
          progress: show a bar.

        Returns:
          the fingerprints of what was read of the inputs.
        """
        chosen = range(len(self.names)) if chosen is None else chosen
        vectors = [self.vectors[i] for i in chosen]
        groups = plan.make_plan(
            self.leaves,
            self.policies,
            vectors,
            len(self.sources),
            memory=self.memory // engine.WORKERS,
            ranges=ranges,
        )
        if ranges is None:
            groups = groups[jax.process_index() :: jax.process_count()]
        return engine.execute(
            self.sources,
            groups,
            write,
            dtypes={path: leaf.dtype for path, leaf in self.results.items()},
            quanta={path: leaf.quantum for path, leaf in self.leaves.items()},
            names=[self.names[i] for i in chosen],
            memory=self.memory,
            progress=progress and jax.process_index() == 0,
        ).hexdigests()


@contextlib.contextmanager
def prepare(
    paths: Sequence[str | os.PathLike],
    weights: Mapping[str, Weights],
    *,
    item: storage.Items = None,
    rules: Rules = (),
    dtype: str = "same",
    memory: int = engine.MEMORY,
) -> Iterator[Job]:
    """Opens and checks everything, reading metadata only; arguments and errors as :func:`merge_checkpoints`."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype={dtype!r}: choose {', '.join(DTYPES)}")
    if not weights:
        raise UsageError("nothing to merge: no weights were given")
    with storage.open_sources(paths, item) as sources:
        leaves_lib.check_same([source.leaves for source in sources], [str(source.path) for source in sources], rules)
        every = {path: leaf for source in sources for path, leaf in source.leaves.items()}
        found = leaves_lib.leaf_policies(every, rules)
        policies = {path: found[path] for path in sources[0].leaves}
        averaged = [path for path, policy in policies.items() if policy == AVERAGE]
        leaves = plan.common_leaves([source.leaves for source in sources])
        results = {}
        for path, policy in policies.items():
            out = leaves[path].dtype if dtype == "same" or policy != AVERAGE else jnp.dtype(dtype)
            if policy == AVERAGE and out == np.float64:
                raise UsageError(f"leaf {path} is float64, but merges are float32 at best; ask for dtype=float32")
            if policy != SKIP:
                results[path] = Leaf(leaves[path].shape, np.dtype(out))
        vectors = [leaves_lib.weight_vectors(vector, averaged, len(paths)) for vector in weights.values()]
        yield Job(sources, list(weights), vectors, policies, leaves, results, memory)


@overload
def merge_checkpoints(
    paths: Sequence[str | os.PathLike],
    weights: Weights,
    output: str | os.PathLike,
    *,
    metadata: Mapping[str, Any] | None = None,
    verify: bool = False,
    progress: bool = False,
    form: str | None = None,
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
    **options: Any,
) -> Any:
    """:func:`wsm_jax.merge` of checkpoints on disk, Orbax or Hugging Face safetensors, in one pass.

    With ``output`` it goes from disk to disk, and memory depends neither on the number of inputs nor on the size of the
    model, unless an input can only be read in larger chunks. On several processes (``jax.distributed``) each reads and
    writes its part; all see one file system.

    Args:
      paths: checkpoint folders, oldest first.
      weights: as for :func:`wsm_jax.merge`.
      output: the folder to write; it appears whole or not at all. Without it the merge comes back in memory.
      options: ``item`` of Orbax checkpoints, one for all or a sequence with one for each path (None, the default:
        ``params``, else their only one), ``rules`` as for :func:`wsm_jax.merge`, ``dtype`` of the averaged leaves
        (``same``, ``float32``, ``bfloat16``, ``float16``), ``memory`` (bytes of what is under way), ``progress`` (show
        a bar). With ``output`` also ``metadata`` (kept in the record beside the arrays), ``verify`` (read the output
        back and compare samples with a sum in float64 before it appears) and ``form`` (``orbax`` or ``safetensors``;
        default: as the inputs). Without it ``shardings`` as for :func:`merge_many`.

    Returns:
      without ``output`` the merged pytree of jax arrays; else the record: ``metadata``, ``inputs`` from the first to
      the last that has a weight, each with a fingerprint of what was read of it, and ``leaf_policies`` other than
      ``average``.

    Raises:
      UsageError: before any array is read: a missing or incomplete checkpoint, leaves that differ, an ``output`` that
        exists, too little disk. While reading: an array that cannot be read or holds a NaN or an infinity, named.
    """
    if output is None:
        ((_, tree),) = merge_many(paths, {"merged": weights}, **options)
        return tree
    metadata = {"merged": options.pop("metadata", None) or {}}
    return write_many(paths, {"merged": weights}, {"merged": output}, metadata=metadata, **options)["merged"]


def write_many(
    paths: Sequence[str | os.PathLike],
    weights: Mapping[str, Weights],
    outputs: Mapping[str, str | os.PathLike],
    *,
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
    verify: bool = False,
    progress: bool = False,
    form: str | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Several merges of the same checkpoints from one pass over them, each written to its own folder.

    Args:
      paths: checkpoint folders, oldest first.
      weights: name -> weights over all ``paths``; zeros leave checkpoints out.
      outputs: name -> folder to write.
      metadata: name -> what is kept in its record.
      verify, progress, form, options: as for :func:`merge_checkpoints`.

    Returns:
      name -> record.

    Raises:
      UsageError: as :func:`merge_checkpoints`.
    """
    if form not in (None, *storage.FORMATS):
        raise UsageError(f"format {form!r}: choose {' or '.join(storage.FORMATS)}")
    with contextlib.ExitStack() as stack:
        with all_succeed():
            for output in outputs.values():
                storage.check_free(output)
            job = stack.enter_context(prepare(paths, weights, **options))
            disk.check_disk(Path(next(iter(outputs.values()))).parent, job.bytes * len(outputs))
        folders = [stack.enter_context(storage.unfinished(outputs[name])) for name in job.names]
        sinks = [storage.create_sink(folder, job.results, job.sources[-1], form) for folder in folders]
        with all_succeed():
            found = job.run(lambda n, *part: sinks[n].write(*part), progress=progress)
            inputs = [source.record() for source in job.sources]
        records = {}
        if jax.process_count() == 1:
            inputs = [{**entry, "xxh3": digest} for entry, digest in zip(inputs, found, strict=True)]
        special = {path: policy for path, policy in job.policies.items() if policy != AVERAGE}
        for name, vectors, sink, folder in zip(job.names, job.vectors, sinks, folders, strict=True):
            own = dict((metadata or {}).get(name, {}))
            first, last = leaves_lib.window_ends(vectors, len(inputs))
            records[name] = {**own, "inputs": inputs[first : last + 1], "leaf_policies": special}
            with all_succeed():
                if jax.process_index() == 0:
                    sink.finish(records[name])
                    if verify:
                        verification.check(job, name, folder, form)
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
      name, merged pytree of jax arrays (Orbax: the tree that was saved; safetensors: name -> array).

    Raises:
      UsageError: as :func:`merge_checkpoints`.
    """
    stack = contextlib.ExitStack()
    job = stack.enter_context(prepare(paths, weights, **options))
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
