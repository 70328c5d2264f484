"""Work that processes do, some at a time, with a bar that shows how far it is."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Found = TypeVar("Found")


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(
    function: Callable[[Item], Found],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    unit: str = "item",
    quiet: bool = False,
) -> list[Found]:
    """``function`` of each item, in their order; each thread waits for a process.

    Args:
      function: what is done; what it raises ends all, and what was not begun is not.
      items: what it is done with.
      workers: threads; default: one for each processor.
      unit: what an item is called.
      quiet: without the bar.
    """
    pool = ThreadPoolExecutor(workers or processors())
    try:
        return list(tqdm(pool.map(function, items), total=len(items), unit=unit, disable=quiet))
    finally:
        pool.shutdown(cancel_futures=True)
