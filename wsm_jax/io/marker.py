"""What is whole in a bucket: the marker of a folder, and whole folders put there from a disk, or fetched.

A bucket has no folders and renames nothing, so everything is written where it stays, and what is whole says one small
object, the marker, written last and on condition that there is none. It holds name, size and CRC32C of the objects that
it stands for, as the bucket lists them: nothing is read back. Readers trust the marker alone; what lacks it is what a
killed process has left. Who removes something removes its marker first.
"""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xxhash

from wsm_jax.errors import UsageError
from wsm_jax.io import claims
from wsm_jax.io.bucket import CLAIM, MARKER, BucketPath, client, keys, told, write_if

_COPIES = 4  # files that are put there or fetched at once


def publish(folder: BucketPath) -> None:
    """Writes the marker of a folder whose objects are there: from now on it is whole.

    Raises:
      UsageError: another process has published it, or nothing is there.
    """
    objects = _objects(folder)
    if not objects:
        raise UsageError(f"{folder} cannot be published: nothing is there")
    claims.check_kept(folder)
    text = json.dumps({"format": 1, "objects": objects}, indent=1)
    with told(folder):
        if not write_if(keys(folder), MARKER, text.encode(), None):
            raise UsageError(f"{folder} was published by another process meanwhile; it is left as it is")


def manifest(folder: BucketPath) -> dict[str, dict[str, Any]] | None:
    """Name -> size and CRC32C of what a whole folder holds; None where it has no marker.

    Raises:
      UsageError: a marker that cannot be read.
    """
    with told(folder):
        found = keys(folder).read(MARKER).result()
    if found.state != "value":
        return None
    try:
        return dict(json.loads(found.value)["objects"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / MARKER} cannot be read ({type(error).__name__}: {error})") from error


def changed(folder: BucketPath) -> list[tuple[str, str]]:
    """(object, what it is in words) of what is not as the marker says, from the bucket's listing alone."""
    published = manifest(folder)
    if published is None:
        return [(MARKER, "is missing")]
    there = _objects(folder)
    missing = [(name, "is missing") for name in published if name not in there]
    return missing + [(name, "is damaged") for name, held in published.items() if there.get(name, held) != held]


def _objects(folder: BucketPath) -> dict[str, dict[str, Any]]:
    with told(folder):
        found = client().find(str(folder), detail=True)
    start = len(f"{folder.bucket}/{folder.key}/")
    held = {name[start:]: {"size": int(one["size"]), "crc32c": one["crc32c"]} for name, one in sorted(found.items())}
    return {name: one for name, one in held.items() if name not in (MARKER, CLAIM, "")}


# --- whole folders to and from a disk --------------------------------------------------------------------------------


def upload(made: pathlib.Path, folder: BucketPath) -> None:
    """Puts the files of a folder on the disk under ``folder`` and publishes them; what else lies there goes.

    Raises:
      UsageError: it is published already, an object is not what the disk has, or as :func:`publish`.
    """
    if manifest(folder) is not None:
        raise UsageError(f"{folder} was published by another process meanwhile; it is left as it is")
    names = [file.relative_to(made).as_posix() for file in sorted(made.rglob("*")) if file.is_file()]
    for name in _objects(folder).keys() - set(names):
        (folder / name).unlink(missing_ok=True)
    with told(folder):
        _at_once(lambda name: client().put_file(str(made / name), str(folder / name)), names)
    there = _objects(folder)
    for name, found in zip(names, _at_once(lambda name: _crc32c(made / name), names), strict=True):
        if there.get(name, {}).get("crc32c") != found:
            raise UsageError(f"{folder / name} is not what was written; type the same command again")
    publish(folder)


def fetch(folder: BucketPath, cache: pathlib.Path) -> pathlib.Path:
    """A folder on the disk with what the marker of ``folder`` holds: from ``cache`` where it has been there before.

    Raises:
      UsageError: no marker; an object that is not what it says.
    """
    published = manifest(folder)
    if published is None:
        raise UsageError(f"{folder} has no {MARKER}: nothing whole is there")
    name = xxhash.xxh3_128_hexdigest(json.dumps([str(folder), published]).encode())
    place = cache / name
    if place.is_dir():
        return place
    cache.mkdir(parents=True, exist_ok=True)
    made = pathlib.Path(tempfile.mkdtemp(prefix=".tmp-", dir=cache))
    try:

        def get(name: str) -> None:
            file = made / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with told(folder / name):
                client().get_file(str(folder / name), str(file))
            if _crc32c(file) != published[name]["crc32c"]:
                raise UsageError(f"{folder / name} is damaged")

        _at_once(get, published)
        with contextlib.suppress(OSError):  # another process was quicker
            os.replace(made, place)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return place


def _crc32c(file: pathlib.Path) -> str:
    """As a bucket lists it: base64 of the four bytes, big-endian."""
    import google_crc32c  # which gcsfs brings

    found = google_crc32c.Checksum()
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            found.update(part)
    return base64.b64encode(found.digest()).decode()


def _at_once(work: Callable[[str], Any], names: Iterable[str]) -> list[Any]:
    with ThreadPoolExecutor(_COPIES) as pool:
        return list(pool.map(work, names))
