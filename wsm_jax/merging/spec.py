"""One merge as one value: everything before it makes one, everything after takes one. Several of them, opened."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # NumPy knows "bfloat16" by it
import numpy as np

from wsm_jax.checkpoints import storage
from wsm_jax.checkpoints.orbax import PARAMS
from wsm_jax.checkpoints.storage import Source
from wsm_jax.core import leaf_weights
from wsm_jax.core import leaves as lib
from wsm_jax.core.leaf_weights import Weights
from wsm_jax.core.leaves import AVERAGE, SKIP, Leaf, Rules
from wsm_jax.errors import UsageError
from wsm_jax.io import places

MEMORY = 256 * 2**20  # bytes of all workers together, by default
SAME, *_ = DTYPES = ("same", "float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Input:
    """A checkpoint that a merge reads.

    Attributes:
      path: its folder.
      item: of an Orbax checkpoint; None: ``params``, else the only one.
      step: of the run that wrote it, where it is known.
    """

    path: Path
    item: str | None = None
    step: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class MergeSpec:
    """A merge of checkpoints on disk.

    Attributes:
      inputs: oldest first.
      weights: as for :func:`wsm_jax.merge`: a vector over the inputs, or one for each leaf; zeros leave inputs out.
      rules: (regular expression on a leaf's path, policy) pairs.
      dtype: of the averaged leaves: ``same`` (or None), ``float32``, ``bfloat16`` or ``float16``.
      include_optimizer: merge what stands beside the parameters of a saved train state, too.
      output: the folder to write; None: the merge stays in memory.
      format: of the output, ``orbax`` or ``safetensors``; None: as the inputs.
      item: what the output calls the tree, if it is an Orbax checkpoint; None: ``params``.
      record: what is kept beside the output's arrays, JSON-ready.

    Raises:
      UsageError: a dtype or format that there is not, a record that JSON cannot hold.
    """

    inputs: tuple[Input, ...]
    weights: Weights
    rules: Rules = ()
    dtype: Any = SAME
    include_optimizer: bool = False
    output: Path | None = None
    format: str | None = None
    item: str | None = None
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", _dtype(self.dtype))
        if self.format not in (None, *storage.FORMATS):
            raise UsageError(f"format {self.format!r}: choose {' or '.join(storage.FORMATS)}")
        try:
            json.dumps(self.record)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the metadata of a merge must be what JSON can hold ({error})") from error

    @classmethod
    def of(
        cls, paths: Sequence[str | os.PathLike], weights: Weights, items: storage.Items = None, **fields: Any
    ) -> "MergeSpec":
        """The merge of ``paths``, with one item for all or one for each.

        Raises:
          UsageError: items that do not fit the paths; as the class.
        """
        named = zip(paths, storage.items_of(items, len(paths)), strict=True)
        return cls(tuple(Input(places.at(path), item) for path, item in named), weights, **fields)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The folder of each input."""
        return tuple(one.path for one in self.inputs)

    @property
    def items(self) -> tuple[str | None, ...]:
        """The item of each input."""
        return tuple(one.item for one in self.inputs)

    @property
    def steps(self) -> tuple[int | None, ...]:
        """The step of each input."""
        return tuple(one.step for one in self.inputs)


@dataclasses.dataclass(frozen=True)
class Merges:
    """Merges of one pass, opened and checked.

    Attributes:
      specs: name -> merge.
      sources: what the merges read, each once, oldest first.
      places: for each merge the place in ``sources`` of each of its inputs.
      vectors: for each merge path -> float64 [sources].
      ends: for each merge the sources of its ``first`` and ``last`` leaves, the ends of what has a weight.
      policies: path -> policy.
      leaves: path -> leaf of the inputs, with a quantum that suits all of them.
      results: path -> leaf of the result; what is skipped is not there.
      memory: bytes that all workers together may hold, where the largest stored chunk allows it.
    """

    specs: Mapping[str, MergeSpec]
    sources: list[Source]
    places: list[np.ndarray]
    vectors: list[dict[str, np.ndarray]]
    ends: list[tuple[int, int]]
    policies: dict[str, str]
    leaves: dict[str, Leaf]
    results: dict[str, Leaf]
    memory: int

    @property
    def nbytes(self) -> int:
        """Bytes of one result."""
        return sum(leaf.nbytes for leaf in self.results.values())

    def outputs(self, number: int) -> dict[str, Leaf]:
        """The leaves of the result of the merge ``number``, strings with their values."""
        inputs = [source.leaves for source in self.sources]
        return leaf_weights.with_texts(self.results, self.policies, inputs, self.vectors[number])


@contextlib.contextmanager
def opened(specs: Mapping[str, MergeSpec], memory: int = MEMORY) -> Iterator[Merges]:
    """Opens and checks everything that merges of one pass need; reads metadata only.

    Args:
      specs: name -> merge; all with the same rules and dtype.
      memory: bytes that all workers together may hold, where the largest stored chunk allows it.

    Raises:
      UsageError: no merges; as :func:`wsm_jax.merge_checkpoints` before any array is read.
    """
    if not specs:
        raise UsageError("nothing to merge: no weights were given")
    spec, inputs = next(iter(specs.values())), union(specs.values())
    with storage.open_sources([one.path for one in inputs], [one.item for one in inputs]) as sources:
        every = {path: leaf for source in sources for path, leaf in source.leaves.items()}
        found = lib.leaf_policies(every, spec.rules, parameters_only=not spec.include_optimizer)
        names = [str(source.path) for source in sources]
        lib.check_same([source.leaves for source in sources], names, found, any_float=spec.dtype != SAME)
        policies = {path: found[path] for path in sources[0].leaves}
        leaves = {path: _common([s.leaves[path] for s in sources if path in s.leaves]) for path in policies}
        results = {path: _result(path, leaves[path], policy, spec.dtype) for path, policy in policies.items()}
        results = {path: leaf for path, leaf in results.items() if policies[path] != SKIP}
        if not results:
            raise UsageError(f"nothing to merge: {sources[0].path} has no leaf" + " but skipped ones" * bool(policies))
        averaged = [path for path, policy in policies.items() if policy == AVERAGE]
        places, vectors, ends = [], [], []
        for one in specs.values():
            same = one.inputs == inputs  # some may be named twice
            places.append(np.arange(len(inputs)) if same else np.asarray([inputs.index(each) for each in one.inputs]))
            own = leaf_weights.weight_vectors(one.weights, averaged, len(one.inputs))
            vectors.append({path: spread(vector, places[-1], len(inputs)) for path, vector in own.items()})
            first, last = leaf_weights.window_ends(own, len(one.inputs))
            ends.append((int(places[-1][first]), int(places[-1][last])))
        yield Merges(specs, sources, places, vectors, ends, policies, leaves, results, memory)


def union(specs: Collection[MergeSpec]) -> tuple[Input, ...]:
    """All that several merges read, each once; where it differs in order of steps, a mean before its end point."""
    first, *others = [spec.inputs for spec in specs]
    if all(inputs == first for inputs in others):
        return first
    every = dict.fromkeys(itertools.chain(first, *others))
    if any(one.step is None for one in every):
        return tuple(every)
    return tuple(sorted(every, key=lambda one: (one.step, one.item == PARAMS, str(one.path), str(one.item))))


def spread(vector: np.ndarray, places: np.ndarray, length: int) -> np.ndarray:
    """The weights at ``places`` of a vector of ``length``, zero elsewhere."""
    wide = np.zeros(length)
    np.add.at(wide, places, vector)
    return wide


def _common(leaves: Sequence[Leaf]) -> Leaf:
    """A leaf of several inputs with a quantum and a dtype that suit all of them."""
    quantum = math.lcm(*(leaf.quantum for leaf in leaves))
    dtype = lib.common_dtype(leaves)
    return dataclasses.replace(leaves[0], quantum=min(quantum, max(leaves[0].size, 1)), dtype=dtype)


def _result(path: str, leaf: Leaf, policy: str, dtype: str) -> Leaf:
    wanted = leaf.dtype if policy != AVERAGE or dtype == SAME else np.dtype(dtype)
    if policy == AVERAGE and wanted == np.float64:
        raise UsageError(f"leaf {path} is float64, but merges are float32 at best; ask for dtype=float32")
    return dataclasses.replace(leaf, dtype=wanted, quantum=1)


def _dtype(dtype: Any) -> str:
    """The name of a dtype that merges may have, or ``same``."""
    try:
        name = SAME if dtype is None or (isinstance(dtype, str) and dtype == SAME) else np.dtype(dtype).name
    except TypeError:
        name = ""
    if name not in DTYPES:
        raise UsageError(f"dtype={dtype!r}: choose {', '.join(DTYPES)}")
    return name
