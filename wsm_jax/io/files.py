"""Small files of text, JSON and JSON lines, read with one clear error and written whole or not at all."""

import contextlib
import gzip
import json
import os
import secrets
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wsm_jax.errors import UsageError
from wsm_jax.io import disk, places
from wsm_jax.io.publish import appear

_SECONDS = 5.0  # between two writings of a file that grows; a bucket takes one a second


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text spells.

    Raises:
      ValueError: malformed, or nested more deeply than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> Any:
    """The JSON in ``path``.

    Raises:
      UsageError: missing or malformed.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error})") from error


def json_lines(path: Path, expected: str = "") -> Iterator[tuple[int, Any]]:
    """(number, value) of each line of JSON that somebody wrote; the file is gzipped where its name ends in ``.gz``.

    Args:
      path: of the file.
      expected: what should be there, for the error where nothing is.

    Raises:
      UsageError: naming the file, and the line: not there, cannot be read, not JSON.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    value = parse_json(line)
                except ValueError as error:  # also what it raises for bytes that are no UTF-8
                    raise UsageError(f"{path} line {number} is not JSON: {error}") from error
                yield number, value
    except FileNotFoundError as error:
        raise UsageError(f"{path} is not there{expected and f'; {expected}'}") from error
    except (OSError, EOFError, zlib.error) as error:  # the last two: a cut and a damaged gzip file
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def json_or_none(path: Path) -> Any:
    """The JSON value in ``path``, or None where there is no such file or it is not JSON."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, as :func:`write_text` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line cut by a crash is left out; no file gives none.

    Raises:
      UsageError: a file that cannot be read, a line before the last that is no JSON, or one that is no record.
    """
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
        except ValueError as error:
            if number < len(lines):
                raise UsageError(f"{path}:{number}: not a JSON record ({error})") from error
            break
        if not isinstance(record, dict):
            raise UsageError(f"{path}:{number}: not a JSON record, which begins with a brace")
        records.append(record)
    return records


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one record a line, as :func:`write_text` does."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` so that ``path`` holds the old or the new one, never a part."""
    data = text.encode()
    if places.on_bucket(path):  # an object is there whole or not at all
        path.write_bytes(data)
        return
    with disk.writing(path, len(data)), replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to, which becomes ``path`` when the block ends, and is gone where it fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")  # several hosts may share the disk
    try:
        with disk.writing(path, lambda: disk.disk_bytes(temporary)):
            yield temporary
            appear(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Lines:
    """A text file that grows by lines; in a bucket, where nothing can be appended to, it is written again now and then.

    Args:
      path: the file; what it holds stays.
    """

    def __init__(self, path: Path):
        self._path, self._file, self._text = path, None, ""
        if not places.on_bucket(path):
            self._file = path.open("a", buffering=1)
            return
        self._text = path.read_text() if path.is_file() else ""
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._written = self._text
        self._thread = threading.Thread(target=self._write_now_and_then, daemon=True)
        self._thread.start()

    def add(self, line: str) -> None:
        """Adds a line, which ends in a newline."""
        if self._file is not None:
            self._file.write(line)
        else:
            self._text += line

    def flush(self) -> None:
        """Returns when all lines are where others read them.

        Raises:
          UsageError: the bucket refuses.
        """
        if self._file is not None:
            return  # each line was written at once
        with self._lock:
            if self._written != (text := self._text):
                self._path.write_text(text)
                self._written = text

    def _write_now_and_then(self) -> None:
        while not self._ended.wait(_SECONDS):
            with contextlib.suppress(UsageError):  # the next flush tells
                self.flush()

    def close(self) -> None:
        """Writes what is left."""
        if self._file is not None:
            self._file.close()
            return
        self._ended.set()
        self._thread.join()
        self.flush()
