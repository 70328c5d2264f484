"""The protocol of ``benchmarks/merge.py`` as data: what is merged, by whom, how often. Small to import."""

import dataclasses
import math

READ, WRITE, MEMORY = "plain read", "plain write", "multiply-add in memory"  # the baselines
OURS, ENGINE, FORTY = "wsm merge", "merge_many, one merge", "merge_many, 40 merges"
WRITTEN = "merge_checkpoints"
MERGEKIT, AVERAGED, LOOP = "mergekit", "AveragedModel", "plain loop"
MERGEKIT_WINDOWS, LOOP_WINDOWS = "mergekit, 8 merges", "plain loop, 8 merges"
PREVIOUS = ", previous version"  # behind the name of one of ours: the same, done by another checkout

PEERS = (MERGEKIT, AVERAGED, LOOP)
FROM_PEERS = (*PEERS, MERGEKIT_WINDOWS, LOOP_WINDOWS)  # what needs the peers' interpreter
TIMED_INSIDE = (READ, WRITE, MEMORY, ENGINE, FORTY, WRITTEN)  # without the start of the process; the others as a whole
# What a process of a contender is asked to do. ``wsm merge`` is a command of its own.
TASKS = dict(zip(TIMED_INSIDE, ("read", "write", "memory", "engine", "engine", "written"), strict=True))
TASKS |= dict(zip(FROM_PEERS, ("mergekit", "averaged", "loop", "mergekit_windows", "loop_windows"), strict=True))
FROM_US = (OURS, ENGINE, FORTY, WRITTEN)  # what a previous version can do too
CURVES = ("linear", "cosine", "minus_sqrt", "square", "exponential")
WINDOWS = 8
PRECISION_COUNTS = (4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Case:
    """One merge, done by several contenders that take turns.

    Attributes:
      size, format: of ``merge_inputs``.
      count: inputs of the merge.
      cache: ``warm`` or ``cold``: the page cache before every process.
      rounds: how often each contender runs.
      contenders: in the order of a round.
      folders: checkpoints on disk; fewer than ``count`` are listed again and again.
    """

    size: str
    format: str
    count: int
    cache: str
    rounds: int
    contenders: tuple[str, ...]
    folders: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "folders", self.folders or self.count)

    def __str__(self) -> str:
        return f"{self.size} x{self.count} {self.format} {self.cache}"


def windows(count: int) -> list[int]:
    """Lengths of the 8 windows, all of them ending at the newest of ``count`` checkpoints."""
    return [math.ceil(count * k / WINDOWS) for k in range(1, WINDOWS + 1)]


def window_weights(count: int, curves: tuple[str, ...]) -> dict[str, list[float]]:
    """Name -> weights over all checkpoints, for every curve and window; oldest first, zeros before the window."""
    from wsm_jax import merge_weights

    return {
        f"{curve}-{k}-{n}": [0.0] * (count - n) + merge_weights(curve, n).tolist()
        for curve in curves
        for k, n in enumerate(windows(count))
    }


def weights(contender: str, count: int) -> dict[str, list[float]]:
    """Of the merges that a contender makes."""
    curves = {FORTY: CURVES, MERGEKIT_WINDOWS: CURVES[:1], LOOP_WINDOWS: CURVES[:1]}
    return window_weights(count, curves[contender]) if contender in curves else {"uniform": [1 / count] * count}


_ONE = (READ, OURS, ENGINE)
_WARM = (MEMORY, *_ONE)
MANY = (FORTY, LOOP_WINDOWS, MERGEKIT_WINDOWS)  # merges, not all the same number of them

CASES = (
    Case("tiny", "safetensors", 2, "warm", 2, (*_WARM, WRITTEN, WRITE, *PEERS)),
    Case("tiny", "safetensors", 8, "cold", 1, (READ, ENGINE, FORTY, LOOP_WINDOWS), folders=4),
    Case("tiny", "stream", 2, "cold", 1, (READ, ENGINE, WRITTEN)),
    Case("tiny", "orbax", 2, "warm", 1, (OURS,)),
    #
    Case("125M", "safetensors", 4, "warm", 3, (*_WARM, WRITTEN, WRITE, *PEERS)),
    Case("125M", "safetensors", 4, "cold", 3, (*_ONE, WRITTEN, WRITE, *PEERS)),
    Case("125M", "safetensors", 8, "warm", 2, (*_WARM, WRITE, *PEERS)),
    Case("125M", "safetensors", 8, "cold", 2, _ONE),
    Case("125M", "safetensors", 16, "warm", 1, (*_WARM, *MANY)),
    Case("125M", "safetensors", 16, "cold", 1, (*_ONE, FORTY)),
    Case("125M", "safetensors", 32, "warm", 1, _WARM),
    Case("125M", "safetensors", 32, "cold", 1, _ONE),
    Case("125M", "stream", 4, "warm", 3, (*_WARM, WRITTEN)),
    Case("125M", "stream", 4, "cold", 3, (*_ONE, WRITTEN)),
    Case("125M", "stream", 8, "warm", 2, _WARM),
    Case("125M", "stream", 8, "cold", 2, _ONE),
    Case("125M", "stream", 16, "warm", 1, (*_WARM, FORTY)),
    Case("125M", "stream", 16, "cold", 1, (*_ONE, FORTY)),
    Case("125M", "stream", 32, "warm", 1, _WARM),
    Case("125M", "stream", 32, "cold", 1, _ONE),
    Case("125M", "orbax", 4, "warm", 2, _WARM),
    Case("125M", "orbax", 4, "cold", 2, _ONE),
    #
    Case("774M", "safetensors", 4, "warm", 2, (*_WARM, WRITTEN, WRITE, *PEERS)),
    Case("774M", "safetensors", 4, "cold", 2, (*_ONE, WRITTEN, WRITE, LOOP)),
    Case("774M", "safetensors", 8, "cold", 1, (*_ONE, WRITE, LOOP)),
    Case("774M", "safetensors", 32, "cold", 1, (OURS,), folders=8),
    Case("774M", "stream", 4, "warm", 2, (*_WARM, WRITTEN)),
    Case("774M", "stream", 4, "cold", 2, (*_ONE, WRITTEN)),
    Case("774M", "stream", 8, "cold", 1, _ONE),
    Case("774M", "stream", 32, "cold", 1, (OURS,), folders=8),
    Case("774M", "orbax", 4, "cold", 1, _ONE),
)
