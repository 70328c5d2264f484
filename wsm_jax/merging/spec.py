"""One merge as one value: everything before it makes one, everything after takes one."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # NumPy knows "bfloat16" by it
import numpy as np

from wsm_jax.checkpoints import storage
from wsm_jax.checkpoints.orbax import PARAMS
from wsm_jax.core import leaves
from wsm_jax.core.leaves import Rules, Weights
from wsm_jax.errors import UsageError

SAME, *_ = DTYPES = ("same", "float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Input:
    """A checkpoint that a merge reads.

    Attributes:
      path: its folder.
      item: of an Orbax checkpoint; None: ``params``, else the only one.
      step: of the run that wrote it, where it is known.
    """

    path: str | os.PathLike
    item: str | None = None
    step: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class MergeSpec:
    """A merge of checkpoints on disk.

    Attributes:
      inputs: oldest first.
      weights: as for :func:`wsm_jax.merge`: one vector over the inputs, or one for each leaf; zeros leave inputs out.
      rules: (regular expression on a leaf's path, policy) pairs.
      dtype: of the averaged leaves: ``same`` (or None), ``float32``, ``bfloat16`` or ``float16``.
      include_optimizer: merge what stands beside the parameters of a saved train state, too.
      output: the folder to write; None: the merge stays in memory.
      format: of the output, ``orbax`` or ``safetensors``; None: as the inputs.
      output_item: what an Orbax output calls the tree; None: ``params``.
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
    output_item: str | None = None
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
        cls, paths: Sequence[str | os.PathLike], weights: Weights, item: storage.Items = None, **fields: Any
    ) -> "MergeSpec":
        """The merge of ``paths``, with one item for all or one for each.

        Raises:
          UsageError: items that do not fit the paths; as the class.
        """
        items = storage.items_of(item, len(paths))
        return cls(tuple(Input(path, name) for path, name in zip(paths, items, strict=True)), weights, **fields)

    def vectors(self, paths: Sequence[str]) -> dict[str, np.ndarray]:
        """The weights of the leaves ``paths``, float64 [inputs], checked as :func:`leaves.weight_vectors` does."""
        return leaves.weight_vectors(self.weights, paths, len(self.inputs))


def union(specs: Sequence[MergeSpec]) -> tuple[tuple[Input, ...], list[np.ndarray]]:
    """All that several merges read, each once, and for each merge the places of its inputs in that.

    Where the inputs differ they are put in order of their steps, the end point after the mean that ends there.
    """
    first = specs[0].inputs
    if all(one.inputs == first for one in specs):
        return first, [np.arange(len(first))] * len(specs)
    every = list(dict.fromkeys(one for spec in specs for one in spec.inputs))
    if all(one.step is not None for one in every):
        every.sort(key=lambda one: (one.step, one.item == PARAMS, str(one.path), str(one.item)))
    place = {one: number for number, one in enumerate(every)}
    return tuple(every), [np.asarray([place[one] for one in spec.inputs], int) for spec in specs]


def spread(vector: np.ndarray, places: np.ndarray, length: int) -> np.ndarray:
    """The weights at ``places`` of a vector of ``length``, zero elsewhere."""
    wide = np.zeros(length)
    np.add.at(wide, places, vector)  # an input may be named twice
    return wide


def _dtype(dtype: Any) -> str:
    """The name of a dtype that merges may have, or ``same``."""
    try:
        name = SAME if dtype is None or (isinstance(dtype, str) and dtype == SAME) else np.dtype(dtype).name
    except TypeError:
        name = ""
    if name not in DTYPES:
        raise UsageError(f"dtype={dtype!r}: choose {', '.join(DTYPES)}")
    return name
