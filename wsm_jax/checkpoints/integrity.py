"""Whether a checkpoint is what was saved: hashes made when it is, checked by everybody who reads it."""

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from wsm_jax.checkpoints import orbax
from wsm_jax.core.trees import named_leaves
from wsm_jax.errors import UsageError
from wsm_jax.io import hashes, places, publish
from wsm_jax.io.files import read_json
from wsm_jax.parallel import ranges
from wsm_jax.parallel.processes import all_succeed

if TYPE_CHECKING:
    from wsm_jax.checkpoints.storage import Source

Units = dict[str, dict[int, str]]  # leaf path -> number of a unit -> digest
Held = dict[Path, list[tuple[int, int]]]  # file -> ranges of bytes that hold hashed elements
In = TypeVar("In")
Out = TypeVar("Out")

WORKERS = 4  # threads that read and hash
_TOGETHER = 256  # units that one of them does at a time: 64 MB of float32


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is not as it was saved: a file, and what it is in words."""

    file: Path
    what: str

    def __str__(self) -> str:
        return f"{self.file} {self.what}"


def units(tree: Any) -> Units:
    """Hashes of the arrays of ``tree``, of the units that lie whole in what this process saves of them."""
    leaves = named_leaves(tree)

    def hashed(path: str) -> dict[int, str]:
        units = hashes.Units({path: math.prod(np.shape(leaves[path]))})
        return dict(unit for start, values in _parts(leaves[path]) for unit in units.add(path, start, values))

    return dict(zip(leaves, _at_once(hashed, leaves), strict=True))


def _parts(leaf: Any) -> Iterator[tuple[int, np.ndarray]]:
    """(first element, elements) of the ranges of an array that this process saves."""
    if not isinstance(leaf, jax.Array):
        yield 0, np.ascontiguousarray(leaf).reshape(-1)
        return
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            starts, length = ranges.of(leaf.shape, shard.index)
            rows = np.ascontiguousarray(shard.data).reshape(len(starts), length)
            yield from zip(starts.tolist(), rows, strict=True)


def seal(folder: Path, found: Mapping[str, Sequence[Units]] | None = None) -> None:
    """Keeps the hashes of a finished checkpoint in its folder, before it gets its name.

    Args:
      folder: the checkpoint.
      found: item -> hashes of its units, of each process; those that none of them has are read. None: the hashes of
        arrays that the folder has already, if any.
    """
    arrays: dict[str, Mapping[str, Sequence[str]]] = {}
    if found is None:
        arrays.update((hashes.load(folder) or hashes.Hashes()).arrays)
    held: Held = {}
    for item in arrays if found is None else found:
        with _opened(folder, item) as source:
            held |= source.held()
            if found is not None:
                arrays[item] = _table(source, found[item])
    if places.on_bucket(folder):  # its marker will say what the bucket itself says of its objects
        hashes.write(folder, arrays)
        return
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / hashes.FILE)
    digests = _at_once(lambda file: hashes.of_file(file, held.get(file, ())), files)
    hashes.write(folder, arrays, dict(zip((_relative(file, folder) for file in files), digests, strict=True)))


def _table(source: "Source", parts: Sequence[Units]) -> hashes.Table:
    table = {}
    for path, leaf in source.leaves.items():
        known = {number: digest for part in parts for number, digest in part.get(path, {}).items()}
        numbers = range(hashes.count(leaf.size))
        known |= _stored(source, path, [number for number in numbers if number not in known])
        table[path] = [known[number] for number in numbers]
    return table


def _stored(source: "Source", path: str, numbers: Sequence[int]) -> dict[int, str]:
    """Digests of units of a leaf as they lie on the disk; those that can only be read together are."""
    leaf, found = source.leaves[path], {}
    grain = math.lcm(hashes.UNIT, leaf.quantum)
    hashed = hashes.Units({path: leaf.size})
    for start in sorted({number * hashes.UNIT // grain * grain for number in numbers}):
        values = np.empty(min(grain, leaf.size - start), leaf.dtype)
        source.read(path, start, values)
        found |= dict(hashed.add(path, start, values))
    return {number: found[number] for number in numbers}


def damages(path: str | os.PathLike, items: Collection[str] | None = None) -> Iterator[Damage]:
    """What of the checkpoint at ``path`` is not as it was saved; without hashes none can be told.

    Args:
      path: a checkpoint, which is read whole.
      items: only these of its items and what belongs to none.
    """
    folder = places.at(path).absolute()
    try:
        kept = hashes.load(folder)
    except UsageError:
        yield Damage(folder / hashes.FILE, "is damaged")
        return
    if kept is None:
        return
    if (changed := publish.changed(folder)) is not None:  # a bucket knows of its objects without reading them
        yield from (Damage(folder / name, what) for name, what in changed)
        if changed:
            return
        kept = dataclasses.replace(kept, files={})
    wanted = [item for item in kept.arrays if items is None or not item or item in items]
    files = [name for name in kept.files if items is None or "/" not in name or name.split("/")[0] in items]
    with contextlib.ExitStack() as stack:
        held, sources, unreadable = {}, {}, []
        for item in wanted:
            try:
                sources[item] = stack.enter_context(_opened(folder, item))
                held |= sources[item].held()
            except UsageError as error:
                unreadable.append((item, error))
        # Of an item that cannot be opened nobody knows which bytes of a chunk are elements.
        unknown = tuple(f"{item}/" for item, _ in unreadable)
        files = [name for name in files if not (name.startswith(unknown) and _is_chunk(name))]
        broken = [*_at_once(lambda name: _changed_file(folder / name, kept.files[name], held), files)]
        yield from (found := [damage for damage in broken if damage])
        named = {damage.file for damage in found}
        if unreadable and not found:
            yield Damage(folder / unreadable[0][0], f"cannot be read ({unreadable[0][1]})")
        for item, source in sources.items():
            # A file that is cut short has been named.
            yield from (damage for damage in _changed_arrays(source, kept.arrays[item]) if damage.file not in named)


def _changed_file(file: Path, digest: str, held: Held) -> Damage | None:
    try:
        return None if hashes.of_file(file, held.get(file, ())) == digest else Damage(file, "is damaged")
    except FileNotFoundError:
        return Damage(file, "is missing")
    except OSError as error:
        return Damage(file, f"cannot be read ({error.strerror})")


def _changed_arrays(source: "Source", table: hashes.Table) -> Iterator[Damage]:
    if other := sorted(set(table) ^ set(source.leaves)):
        yield Damage(source.path, f"has other arrays than were saved, e.g. {other[0]}")
        return
    parts = [
        (path, range(first, min(first + _TOGETHER, len(digests))))
        for path, digests in table.items()
        for first in range(0, len(digests), _TOGETHER)
    ]

    def changed(part: tuple[str, range]) -> set[Path]:
        path, numbers = part
        try:
            found = _stored(source, path, numbers)
        except UsageError:  # a file that is gone or cut short, which was named before
            return {source.file_at(path, numbers[0] * hashes.UNIT)}
        wrong = [number for number in numbers if found[number] != table[path][number]]
        ends = [(n * hashes.UNIT, min((n + 1) * hashes.UNIT, source.leaves[path].size) - 1) for n in wrong]
        return {source.file_at(path, element) for pair in ends for element in pair}

    for file in sorted(set().union(*_at_once(changed, parts))):
        yield Damage(file, "is damaged")


def check(path: str | os.PathLike, items: Collection[str] | None = None) -> None:
    """Reads what :func:`damages` says and compares it; a checkpoint of an earlier version has nothing to compare with.

    Raises:
      UsageError: damage, with what to do, or a checkpoint that ought to have hashes and has none.
    """
    if not (places.at(path) / hashes.FILE).exists():
        note_absence(path)
    elif damage := next(damages(path, items), None):
        raise UsageError(f"{damage}; {advice(path)}")


def check_together(path: str | os.PathLike, items: Collection[str] | None = None) -> None:
    """:func:`check` by the first process of a distributed run, for all; they call it together."""
    with all_succeed():
        if jax.process_index() == 0:
            check(path, items)


def note_absence(path: str | os.PathLike) -> None:
    """Says once that what an earlier version saved in a run has no hashes.

    Raises:
      UsageError: the run is of a version that saves hashes with everything, so they are lost.
    """
    run = _run_of(places.at(path))
    if run is None:
        return
    if "hashes" in read_json(run / "run.json"):
        raise UsageError(f"{places.at(path) / hashes.FILE} is missing; {advice(path)}")
    if run not in _noted and jax.process_index() == 0:
        print(f"note: {path} has no hashes, for an earlier version saved it; it is read unchecked", file=sys.stderr)
    _noted.add(run)


_noted: set[Path] = set()


def _run_of(path: Path) -> Path | None:
    """The run directory in which a checkpoint lies as those of its streams, or its merges, do."""
    path = path.absolute()
    stream = path.parent.parent.name == "checkpoints"
    run = path.parents[2] if stream and len(path.parents) > 2 else path.parent.parent
    inside = stream or path.parent.name == "merged"
    return run if inside and (run / "run.json").is_file() else None


def advice(path: str | os.PathLike) -> str:
    """What to do about a checkpoint that is damaged, by where it lies."""
    path = places.at(path)
    run = _run_of(path)
    if run is None:
        return "copy or merge it again"
    if path.absolute().parent.name == "merged":
        return "remove it and merge again"
    states = [step for step in orbax.complete_steps(run / "checkpoints" / "resume") if step < int(path.name)]
    older = max(states, default=None)
    if path.parent.name == "resume":
        go_on = f"the next older state is {older}: remove {path} to go on from there"
        return go_on if older is not None else f"there is no older state: remove {run} to train it anew"
    if older is None:
        return "leave it out, or train the run anew"
    return f"leave it out, or retrain the interval that ends there: wsm train --branch_from={run}@{older}"


@contextlib.contextmanager
def _opened(folder: Path, item: str) -> Iterator["Source"]:
    from wsm_jax.checkpoints import storage  # which publishes merges and so needs this module

    source = storage.open_source(folder, item or None)
    try:
        yield source
    finally:
        source.close()


def _at_once(work: Callable[[In], Out], parts: Iterable[In]) -> list[Out]:
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, parts))


def _is_chunk(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last.isdigit() or last == "c"


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()
