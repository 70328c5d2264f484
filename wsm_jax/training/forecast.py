"""What the streams of a run will take of the disk."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from wsm_jax.checkpoints.plan import Plan
from wsm_jax.config import Config
from wsm_jax.io.disk import check_disk, disk_bytes, tree_bytes


def stream_bytes(tree: Any, saves: Iterable[int], keep: int, keep_steps: Collection[int] = ()) -> int:
    """Most bytes a stream will hold: kept checkpoints, and the one being written before an old one goes."""
    saves = sorted(set(saves))
    kept = len(saves) if not keep else min(len(saves), keep + 1 + len(set(keep_steps) & set(saves)))
    return kept * tree_bytes(tree)


def both_streams(config: Config, plan: Plan, full: Any, merge_items: Any, start: int) -> tuple[int, int]:
    """Most bytes that the merge stream and the resume stream of a run will hold.

    Args:
      config: of the run.
      plan: its durations in steps.
      full: arrays or shapes of a full state.
      merge_items: of a merge checkpoint.
      start: the step at which the run begins.
    """
    merge_saves = [step for step in plan.merge_steps() if step > start]
    resume_saves = [step for step in plan.resume_steps() if step > start]
    settings = config.checkpoint
    merge = stream_bytes(merge_items, merge_saves, settings.merge_keep)
    return merge, stream_bytes(full, resume_saves, settings.resume_keep, plan.branch_points)


def forecast(directory: Path, config: Config, plan: Plan, full: Any, merge_items: Any, start: int) -> str:
    """What the streams will hold at most, as a line to print.

    Raises:
      UsageError: the disk has less room than that.
    """
    merge, resume = both_streams(config, plan, full, merge_items, start)
    # What an earlier start has written is part of the whole and takes no room again.
    check_disk(
        directory,
        merge + resume - disk_bytes(directory / "checkpoints"),
        "lower checkpoint.merge_keep, raise checkpoint.merge_interval, or choose another disk",
    )
    saves = sum(step > start for step in plan.merge_steps())
    kept = min(saves, config.checkpoint.merge_keep or saves)
    held = tree_bytes(full.get("averages", {}))
    return (
        f"disk: up to {(merge + resume) / 1e9:.3f} GB under {directory} "
        f"(merge stream {kept} x {tree_bytes(merge_items) / 1e6:.1f} MB, one every "
        f"{plan.merge_interval} steps; full states {resume / 1e9:.3f} GB)"
        + (f"; averages take {held / 1e6:.1f} MB of memory" if held else "")
    )
