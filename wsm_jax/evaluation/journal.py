"""Finished requests of a benchmark in a file, so that one that was killed goes on; known by what decides them."""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wsm_jax.core.trees import named_leaves
from wsm_jax.io.files import Lines, read_jsonl, write_jsonl
from wsm_jax.parallel import sharding
from wsm_jax.parallel.processes import all_succeed


class Journal:
    """Key -> answer of requests; what is added is on the disk before the next one is asked for.

    Args:
      file: the JSON lines; those that are there are answers already. None: nothing is kept.
    """

    def __init__(self, file: Path | None = None):
        with all_succeed():  # every process has read it before the first one adds to it
            records = read_jsonl(file) if file is not None else []
        self._found: dict[str, Any] = {record["key"]: record["answer"] for record in records}
        self._lines = None
        if file is not None and jax.process_index() == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(file, records)  # without a line that a kill has cut
            self._lines = Lines(file)

    def get(self, key: str) -> Any:
        """The answer to a request; None where there is none yet."""
        return self._found.get(key)

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keeps answers, JSON-ready."""
        self._found.update(answers)
        if self._lines is not None:
            self._lines.add("".join(json.dumps({"key": k, "answer": v}) + "\n" for k, v in answers.items()))
            self._lines.flush()

    def close(self) -> None:
        """Ends writing."""
        if self._lines is not None:
            self._lines.close()


def key(start: str, *parts: Any) -> str:
    """What a request is known by: ``start`` stands for all that its model is, the parts for the request."""
    digest = hashlib.sha256(start.encode())
    for part in parts:
        data = part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def fingerprint(params: Any, mesh: Mesh) -> str:
    """A hash of the values of parameters, wherever they lie: two sums over each leaf that depend on the places."""
    found = {path: np.asarray(pair).tolist() for path, pair in named_leaves(_summed(mesh)(params)).items()}
    shapes = {path: [str(leaf.dtype), *leaf.shape] for path, leaf in named_leaves(params).items()}
    return hashlib.sha256(json.dumps([found, shapes]).encode()).hexdigest()


@functools.lru_cache(maxsize=8)
def _summed(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: jax.tree.map(_sums, tree), out_shardings=sharding.replicated(mesh))


def _sums(leaf: jax.Array) -> jax.Array:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(leaf.ravel(), unsigned).astype(jnp.uint32)
    place = jax.lax.iota(jnp.uint32, bits.size)
    mixed = (bits ^ (bits >> 15)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * (2 * place + 1)
    other = (mixed ^ (mixed >> 16)) * jnp.uint32(0xC2B2AE35)
    return jnp.stack([mixed.sum(dtype=jnp.uint32), other.sum(dtype=jnp.uint32)])
