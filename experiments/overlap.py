"""Texts that share passages: which pairs, and how much of the shorter one is in the other."""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np

WORDS = 8  # in a passage
SAMPLE = 4  # one passage in so many is looked at, chosen by its hash
COMMON = 20  # what is in more texts than this is a formula, such as a licence, and makes no two of them alike
FEWEST = 4  # passages of the sample in common, or they may share them by chance
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads its multiples over all values


def overlaps(texts: Sequence[str]) -> dict[tuple[int, int], float]:
    """The pairs of texts that share passages of WORDS words, letters' case and punctuation aside.

    Returns:
      (i, j), i < j -> the share of the shorter one's passages that the other one has too, by a sample of them.
    """
    passages = [_passages(text) for text in texts]
    hashes = np.concatenate([np.zeros(0, np.uint64), *passages])
    of = np.repeat(np.arange(len(texts)), [len(found) for found in passages])
    order = np.lexsort((of, hashes))
    hashes, of = hashes[order], of[order]
    starts = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]))
    sizes = np.diff(starts, append=len(hashes))
    shared: Counter[tuple[int, int]] = Counter()
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        if size <= COMMON:
            shared.update(combinations(of[start : start + size].tolist(), 2))
    return {
        (i, j): count / min(len(passages[i]), len(passages[j])) for (i, j), count in shared.items() if count >= FEWEST
    }


def _passages(text: str) -> np.ndarray:
    """Hashes of the sampled passages of a text, each once: uint64, sorted."""
    words = np.asarray([zlib.crc32(word.encode()) for word in re.findall(r"\w+", text.lower())], np.uint64)
    if len(words) < WORDS:
        return np.zeros(0, np.uint64)
    hashes = np.zeros(len(words) - WORDS + 1, np.uint64)
    for place in range(WORDS):
        hashes = (hashes + words[place : place + len(hashes)]) * _ODD  # wraps around at 2^64
    hashes ^= hashes >> np.uint64(32)
    return np.unique(hashes[hashes % np.uint64(SAMPLE) == 0])


def joined(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The numbers below ``count`` in groups, so that the two of each pair are in one; in order of their first."""
    group = list(range(count))
    for i, j in pairs:
        low, high = sorted((group[i], group[j]))
        if low != high:
            group = [low if one == high else one for one in group]
    found: dict[int, list[int]] = {}
    for number, one in enumerate(group):
        found.setdefault(one, []).append(number)
    return list(found.values())
