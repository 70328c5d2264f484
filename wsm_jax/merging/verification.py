"""A second look at a merge that was written: samples of it against a sum in float64, read by the formats' libraries."""

from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from wsm_jax.checkpoints import storage
from wsm_jax.core.leaves import AVERAGE, FIRST
from wsm_jax.errors import UsageError

if TYPE_CHECKING:
    from wsm_jax.merging.spec import Merges

SAMPLES = 64  # blocks over all leaves, at least one from each leaf
BLOCK = 1 << 16  # elements of a block, at most, where a row is not longer


def check(merges: "Merges", number: int, written: Path) -> int:
    """Compares blocks of rows, chosen at random but the same ones every time, with the inputs.

    Args:
      merges: opened.
      number: of the one to check.
      written: its folder.

    Returns:
      elements that were compared.

    Raises:
      UsageError: one differs by more than float32 sums of that length and the dtype of the result explain.
    """
    form = list(merges.specs.values())[number].format
    random = np.random.default_rng(0)
    each = -(-SAMPLES // max(len(merges.results), 1))
    compared = 0
    with storage.open_sources([written]) as (out,):
        for path, leaf in merges.results.items():
            rows = leaf.shape[0] if leaf.shape else 1
            height = max(1, min(rows, BLOCK * rows // max(leaf.size, 1)))
            stored = storage.output_name(path, merges.sources[-1], form)
            for start in {int(s) for s in random.integers(0, rows - height + 1, each)} if leaf.size else ():
                block = start, start + height
                found = out.rows(stored, *block)
                expected, bad = _compared(merges, number, path, block, found)
                if bad.any():
                    worst = np.unravel_index(int(np.argmax(bad)), bad.shape)
                    raise UsageError(
                        f"{written}: leaf {path} does not verify: row {start + (worst[0] if worst else 0)} holds "
                        f"{found[worst]} where float64 gives {expected[worst]}; nothing was published"
                    )
                compared += found.size
    return compared


def _compared(
    merges: "Merges", number: int, path: str, block: tuple[int, int], found: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the block should hold, and where ``found`` does not."""
    if merges.policies[path] != AVERAGE:
        copied = merges.sources[merges.ends[number][merges.policies[path] != FIRST]].rows(path, *block)
        return copied, (found != copied) & ((found == found) | (copied == copied))  # a NaN is a copy of a NaN
    # As in the merge, an input without a weight does not count, whatever it holds.
    pairs = zip(merges.vectors[number][path], merges.sources, strict=True)
    expected, size, count = np.zeros(found.shape), np.zeros(found.shape), 0
    for c, source in pairs:
        if c != 0:
            term = c * source.rows(path, *block).astype(np.float64)
            expected, size, count = expected + term, size + np.abs(term), count + 1
    # n products and sums in float32 (Higham, Accuracy and Stability, section 3.1), weights rounded to float32, then
    # the rounding to the dtype of the result, whose smallest number bounds it near zero. XLA takes what is below the
    # normal numbers of float32 for zero.
    info = ml_dtypes.finfo(found.dtype)
    unit, tiny = 2.0**-24, 2.0**-126
    bound = (count + 3) * unit * size + float(info.eps) * np.abs(expected) + float(info.smallest_subnormal)
    bound += 2 * count * tiny
    return expected, ~(np.abs(found.astype(np.float64) - expected) <= bound)
