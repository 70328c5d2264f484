"""The asynchronous writer of a folder with one checkpoint a step, and what it keeps of them.

Into a bucket Orbax writes too, array by array and each process its part, so that no host holds a model twice, in memory
or on a disk; only when a checkpoint is there differs, see :mod:`wsm_jax.io.publish`.
"""

import contextlib
import json
import os
import time
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from etils import epath

from wsm_jax.checkpoints import integrity, orbax
from wsm_jax.checkpoints.quiet import quiet
from wsm_jax.core.trees import named_leaves
from wsm_jax.errors import UsageError
from wsm_jax.io import disk, places, publish

_LEAF_BYTES = 1 << 14  # that folders and metadata take for each array


class Stream:
    """Asynchronous writer of the checkpoints of one folder; use as a context manager, or call :meth:`close`.

    Args:
      directory: created if missing; leftovers of killed saves in it are removed.
      mergeable: store uncompressed in small chunks and hash the arrays (the merge stream); else files are hashed.
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
        self._directory = places.at(directory).absolute()
        self._keep, self._keep_steps = keep, frozenset(keep_steps)
        self._mergeable = mergeable
        self._background = ThreadPoolExecutor(1)
        if not read_only and jax.process_index() == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            publish.sweep(self._directory)
        self._steps = orbax.complete_steps(self._directory)
        self._saving: tuple[int, Future[None]] | None = None
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
        return list(self._steps)

    def save(self, step: int, items: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
        """Starts writing ``items`` (name -> pytree) for ``step``; returns once the arrays may be donated.

        A step that is there already is left alone.
        """
        self.wait()
        if step in self._steps:
            return
        found = {item: integrity.units(tree) for item, tree in items.items()} if self._mergeable else None
        if found is not None and jax.process_index():  # Orbax is done when all processes are; so these are there then
            self._part(step, jax.process_index()).write_text(json.dumps(found))
        made = publish.draft(self._directory / str(step))
        needed = disk.tree_bytes(items) + _LEAF_BYTES * len(jax.tree.leaves(items))
        disk.check_room(self._directory / str(step), needed)
        with disk.writing(self._directory / str(step), needed):
            with orbax.context(self._mergeable):
                saving = orbax.orbax().save_checkpointables_async(
                    epath.Path(made), items, custom_metadata=metadata or {}
                )
        self._saving = step, self._background.submit(self._publish, step, made, saving, found, needed)

    def _publish(self, step: int, made: Path, saving: Any, found: Any, needed: int) -> None:
        """Waits for Orbax, hashes what it wrote and gives it its name: one process does, the others wait."""
        place = self._directory / str(step)
        with disk.writing(place, needed):
            try:
                saving.result()
                if jax.process_index() == 0:
                    integrity.seal(made, found and self._parts(step, found))
                    publish.appear(made, place)
            finally:
                if jax.process_index() == 0:
                    publish.discard(place)
        while jax.process_index() and not publish.is_whole(place):
            if not made.exists() and not publish.is_whole(place):
                raise UsageError(f"{place} was not saved by the first process; see its message")
            time.sleep(0.01)

    def _parts(self, step: int, found: dict[str, integrity.Units]) -> dict[str, list[integrity.Units]]:
        """Item -> hashes of the units of every process, as JSON holds them of the others."""
        parts = {item: [units] for item, units in found.items()}
        for process in range(1, jax.process_count()):
            for item, units in json.loads(self._part(step, process).read_text()).items():
                parts[item].append({path: {int(k): v for k, v in unit.items()} for path, unit in units.items()})
        return parts

    def _part(self, step: int, process: int) -> Path:
        return self._directory / f"{publish.SAVING}{step}.hashes-{process}"

    def load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """The items of ``abstract`` (name -> tree of ShapeDtypeStruct with shardings) saved at ``step``.

        Raises:
          UsageError: it is not what was saved, naming the file, or a leaf has another shape.
        """
        place = self._directory / str(step)
        integrity.check_together(place, abstract)
        for item, tree in abstract.items():  # Orbax would notice while it reads, and complain from its threads
            try:
                stored = named_leaves(orbax.abstract_tree(place, item))
            except UsageError as error:  # of an earlier version's state, which has no hashes that would have told
                raise UsageError(f"{error}; {integrity.advice(place)}") from error
            for name, leaf in named_leaves(tree).items():
                if (found := getattr(stored.get(name), "shape", leaf.shape)) != leaf.shape:
                    raise UsageError(f"{place}: leaf {item}/{name} is {found}, but {leaf.shape} is wanted")
        return orbax.orbax().load_checkpointables(epath.Path(place), abstract)

    def wait(self) -> None:
        """Returns when the save under way is on disk and what it replaces is gone; raises what it raised."""
        if self._saving is None:
            return
        (step, saved), self._saving = self._saving, None
        saved.result()
        self._steps = sorted({*self._steps, step})
        self._remove_old()

    def close(self) -> None:
        """Waits, then releases the folder."""
        try:
            self.wait()
        finally:
            with self._quiet:
                self._background.shutdown()

    def _remove_old(self) -> None:
        """Removes what need not be kept."""
        for step in self._steps[: -self._keep] if self._keep else []:
            if step in self._keep_steps:
                continue
            self._steps.remove(step)
            if jax.process_index() == 0:
                publish.remove(self._directory / str(step))


def drop_after(directory: Path, last: int) -> None:
    """Removes the checkpoints after step ``last`` from the folder of a stream that is not open."""
    for step in orbax.complete_steps(directory):
        if step > last:
            publish.remove(directory / str(step))
