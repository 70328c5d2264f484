"""Local text files: which ones a path or glob names, and the documents in each."""

import glob
import hashlib
import json
import os
import pathlib
import re
import sys
import sysconfig
import tokenize
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from wsm_jax.errors import UsageError
from wsm_jax.io import places
from wsm_jax.io.files import json_lines

SUFFIXES = (".txt", ".md", ".py", ".parquet", ".jsonl", ".jsonl.gz")
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}

# (name of the file relative to what was asked for, its path)
NamedFile = tuple[str, pathlib.Path]


def select(pattern: str, kind: str = "text") -> list[NamedFile]:
    """The files of a folder (recursive), of one path, or of a glob (``**`` and ``{a,b}`` understood), sorted by name.

    Folders and globs take the known kinds only (see ``SUFFIXES``) and no hidden files. ``kind`` is that of the source.

    Raises:
      UsageError: nothing of a known kind is there, or the address of a bucket.
    """
    places.local(pattern)
    expanded = os.path.expanduser(pattern)
    if os.path.isfile(expanded):
        if not expanded.endswith(SUFFIXES):
            raise UsageError(f"{kind}:{pattern} is not one of {' '.join(SUFFIXES)}")
        return [(os.path.basename(expanded), pathlib.Path(expanded))]
    if os.path.isdir(expanded):
        root, paths = expanded, list(_walk(expanded, set()))
    elif glob.has_magic(expanded) or "{" in expanded:
        root = _fixed_part(expanded)
        paths = [path for one in _expand_braces(expanded) for path in glob.glob(one, recursive=True)]
    else:
        raise UsageError(f"{kind}:{pattern} matches nothing: no such file or folder")
    found = {
        pathlib.Path(os.path.relpath(path, root)).as_posix(): pathlib.Path(path)
        for path in paths
        if path.endswith(SUFFIXES) and os.path.isfile(path)
    }
    if not found:
        raise UsageError(f"{kind}:{pattern} matches nothing of the kinds {' '.join(SUFFIXES)}")
    return sorted(found.items())


def standard_library() -> list[NamedFile]:
    """The running interpreter's own ``.py`` files without tests, installed packages and caches, sorted by name.

    Raises:
      UsageError: this interpreter has no standard library on disk.
    """
    root = sysconfig.get_path("stdlib")
    paths = [path for path in _walk(root, _NOT_LIBRARY) if path.endswith(".py")]
    if not paths:
        raise UsageError(f"stdlib: no .py files under {root}; this Python ({sys.version.split()[0]}) lacks its library")
    return sorted((pathlib.Path(os.path.relpath(path, root)).as_posix(), pathlib.Path(path)) for path in paths)


def stat_signature(files: Iterable[NamedFile]) -> str:
    """SHA-256 (hex) over names, paths, sizes and modification times: cheap, and new when a file changes."""
    digest = hashlib.sha256()
    for name, path in files:
        stat = path.stat()
        digest.update(json.dumps([name, str(path.absolute()), stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()


def content_hash(files: Iterable[NamedFile]) -> str:
    """SHA-256 (hex) over names and bytes.

    Raises:
      UsageError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for name, path in files:
        try:
            with path.open("rb") as file:
                inner = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        digest.update(json.dumps([name, inner]).encode())
    return digest.hexdigest()


def read(files: Iterable[NamedFile]) -> Iterator[tuple[str, str]]:
    """(id, text) of every document with any text, in order.

    A ``.txt``, ``.md`` or ``.py`` file is one document, its id its name. In the other kinds each record is one: its
    text in the field ``text``, its id in the field ``id`` (else the file's name with the line or row, counted from 1).

    Raises:
      UsageError: naming the file (and line): unreadable, undecodable, not JSON, or no ``text``.
    """
    for name, path in files:
        try:
            if name.endswith(".parquet"):
                documents = _parquet(name, path)
            elif name.endswith((".jsonl", ".jsonl.gz")):
                documents = _json_lines(name, path)
            else:
                documents = iter([(name, _whole(path))])
            for identity, text in documents:
                if text:
                    _check_unicode(path, identity, text)
                    yield identity, text
        except (OSError, EOFError, zlib.error) as error:  # the last two: a cut and a damaged gzip file
            raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        except UnicodeDecodeError as error:
            where = f"byte {error.start}"
            raise UsageError(f"{path} is not {error.encoding} text ({where}); convert it to UTF-8") from error


def _whole(path: pathlib.Path) -> str:
    data = path.read_bytes()
    encoding = "utf-8-sig"
    if path.suffix == ".py":
        try:  # Python source may declare another encoding in its first two lines.
            encoding, _ = tokenize.detect_encoding(iter(data.splitlines(keepends=True)).__next__)
        except SyntaxError as error:
            raise UsageError(f"{path} is not Python source that can be decoded: {error}") from error
    return data.decode(encoding)


def _json_lines(name: str, path: pathlib.Path) -> Iterator[tuple[str, str]]:
    for number, record in json_lines(path):
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            have = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise UsageError(f"{path} line {number} has no string field `text` (it has: {have})")
        yield _identity(record.get("id"), name, number), text


def _parquet(name: str, path: pathlib.Path) -> Iterator[tuple[str, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if "text" not in columns:
                raise UsageError(f"{path} has no column `text` (it has: {', '.join(columns)})")
            number = 0
            for batch in file.iter_batches(columns=[c for c in ("id", "text") if c in columns], batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    if not isinstance(record["text"], str):
                        raise UsageError(f"{path} row {number} has no string in the column `text`")
                    yield _identity(record.get("id"), name, number), record["text"]
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from error


def _identity(value: Any, name: str, number: int) -> str:
    return f"{name}:{number}" if value is None else str(value)


def _check_unicode(path: pathlib.Path, identity: str, text: str) -> None:
    try:
        text.encode()
        identity.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no UTF-8 text holds.
        shown = identity.encode("ascii", "backslashreplace").decode()
        raise UsageError(f"{path}: document {shown} is not Unicode text: {error.reason}") from error


def _walk(root: str, left_out: set[str]) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in left_out and not name.startswith(".")]
        yield from (os.path.join(folder, name) for name in names if not name.startswith("."))


def _fixed_part(pattern: str) -> str:
    parts = pattern.split(os.sep)
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part) or "{" in part)
    return os.sep.join(parts[:first]) or (os.sep if pattern.startswith(os.sep) else ".")


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)  # an innermost pair: nested braces unfold from the inside
    if match is None:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [whole for option in match[1].split(",") for whole in _expand_braces(head + option + tail)]
