"""Hashes of stored arrays, in units of fixed size, and the file beside them that keeps them.

Unit k of a leaf is its elements [65536 k, 65536 (k + 1)) in C order, hashed as they are stored with XXH3 (128 bits); the
seed holds the leaf's path and the unit's place. They find damage; they do not guard against forgery.
"""

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

Table = dict[str, list[str]]  # leaf path -> hexadecimal digest of each unit


class Units:
    """Hashes of the units of some leaves, whose elements come in any order, in any parts and from several threads."""

    def __init__(self, sizes: Mapping[str, int]):
        """``sizes``: leaf path -> elements."""
        self._sizes = sizes
        self._parts: dict[tuple[str, int], dict[int, bytes]] = {}  # of units that came in part: first element -> bytes
        self._lock = threading.Lock()

    def add(self, path: str, start: int, values: np.ndarray) -> list[tuple[int, str]]:
        """Takes in ``values`` (1-D), elements of the leaf from ``start`` on.

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
                seed = zlib.crc32(path.encode()) << 32 ^ first
                complete.append((number, xxhash.xxh3_128_hexdigest(unit, seed=seed)))
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


def write(folder: Path, arrays: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Keeps the hashes of a checkpoint in its folder; ``arrays``: item (``""`` where there are none) -> table."""
    kept = {"format": 1, "algorithm": "xxh3_128", "unit": UNIT, "arrays": arrays}
    (folder / FILE).write_text(json.dumps(kept) + "\n")


def read(folder: Path, item: str = "") -> Table | None:
    """The table of an item of the checkpoint in ``folder``; None where there is none, as in earlier versions.

    Raises:
      UsageError: a file that is no such table.
    """
    try:
        kept = json.loads((folder / FILE).read_text())
        if (kept["format"], kept["algorithm"], kept["unit"]) != (1, "xxh3_128", UNIT):
            raise ValueError("another format, algorithm or unit")
        return kept["arrays"].get(item)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder / FILE}: no table of hashes ({type(error).__name__}: {error})") from error
