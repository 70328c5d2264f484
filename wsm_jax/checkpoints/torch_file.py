"""The two containers of ``torch.save``: a zip with one entry a storage, and the pickles in a row of before 1.6.

Both keep the bytes of a storage as they are, so that any part of any tensor is one read.
"""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from wsm_jax.checkpoints import torch_pickle
from wsm_jax.checkpoints.torch_values import DTYPES
from wsm_jax.errors import UsageError

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
LARGEST = 1 << 26  # bytes of the pickles, which are read whole; a tensor takes some 200

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of torch's magic number
_HEADER = struct.Struct("<4s22xHH")  # of a zip entry: signature, lengths of its name and of what follows


class Range(NamedTuple):
    """Where the bytes of a storage lie in a file."""

    start: int
    nbytes: int


class Contents(NamedTuple):
    """The value of a file, see :func:`wsm_jax.checkpoints.torch_pickle.load`, and key of a storage -> its place."""

    value: Any
    ranges: dict[str, Range]


def is_file(path: Path) -> bool:
    """Whether ``path`` is a whole file of ``torch.save``, by its name, its first bytes and, of a zip, its last ones."""
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    with path.open("rb") as opened:
        head = opened.read(len(_LEGACY))
    return head == _LEGACY or (head.startswith(_ZIP) and zipfile.is_zipfile(path))


def read(path: Path) -> Contents:
    """What a file of ``torch.save`` holds; its tensors stay on the disk.

    Raises:
      UsageError: another file, one that is cut short, damaged or made to do harm, a pickle that holds more than data.
    """
    try:
        with path.open("rb") as opened:
            head = opened.read(512)
            if head.startswith(_ZIP):
                return _read_zip(path, opened)
            if head.startswith(_LEGACY):
                return _read_legacy(path, opened)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    hint = "; it is a tar, as PyTorch 0.1 wrote: load and save it again with PyTorch" * (head[257:262] == b"ustar")
    raise UsageError(f"{path} is no file of torch.save{hint}")


# --- zip -------------------------------------------------------------------------------------------------------------


def _read_zip(path: Path, opened: BinaryIO) -> Contents:
    try:
        with zipfile.ZipFile(opened) as archive:
            entries, end = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, struct.error) as error:
        raise UsageError(f"{path}: cut short or damaged ({error})") from error
    ranges = _ranges(path, opened, entries, end)
    root = entries[0].filename.split("/")[0] if entries else ""
    checks = {entry.filename: entry.CRC for entry in entries}

    def content(name: str) -> bytes:
        name = f"{root}/{name}"
        if ranges[name].nbytes > LARGEST:
            raise UsageError(f"{path}: entry {name} has {ranges[name].nbytes:,} bytes; at most {LARGEST:,} are read")
        opened.seek(ranges[name].start)
        found = opened.read(ranges[name].nbytes)
        if checks[name] not in (0, zlib.crc32(found)):  # 0: torch was told not to compute it
            raise UsageError(f"{path}: entry {name} is damaged; fetch the file again")
        return found

    if f"{root}/constants.pkl" in ranges:
        raise UsageError(f"{path} is a TorchScript program; save its state_dict() with torch.save")
    if f"{root}/data.pkl" not in ranges:
        raise UsageError(f"{path} is a zip that torch.save did not write: it has no data.pkl")
    if f"{root}/byteorder" in ranges and content("byteorder") != b"little":
        raise UsageError(f"{path} was written on a big-endian machine; save it again on another")
    value, _ = torch_pickle.load(io.BytesIO(content("data.pkl")), str(path))
    data = f"{root}/data/"
    return Contents(value, {name.removeprefix(data): place for name, place in ranges.items() if name.startswith(data)})


def _ranges(path: Path, opened: BinaryIO, entries: list[zipfile.ZipInfo], end: int) -> dict[str, Range]:
    """Name of an entry -> where its bytes lie; checks that each has its own, as they are, before ``end``."""
    found: dict[str, Range] = {}
    last = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name = entry.filename
        what = f"{path}: entry {name if name.isprintable() else repr(name)}"
        if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name or "/" not in name:
            raise UsageError(f"{what} has no name that torch.save gives")
        if name.split("/")[0] != entries[0].filename.split("/")[0] or name in found:
            raise UsageError(f"{what} is in another folder than the first, or there twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size != entry.compress_size:
            raise UsageError(f"{what} is compressed or encrypted, as torch.save writes none; save the file again")
        opened.seek(max(entry.header_offset, 0))
        header = opened.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_ZIP):
            raise UsageError(f"{what} is cut short or damaged: nothing begins where the zip has it")
        _, name_length, extra_length = _HEADER.unpack(header)
        start = entry.header_offset + _HEADER.size + name_length + extra_length
        if opened.read(name_length) != entry.orig_filename.encode():
            raise UsageError(f"{what} has another name in its header")
        if entry.header_offset < last or start + entry.file_size > end:
            raise UsageError(f"{what} overlaps with another part of the file")
        last = start + entry.file_size
        found[name] = Range(start, entry.file_size)
    return found


# --- pickles in a row ------------------------------------------------------------------------------------------------


def _read_legacy(path: Path, opened: BinaryIO) -> Contents:
    opened.seek(0)
    stream = io.BytesIO(opened.read(LARGEST))
    (_, _), (version, _), (system, _), (value, storages), (keys, _) = (
        torch_pickle.load(stream, str(path)) for _ in range(5)
    )
    if version != 1001 or not isinstance(system, dict) or not isinstance(keys, list):
        raise UsageError(f"{path}: no file of torch.save, or damaged: its protocol is {str(version)[:20]}")
    if system.get("little_endian") is not True:
        raise UsageError(f"{path} was written on a big-endian machine; save it again on another")
    size, start = os.fstat(opened.fileno()).st_size, stream.tell()
    ranges: dict[str, Range] = {}
    for key in keys:
        if type(key) is not str or key not in storages or key in ranges:
            raise UsageError(f"{path}: damaged: its list of storages does not fit its tensors")
        opened.seek(start)
        nbytes = int.from_bytes(opened.read(8), "little") * DTYPES[storages[key].dtype].itemsize
        if start + 8 + nbytes > size:
            raise UsageError(f"{path}: cut short: it has {size:,} bytes and needs {start + 8 + nbytes:,}")
        ranges[key] = Range(start + 8, nbytes)
        start += 8 + nbytes
    return Contents(value, ranges)
