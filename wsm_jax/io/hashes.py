"""Hashes of a checkpoint's bytes, kept in its folder, which find damage; they do not guard against forgery.

Arrays are hashed in units of fixed size, however they are cut on disk: unit k of a leaf is its elements
[65536 k, 65536 (k + 1)) in C order, as they are stored, by XXH3 (128 bits) seeded with the leaf's path and the unit's
place. Of a file the bytes that hold no such element are hashed, one after the other: all of a metadata file, the header
of a safetensors file, what follows the elements in a chunk.
"""

import dataclasses
import json
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from wsm_jax.errors import UsageError

FILE = "wsm_hashes.json"  # in the folder of a checkpoint
UNIT = 1 << 16  # elements
KIND = {"format": 1, "algorithm": "xxh3_128", "unit": UNIT}
_OWN = "own"  # the hash of the file's other entries, so that damage to it is told from damage to what it speaks of

Table = dict[str, list[str]]  # leaf path -> hexadecimal digest of each unit


@dataclasses.dataclass(frozen=True)
class Hashes:
    """What a checkpoint held when it was saved.

    Attributes:
      arrays: item (``""`` of safetensors) -> table.
      files: path from the checkpoint's folder -> digest of its bytes that hold no element of ``arrays``.
    """

    arrays: Mapping[str, Table] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Units:
    """Hashes of the units of some leaves, whose elements come in any order, in any parts and from several threads.

    Args:
      sizes: leaf path -> elements.
    """

    def __init__(self, sizes: Mapping[str, int]):
        self._sizes = sizes
        self._parts: dict[tuple[str, int], dict[int, bytes]] = {}  # of units that came in part: first element -> bytes
        self._lock = threading.Lock()

    def add(self, path: str, start: int, values: np.ndarray) -> list[tuple[int, str]]:
        """Takes in ``values`` (1-D, contiguous), elements of the leaf from ``start`` on.

        Returns:
          (number, digest) of each unit that is complete with them.
        """
        data, width, stop = values.view(np.uint8).data, values.itemsize, start + values.size
        complete = []
        for number in range(start // UNIT, -(-stop // UNIT)):
            first, last = number * UNIT, min((number + 1) * UNIT, self._sizes[path])
            low, high = max(first, start), min(last, stop)
            unit: Any = data[(low - start) * width : (high - start) * width]
            if high - low < last - first:
                unit = self._joined(path, number, low, bytes(unit), (last - first) * width)
            if unit is not None:
                complete.append((number, xxhash.xxh3_128_hexdigest(unit, seed=zlib.crc32(path.encode()) << 32 ^ first)))
        return complete

    def _joined(self, path: str, number: int, low: int, data: bytes, size: int) -> bytes | None:
        """A unit of which ``data`` was the last part; None while others are missing."""
        with self._lock:
            parts = self._parts.setdefault((path, number), {})
            parts[low] = data
            if sum(map(len, parts.values())) < size:
                return None
            del self._parts[path, number]
        return b"".join(parts[place] for place in sorted(parts))


def count(size: int) -> int:
    """Units of a leaf of ``size`` elements."""
    return -(-size // UNIT)


def of_file(file: Path, held: Sequence[tuple[int, int]] = ()) -> str:
    """The digest of the bytes of ``file`` outside ``held``, ascending ranges [start, stop) that hold elements."""
    found = xxhash.xxh3_128()
    with open(file, "rb", buffering=0) as stream:
        for start, stop in zip([0, *(last for _, last in held)], [*(first for first, _ in held), None], strict=True):
            stream.seek(start)
            left = None if stop is None else stop - start
            while left != 0 and (part := stream.read(1 << 20 if left is None else min(left, 1 << 20))):
                found.update(part)
                left = None if left is None else left - len(part)
    return found.hexdigest()


def write(folder: Path, arrays: Mapping[str, Mapping[str, Sequence[str]]], files: Mapping[str, str] = {}) -> None:
    """Keeps the hashes of a checkpoint in its folder; see :class:`Hashes` for the arguments."""
    kept = {**KIND, "arrays": arrays, "files": files}
    (folder / FILE).write_text(json.dumps({**kept, _OWN: _digest(kept)}) + "\n")


def load(folder: Path) -> Hashes | None:
    """The hashes of the checkpoint in ``folder``; None where there are none, as in earlier versions.

    Raises:
      UsageError: a file that is no such table, or is damaged itself.
    """
    try:
        kept = json.loads((folder / FILE).read_text())
        own = kept.pop(_OWN)
        if any(kept[name] != value for name, value in KIND.items()):
            raise ValueError("another format, algorithm or unit")
        if own != _digest(kept):
            raise ValueError("it is damaged")
        return Hashes(kept["arrays"], kept["files"])
    except (FileNotFoundError, NotADirectoryError):  # the latter of a checkpoint that is a file
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{folder / FILE}: no table of hashes ({type(error).__name__}: {error})") from error


def read(folder: Path, item: str = "") -> Table | None:
    """The table of an item of the checkpoint in ``folder``, as :func:`load`; None where it has none."""
    found = load(folder)
    return None if found is None else found.arrays.get(item)


def _digest(kept: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(kept).encode())
