"""Merges of the same checkpoints, checked and ready to run."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsm_jax.checkpoints import storage
from wsm_jax.checkpoints.storage import Source
from wsm_jax.core import leaves as leaves_lib
from wsm_jax.core.leaves import AVERAGE, SKIP, Leaf, Rules, Weights
from wsm_jax.errors import UsageError
from wsm_jax.merging import engine, plan

DTYPES = ("same", "float32", "bfloat16", "float16")


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

    def outputs(self, number: int) -> dict[str, Leaf]:
        """The leaves of the result of the merge ``number``."""
        inputs = [source.leaves for source in self.sources]
        return leaves_lib.with_texts(self.results, self.policies, inputs, self.vectors[number])

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
    dtype: Any = "same",
    include_optimizer: bool = False,
    memory: int = engine.MEMORY,
) -> Iterator[Job]:
    """Opens and checks everything, reading metadata only; arguments and errors as :func:`wsm_jax.merge_checkpoints`."""
    wanted = _dtype(dtype)
    if not weights:
        raise UsageError("nothing to merge: no weights were given")
    with storage.open_sources(paths, item) as sources:
        every = {path: leaf for source in sources for path, leaf in source.leaves.items()}
        found = leaves_lib.leaf_policies(every, rules, parameters_only=not include_optimizer)
        names = [str(source.path) for source in sources]
        leaves_lib.check_same([source.leaves for source in sources], names, found, any_float=wanted is not None)
        policies = {path: found[path] for path in sources[0].leaves}
        averaged = [path for path, policy in policies.items() if policy == AVERAGE]
        leaves = plan.common_leaves([source.leaves for source in sources])
        results = {}
        for path, policy in policies.items():
            out = leaves[path].dtype if wanted is None or policy != AVERAGE else wanted
            if policy == AVERAGE and out == np.float64:
                raise UsageError(f"leaf {path} is float64, but merges are float32 at best; ask for dtype=float32")
            if policy != SKIP:
                results[path] = dataclasses.replace(leaves[path], dtype=np.dtype(out), quantum=1)
        if not results:
            raise UsageError(f"nothing to merge: {sources[0].path} has no leaf" + " but skipped ones" * bool(policies))
        vectors = [leaves_lib.weight_vectors(vector, averaged, len(paths)) for vector in weights.values()]
        yield Job(sources, list(weights), vectors, policies, leaves, results, memory)


def _dtype(dtype: Any) -> Any:
    """Of the averaged leaves; None: as they are stored."""
    if dtype is None or (isinstance(dtype, str) and dtype == "same"):
        return None
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = ""
    if name not in DTYPES:
        raise UsageError(f"dtype={dtype!r}: choose {', '.join(DTYPES)}")
    return jnp.dtype(name)
