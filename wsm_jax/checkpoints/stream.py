"""The asynchronous writer of a folder with one checkpoint a step, and what it keeps of them."""

import contextlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
from etils import epath

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints.quiet import quiet

_DELETED = ".deleted-"  # begins the name of a checkpoint that is being removed
_UNFINISHED = ".orbax-checkpoint-tmp"  # Orbax's mark of one that is being written


class Stream:
    """Asynchronous writer of the checkpoints of one folder; use as a context manager, or call :meth:`close`.

    Args:
      directory: created if missing; leftovers of killed saves in it are removed.
      mergeable: store uncompressed in small chunks (the merge stream).
      keep: newest checkpoints kept; 0 keeps all.
      keep_steps: steps kept for ever beside them.
      read_only: leave everything in the folder alone, e.g. the saves under way of the run that writes it.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        mergeable: bool,
        keep: int = 0,
        keep_steps: Collection[int] = (),
        read_only: bool = False,
    ):
        self._directory = Path(directory).absolute()
        self._keep, self._keep_steps = keep, frozenset(keep_steps)
        self._removed: set[int] = set()
        if not read_only and jax.process_index() == 0:
            # Orbax would do it in a thread that outlives a short run and complains at exit.
            for leftover in [*self._directory.glob(f"{_DELETED}*"), *self._directory.glob(f"*{_UNFINISHED}*")]:
                shutil.rmtree(leftover)
        self._checkpointer = orbax.orbax().training.Checkpointer(
            epath.Path(self._directory), context=orbax.context(mergeable)
        )
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(quiet())  # until it is closed, for Orbax saves in threads

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def directory(self) -> Path:
        """The folder, absolute."""
        return self._directory

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return [c.step for c in self._checkpointer.checkpoints if c.step not in self._removed]

    def save(self, step: int, items: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
        """Starts writing ``items`` (name -> pytree) for ``step``; returns once the arrays may be donated.

        A step that is there already is left alone.
        """
        if step in self.steps:
            return
        self.wait()
        self._checkpointer.save_checkpointables_async(step, items, force=True, custom_metadata=metadata or {})

    def load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """The items of ``abstract`` (name -> tree of ShapeDtypeStruct with shardings) saved at ``step``."""
        return self._checkpointer.load_checkpointables(step, abstract)

    def wait(self) -> None:
        """Returns when the save under way is on disk and what it replaces is gone; raises what it raised."""
        self._checkpointer.wait()
        self._remove_old()

    def close(self) -> None:
        """Waits, then releases the folder."""
        try:
            self.wait()
        finally:
            with self._quiet:
                self._checkpointer.close()

    def _remove_old(self) -> None:
        """Removes what need not be kept. Orbax would delete in place, and a kill then leaves half a checkpoint that
        looks whole; so each one is first renamed to what is no step."""
        for step in self.steps[: -self._keep] if self._keep else []:
            if step in self._keep_steps:
                continue
            self._removed.add(step)
            if jax.process_index() == 0:
                _remove(self._directory, step)


def _remove(directory: Path, step: int) -> None:
    doomed = directory / f"{_DELETED}{step}"
    os.replace(directory / str(step), doomed)
    shutil.rmtree(doomed)


def drop_after(directory: Path, last: int) -> None:
    """Removes the checkpoints after step ``last`` from the folder of a stream that is not open."""
    for step in orbax.complete_steps(directory):
        if step > last:
            _remove(directory, step)
