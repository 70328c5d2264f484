"""A token store: the documents of one source, encoded, split by document, and kept on disk."""

import contextlib
import hashlib
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from wsm_jax.data.sources import Document
from wsm_jax.data.tokenizer import Tokenizer, load_tokenizer
from wsm_jax.errors import UsageError
from wsm_jax.io import publish
from wsm_jax.io.files import json_or_none, write_json
from wsm_jax.io.publish import published

SPLITS = ("train", "validation", "test")
# Part of every key and hash: raise it when the same documents would become other tokens.
FORMAT = 1
# Characters encoded at once: enough to keep all cores busy, little enough to hold in memory.
_CHUNK = 1 << 22
# Texts to, for each, token ids; 1 for each that is learnt, else 0, or None where all are; and UTF-8 bytes that count.
Encoded = tuple[list[int], list[int] | None, int]
Encode = Callable[[Sequence[str]], Sequence[Encoded]]


class TokenStore:
    """The tokens of one source.

    Args:
      path: a folder that :func:`write_store` published.

    Attributes:
      path: that folder.
      files: the same on this machine.
      manifest: source, hashes, vocabulary and, under ``splits``, documents, tokens and UTF-8 bytes of each split.
      hash: identifies the tokens and their splits exactly; losses are compared only between equal hashes.

    Raises:
      UsageError: not a token store, or damaged.
    """

    def __init__(self, path: pathlib.Path):
        self.path, self.files = path, publish.at_hand(path)
        manifest = json_or_none(self.files / "manifest.json")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise UsageError(f"{path} is not a token store of this version; delete it and run wsm prepare")
        if not _is_manifest(manifest):
            raise self._damaged("manifest.json", "it lacks what wsm prepare writes there")
        self.manifest: dict[str, Any] = manifest
        self.hash: str = manifest["hash"]
        for split in SPLITS:
            expected = manifest["splits"][split]["tokens"] * np.dtype(manifest["dtype"]).itemsize
            file = self.files / split / "tokens.bin"
            if not file.is_file() or file.stat().st_size != expected:
                raise self._damaged(f"{split}/tokens.bin", f"it should hold {expected} bytes")
            for name in ("offsets.npy", "bytes.npy"):
                self._array(split, name, "r")
            if self.has_learnt:
                self.learnt(split)

    def tokens(self, split: str) -> np.ndarray:
        """The documents of a split, each followed by end-of-text: [tokens], uint16 or uint32, mapped from disk."""
        dtype, count = np.dtype(self.manifest["dtype"]), self.manifest["splits"][split]["tokens"]
        if count == 0:  # nothing to map
            return np.zeros(0, dtype)
        return np.memmap(self.files / split / "tokens.bin", dtype=dtype, mode="r", shape=(count,))

    @property
    def has_learnt(self) -> bool:
        """Whether some of its tokens are given and not learnt, as the prompts of conversations."""
        return bool(self.manifest.get("learnt"))

    def learnt(self, split: str) -> np.ndarray:
        """1 for each token of a split that is learnt, else 0: [tokens], uint8, mapped from disk."""
        count, file = self.manifest["splits"][split]["tokens"], self.files / split / "learnt.bin"
        if not file.is_file() or file.stat().st_size != count:
            raise self._damaged(f"{split}/learnt.bin", f"it should hold {count} bytes")
        return np.memmap(file, dtype=np.uint8, mode="r", shape=(count,)) if count else np.zeros(0, np.uint8)

    def offsets(self, split: str) -> np.ndarray:
        """Where each document starts, and the end: int64 [documents + 1], in tokens."""
        offsets = self._array(split, "offsets.npy")
        if offsets[0] != 0 or offsets[-1] != self.manifest["splits"][split]["tokens"] or (np.diff(offsets) < 1).any():
            raise self._damaged(f"{split}/offsets.npy", "its documents are not those of the tokens")
        return offsets

    def document_bytes(self, split: str, document_tokens: int = 0) -> np.ndarray:
        """UTF-8 length of each document's text, or of what its first so many tokens stand for: int64 [documents]."""
        sizes = self._array(split, "bytes.npy")
        if (sizes < 1).any() or sizes.sum() != self.manifest["splits"][split]["bytes"]:
            raise self._damaged(f"{split}/bytes.npy", "its lengths are not those of the documents")
        offsets = self.offsets(split)
        longer = np.flatnonzero(np.diff(offsets) > document_tokens) if document_tokens else []
        if len(longer):
            tokens, tokenizer = self.tokens(split), load_tokenizer(self.path)
            for document in longer:
                start = offsets[document]
                sizes[document] = tokenizer.byte_count(tokens[start : start + document_tokens])
        return sizes

    def _array(self, split: str, name: str, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
        """The array of a file; with ``mmap_mode`` none of it is read, but its form and length are known to be right."""
        try:
            array = np.load(self.files / split / name, mmap_mode)
        except Exception as error:  # NumPy meets other bytes with many kinds of them
            reason = " ".join(str(error).split())[:100]
            raise self._damaged(f"{split}/{name}", reason or type(error).__name__) from error
        count = self.manifest["splits"][split]["documents"] + (name == "offsets.npy")
        if not isinstance(array, np.ndarray) or array.dtype != np.int64 or array.shape != (count,):
            raise self._damaged(f"{split}/{name}", f"it should hold {count} numbers of 64 bits")
        return array

    def _damaged(self, file: str, why: str) -> UsageError:
        return UsageError(f"{self.path / file} is damaged: {why}; delete {self.path} and run wsm prepare")


def _is_manifest(manifest: dict[str, Any]) -> bool:
    """Whether everything is there that a reader of the store asks for."""
    counts = manifest.get("splits")
    return (
        all(isinstance(manifest.get(name), str) for name in ("hash", "source", "tokenizer_hash"))
        and all(isinstance(manifest.get(name), int) for name in ("vocab_size", "eot"))
        and manifest.get("dtype") in ("uint16", "uint32")
        and isinstance(counts, dict)
        and all(
            isinstance(counts.get(split), dict)
            and all(isinstance(counts[split].get(name), int) for name in ("documents", "tokens", "bytes"))
            for split in SPLITS
        )
    )


def split_of(text: str, validation_fraction: float, test_fraction: float) -> str:
    """The split of a document: a function of its text alone.

    So a copy in another source falls in the same split, no document moves when others come or go, and the two held-out
    shares are independent of each other: test is cut from one end of the hash's range, validation from the other.
    """
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if place < test_fraction:
        return "test"
    return "validation" if place >= 1 - validation_fraction else "train"


def write_store(
    path: pathlib.Path,
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    fractions: tuple[float, float],
    manifest: dict[str, Any],
    encode: Encode | None = None,
    beside: Sequence[pathlib.Path] = (),
) -> TokenStore:
    """Encode documents into a store that appears whole or not at all.

    Args:
      path: its folder; where another process has published it meanwhile, that one stays.
      documents: what to encode, read once.
      tokenizer: encodes; its end-of-text token follows each document.
      fractions: share of the documents for validation and for test.
      manifest: fields to keep beside the counts; must hold ``hash``.
      encode: what makes tokens of texts, and says which are learnt; None: the tokenizer, and all are.
      beside: files that go with the tokenizer, copied.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    with published(path) as folder:
        manifest = manifest | {
            "format": FORMAT,
            "tokenizer_hash": tokenizer.hash,
            "vocab_size": tokenizer.vocab_size,
            "eot": tokenizer.eot,
            "dtype": dtype.name,
            "validation_fraction": fractions[0],
            "test_fraction": fractions[1],
            "python": sys.version.split()[0],
            "splits": _write_splits(
                folder, documents, encode or _plain(tokenizer), fractions, dtype, learnt_too=encode is not None
            ),
            **({"learnt": True} if encode else {}),
        }
        tokenizer.save(folder / "tokenizer.json")
        for file in beside:
            (folder / file.name).write_bytes(file.read_bytes())
        write_json(folder / "manifest.json", manifest)
    return TokenStore(path)


def _plain(tokenizer: Tokenizer) -> Encode:
    """Documents as they are, each with an end-of-text behind it."""

    def encode(texts: Sequence[str]) -> list[Encoded]:
        found = zip(texts, tokenizer.encode_batch(texts), strict=True)
        return [([*ids, tokenizer.eot], None, len(text.encode())) for text, ids in found]

    return encode


def _write_splits(
    folder: pathlib.Path,
    documents: Iterable[Document],
    encode: Encode,
    fractions: tuple[float, float],
    dtype: np.dtype,
    *,
    learnt_too: bool,
) -> dict[str, dict[str, int]]:
    lengths: dict[str, list[int]] = {split: [] for split in SPLITS}
    sizes: dict[str, list[int]] = {split: [] for split in SPLITS}
    with contextlib.ExitStack() as stack:
        out, marks = {}, {}
        for split in SPLITS:
            (folder / split).mkdir()
            out[split] = stack.enter_context((folder / split / "tokens.bin").open("wb"))
            if learnt_too:
                marks[split] = stack.enter_context((folder / split / "learnt.bin").open("wb"))
        for texts in _chunks(documents):
            for text, (ids, learnt, size) in zip(texts, encode(texts), strict=True):
                split = split_of(text, *fractions)
                out[split].write(np.asarray(ids, dtype).tobytes())
                if learnt is not None:
                    marks[split].write(bytes(learnt))
                lengths[split].append(len(ids))
                sizes[split].append(size)
    counts = {}
    for split in SPLITS:
        np.save(folder / split / "offsets.npy", np.cumsum([0, *lengths[split]], dtype=np.int64))
        np.save(folder / split / "bytes.npy", np.asarray(sizes[split], np.int64))
        counts[split] = {"documents": len(lengths[split]), "tokens": sum(lengths[split]), "bytes": sum(sizes[split])}
    return counts


def _chunks(documents: Iterable[Document]) -> Iterator[list[str]]:
    texts, held = [], 0
    for document in documents:
        texts.append(document.text)
        held += len(document.text)
        if held >= _CHUNK:
            yield texts
            texts, held = [], 0
    if texts:
        yield texts
