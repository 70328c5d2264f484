"""Paths in a bucket of Google Cloud Storage, gs://BUCKET/PATH, and the two clients that reach it.

gcsfs lists and moves whole objects, as it does for Orbax, by way of epath. TensorStore, which reads and writes the
arrays, does what is conditional: it knows the generation of an object. Both try again, ever later, what a bucket
refuses for a while (429, 5xx, a connection that is cut).
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from etils import epath

from wsm_jax.errors import UsageError

# As their libraries are imported. Asking for the kind of bucket needs other rights and another client.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
os.environ.setdefault("EPATH_USE_TF", "false")
try:
    import fsspec.config
    import gcsfs  # noqa: F401  # fsspec finds it by its name
except ImportError as missing:
    raise UsageError("gs:// needs gcsfs: pip install 'wsm-jax[gcs]'") from missing

SCHEME = "gs://"
MARKER = "wsm_published.json"
CLAIM = "wsm_claim.json"
AT_ONCE = 16  # requests
# What another process writes must be seen: each process would keep the listings that it has made.
fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs each failure with its traceback, and raises it


@contextlib.contextmanager
def told(place: object) -> Iterator[None]:
    """Makes one line of what the bucket answers, but for what callers ask about: an object that is there or is not."""
    try:
        yield
    except (UsageError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError):
        raise
    except Exception as error:
        if not is_answer(error):
            raise
        raise UsageError(f"{place}: {reason(error)}") from error


def is_answer(error: BaseException) -> bool:
    """Whether an error may be what the bucket, or the way to it, says: TensorStore's are ValueErrors."""
    clients = ("aiohttp", "gcsfs", "google", "requests")
    return isinstance(error, (OSError, ValueError)) or type(error).__module__.partition(".")[0] in clients


def reason(error: BaseException) -> str:
    """What a client of the bucket says, in one line, and what to do."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if re.search("Forbidden|PERMISSION_DENIED|UNAUTHENTICATED|Unauthorized|Invalid Credentials|Anonymous caller", text):
        return f"access denied ({text}); gcloud auth application-default login, or a role, gives it"
    return f"the bucket does not do it ({text})"


if TYPE_CHECKING:  # what it stands in for
    from pathlib import Path as _Base
else:
    _Base = type(epath.Path(SCHEME))


class BucketPath(_Base):
    """What pathlib.Path does, as far as this package asks for it."""

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.parts[2]

    @property
    def key(self) -> str:
        """The name of the object, or of the folder, in the bucket."""
        return "/".join(self.parts[3:])

    @property
    def parents(self) -> tuple["BucketPath", ...]:
        """The folders around it, up to the bucket itself."""
        return tuple(parent for parent in super().parents if len(parent.parts) > 2)

    def absolute(self) -> "BucketPath":
        """Itself."""
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        """Itself: there are no links."""
        del strict
        return self

    def expanduser(self) -> "BucketPath":
        """Itself."""
        return self

    def exists(self) -> bool:
        """Whether there is an object of that name, or one in a folder of that name."""
        with told(self):
            return client().exists(str(self))

    def is_file(self) -> bool:
        """Whether there is an object of that name."""
        with told(self):
            return client().isfile(str(self))

    def is_dir(self) -> bool:
        """Whether there is an object in a folder of that name."""
        with told(self):
            return client().isdir(str(self))

    def iterdir(self) -> Iterator["BucketPath"]:
        """What is in the folder; nothing where there is none."""
        with told(self):
            found = client().ls(str(self), detail=False) if self.is_dir() else []
        yield from (self / name.rstrip("/").rpartition("/")[2] for name in found)

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """What in the folder matches a pattern without ``**``."""
        with told(self):
            found = client().glob(f"{self}/{pattern}")
        yield from (type(self)(SCHEME + name) for name in found)

    def read_bytes(self) -> bytes:
        """The object."""
        with told(self):
            return client().cat_file(str(self))

    def read_text(self, encoding: str | None = None) -> str:
        """The object as UTF-8."""
        return self.read_bytes().decode(encoding or "utf-8")

    def write_bytes(self, data: bytes) -> int:
        """Puts the object there, whole or not at all."""
        with told(self):
            client().pipe_file(str(self), data)
        return len(data)

    def write_text(self, text: str, encoding: str | None = None) -> int:
        """Puts a text there, as :meth:`write_bytes`."""
        return self.write_bytes(text.encode(encoding or "utf-8"))

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: folders are parts of names. gcsfs would make a bucket."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        try:
            with told(self):
                client().rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self, missing_ok: bool = True) -> None:
        """Removes all in the folder, its marker first, without which nothing of it counts."""
        (self / MARKER).unlink(missing_ok=True)
        with told(self), contextlib.suppress(FileNotFoundError):
            client().rm(str(self), recursive=True)


def path(text: str) -> BucketPath:
    """The path of an address ``gs://BUCKET/PATH``, in a bucket that is there and may be listed.

    Raises:
      UsageError: no such address or bucket, or one that this account may not list.
    """
    place = BucketPath(text.rstrip("/"))
    if len(place.parts) < 3 or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", place.bucket):
        raise UsageError(f"{text} names no bucket; write gs://BUCKET/PATH")
    if place.bucket not in _seen:
        with told(place):
            if not client().exists(SCHEME + place.bucket):
                raise UsageError(f"{place}: there is no bucket {place.bucket}, or this account may not see it")
        _seen.add(place.bucket)
    return place


_seen: set[str] = set()


def client() -> Any:
    """gcsfs."""
    return fsspec.filesystem("gcs")


def store(folder: BucketPath) -> dict[str, Any]:
    """TensorStore's key-value store of a folder."""
    return {"driver": "gcs", "bucket": folder.bucket, "path": f"{folder.key}/"}


def keys(folder: BucketPath) -> Any:
    """:func:`store`, opened."""
    import tensorstore as ts

    return ts.KvStore.open(store(folder)).result()


def write_if(store: Any, name: str, data: bytes | None, before: bytes | None) -> bytes | None:
    """Writes (None: removes) an object on condition that it is still of the generation ``before``.

    Args:
      store: of :func:`keys`.
      name: of the object.
      data: its new content.
      before: generation; None: there is none.

    Returns:
      the new generation; None where another process has been quicker, and nothing was done.
    """
    if before is None:
        found = store.read(name).result()
        if found.state == "value":
            return found.stamp.generation if found.value == data else None  # ours, whose answer was lost
        before = found.stamp.generation
    written = store.write(name, data, if_equal=before).result().generation
    if written:
        return written
    found = store.read(name).result()
    return found.stamp.generation if found.state == "value" and found.value == data else None
