"""Prepared tokens of a run: every source found or encoded, with one tokenizer, under one hash."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from wsm_jax.config import DataConfig, check_values
from wsm_jax.data import chat, conversations, files, sources
from wsm_jax.data.sources import Document, Source
from wsm_jax.data.store import FORMAT, SPLITS, TokenStore, split_of, write_store
from wsm_jax.data.tokenizer import LARGEST, SMALLEST, Tokenizer, load_tokenizer, tokenizer_files, train_bpe
from wsm_jax.errors import UsageError
from wsm_jax.io import publish
from wsm_jax.io.files import json_or_none, write_json
from wsm_jax.io.publish import data_folder

__all__ = ["SPLITS", "Corpus", "TokenStore", "prepare", "split_of"]

Mixture = list[tuple[TokenStore, float]]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a run trains on.

    Attributes:
      stable: (store, weight) of the mixture; weights sum to 1.
      switch: the same from the switch on; empty where the mixture never changes.
      tokenizer: the one that encoded all of them.
    """

    stable: Mixture
    switch: Mixture
    tokenizer: Tokenizer

    @property
    def vocab_size(self) -> int:
        """Largest token id + 1."""
        return self.tokenizer.vocab_size

    @property
    def is_packed(self) -> bool:
        """Whether its rows are packed conversations."""
        return any(store.has_learnt for store, _ in self.stable)

    @functools.cached_property
    def hash(self) -> str:
        """Identifies the tokens and weights of both mixtures: SHA-256, hex."""
        return _digest([[(store.hash, weight) for store, weight in part] for part in (self.stable, self.switch)])

    def manifest(self) -> dict[str, Any]:
        """What the run directory keeps (JSON-ready): hashes, and each store's manifest with its weight and path."""
        parts = {
            name: [{**store.manifest, "weight": weight, "path": str(store.path)} for store, weight in mixture]
            for name, mixture in (("stable", self.stable), ("switch", self.switch))
        }
        return {"hash": self.hash, "tokenizer_hash": self.tokenizer.hash, "vocab_size": self.vocab_size, **parts}


def prepare(config: DataConfig, progress: bool = False) -> Corpus:
    """Tokens for every source of ``config.source`` and ``config.switch_source``, made now or found.

    Nothing is read again as long as names, sizes and times of the files are those of the last time.

    Args:
      config: sources, tokenizer, fractions and the folder they are kept in.
      progress: say on standard error what is being done.

    Raises:
      UsageError: bad fractions, sources or tokenizer, a split that would be empty, or two sources with equal content.
    """
    check_values(config, "data.")
    fractions = _fractions(config)
    size = _bpe_size(config.tokenizer)
    given = None if size else load_tokenizer(config.tokenizer)  # before anything is fetched or read
    stable = sources.parse_mixture(config.source, "data.source")
    switch = sources.parse_mixture(config.switch_source, "data.switch_source") if config.switch_source.strip() else []
    folder = data_folder(config.store)
    work = publish.workroom(folder)
    found = {spec: sources.find(spec, work) for spec in dict.fromkeys(spec for spec, _ in stable + switch)}
    encoder = _encoder(config, list(found), given)
    held_out = [split for split, fraction in zip(SPLITS[1:], fractions, strict=True) if fraction > 0]
    # Of the switch's sources, losses are measured on those that have held-out documents.
    required = {spec: ["train"] for spec in found} | {spec: ["train", *held_out] for spec, _ in stable}
    keys = _keys(config, found, [spec for spec, _ in stable], fractions)

    stores = {spec: store for spec in found if (store := _indexed(folder, keys[spec])) is not None}
    for spec, store in stores.items():
        counts = {split: count["documents"] for split, count in store.manifest["splits"].items()}
        _check_counts(spec, counts, required[spec], fractions)
    missing = [source for spec, source in found.items() if spec not in stores]
    if missing:
        say = _reporter(progress)
        readers: dict[str, Callable[[], Iterator[Document]]] = {}
        hashes: dict[str, str] = {}
        for source in missing:
            say(f"reading {source.spec}")
            readers[source.spec] = source.open()
            hashes[source.spec], counts = _survey(readers[source.spec](), fractions)
            _check_counts(source.spec, counts, required[source.spec], fractions)
        if given:
            tokenizer = given
        elif stores:  # their keys say that they were made with the vocabulary that is wanted
            tokenizer = load_tokenizer(next(iter(stores.values())).files)
        else:
            say(f"training a vocabulary of {size} tokens")
            texts = (d.text for spec, _ in stable for d in readers[spec]() if split_of(d.text, *fractions) == "train")
            tokenizer = train_bpe(texts, size)
        for source in missing:
            how = [encoder.hash] if encoder else []
            name = _digest([FORMAT, hashes[source.spec], tokenizer.hash, fractions, *how])
            place = folder / publish.TOKENS / name[:32]
            if _is_whole(place):
                stores[source.spec] = TokenStore(place)
            else:
                say(f"encoding {source.spec}")
                about = {"hash": name, "source": source.spec, "source_hash": hashes[source.spec]}
                kept = _beside(config, (*chat.FILES, chat.GENERATION)) if encoder else []
                documents = readers[source.spec]()
                stores[source.spec] = write_store(place, documents, tokenizer, fractions, about, encoder, kept)
            (folder / "index").mkdir(exist_ok=True)
            write_json(folder / "index" / f"{keys[source.spec]}.json", {"store": place.name, "source": source.spec})
    else:
        tokenizer = given or load_tokenizer(next(iter(stores.values())).files)
    _check_different({spec: stores[spec] for spec, _ in stable})
    _check_different({spec: stores[spec] for spec, _ in switch})
    return Corpus([(stores[s], w) for s, w in stable], [(stores[s], w) for s, w in switch], tokenizer)


def check(config: DataConfig) -> int:
    """The size that the vocabulary will have, at most; looks for what :func:`prepare` needs and reads no document.

    Raises:
      UsageError: bad fractions, sources or tokenizer; of local text also that there is none.
    """
    check_values(config, "data.")
    _fractions(config)
    folder = data_folder(config.store)
    for field in ("source", "switch_source"):
        text = getattr(config, field)
        for spec, _ in sources.parse_mixture(text, f"data.{field}") if text.strip() or field == "source" else []:
            if spec.partition(":")[0] in ("stdlib", "text", sources.CHAT):
                sources.find(spec, folder)
    return _bpe_size(config.tokenizer) or load_tokenizer(config.tokenizer).vocab_size


def _encoder(config: DataConfig, specs: list[str], tokenizer: Tokenizer | None) -> conversations.Encoder | None:
    """What makes tokens of conversations; None where the sources are documents."""
    chats = [spec for spec in specs if _is_chat(spec)]
    if not chats:
        return None
    if len(chats) < len(specs):
        other = next(spec for spec in specs if spec not in chats)
        raise UsageError(f"sources {chats[0]!r} and {other!r} do not mix: conversations are packed, documents are not")
    if tokenizer is None:
        raise UsageError(
            f"data.tokenizer={config.tokenizer} is trained on documents; source {chats[0]!r} needs the tokenizer of "
            "the model that learns it: data.tokenizer=FOLDER"
        )
    return conversations.Encoder(tokenizer, chat.find_template([_tokenizer_folder(config.tokenizer)]))


def _tokenizer_folder(tokenizer: str) -> pathlib.Path:
    place = pathlib.Path(tokenizer).expanduser()
    return place.parent if place.is_file() else place


def _beside(config: DataConfig, names: Sequence[str]) -> list[pathlib.Path]:
    """The files of these names beside the tokenizer."""
    folder = _tokenizer_folder(config.tokenizer)
    return [folder / name for name in names if (folder / name).is_file()]


def _is_chat(spec: str) -> bool:
    return spec.partition(":")[0] == sources.CHAT


def _fractions(config: DataConfig) -> tuple[float, float]:
    for field in ("validation_fraction", "test_fraction"):
        value = getattr(config, field)
        if not 0 <= value < 1:
            raise UsageError(f"data.{field}={value} must be at least 0 and below 1")
    fractions = config.validation_fraction, config.test_fraction
    if sum(fractions) >= 1:
        raise UsageError(f"data.validation_fraction + data.test_fraction = {sum(fractions)} leaves nothing to train on")
    return fractions


def _bpe_size(tokenizer: str) -> int:
    if not tokenizer.startswith("bpe:"):
        return 0
    number = tokenizer.removeprefix("bpe:")
    size = int(number) if re.fullmatch("[0-9]{1,9}", number) else 0
    if not SMALLEST <= size <= LARGEST:
        raise UsageError(
            f"data.tokenizer={tokenizer!r}: bpe: takes a vocabulary size of at least {SMALLEST} and at most {LARGEST}, "
            "e.g. bpe:4096"
        )
    return size


def _keys(
    config: DataConfig, found: dict[str, Source], stable: list[str], fractions: tuple[float, float]
) -> dict[str, str]:
    """For each source, a name for everything its tokens depend on, as far as it is seen without reading it."""
    if _bpe_size(config.tokenizer):
        basis: Any = [[spec, found[spec].signature] for spec in stable]  # all that the vocabulary is trained on
    else:
        basis = files.stat_signature((path.name, path) for path in tokenizer_files(config.tokenizer))
    template = files.stat_signature((path.name, path) for path in _beside(config, chat.FILES))
    return {
        spec: _digest(
            [
                FORMAT,
                spec,
                source.signature,
                config.tokenizer,
                basis,
                fractions,
                *([template] if _is_chat(spec) else []),
            ]
        )
        for spec, source in found.items()
    }


def _survey(documents: Iterable[Document], fractions: tuple[float, float]) -> tuple[str, dict[str, int]]:
    digest = sources.Fingerprint()
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for document in documents:
        digest.add(document)
        counts[split_of(document.text, *fractions)] += 1
    return digest.hexdigest(), counts


def _check_counts(spec: str, counts: dict[str, int], required: Iterable[str], fractions: tuple[float, float]) -> None:
    for split in required:
        if counts[split] == 0:
            raise UsageError(
                f"source {spec!r}: none of its {sum(counts.values())} documents falls in the {split} split with "
                f"data.validation_fraction={fractions[0]} and data.test_fraction={fractions[1]}; "
                + ("lower both" if split == "train" else f"raise data.{split}_fraction, e.g. to 0.1,")
                + " or give more documents"
            )


def _check_different(stores: dict[str, TokenStore]) -> None:
    seen: dict[str, str] = {}
    for spec, store in stores.items():
        if store.hash in seen:
            raise UsageError(
                f"sources {seen[store.hash]!r} and {spec!r} hold the same documents; name one, with the sum"
            )
        seen[store.hash] = spec


def _indexed(folder: pathlib.Path, key: str) -> TokenStore | None:
    entry = json_or_none(folder / "index" / f"{key}.json")
    name = entry.get("store") if isinstance(entry, dict) else None
    place = folder / publish.TOKENS / name if isinstance(name, str) else None
    return TokenStore(place) if place is not None and _is_whole(place) else None


def _is_whole(place: pathlib.Path) -> bool:
    return publish.is_whole(place) and (place / "manifest.json").is_file()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _reporter(progress: bool) -> Callable[[str], None]:
    return (lambda text: print(text, file=sys.stderr, flush=True)) if progress else (lambda text: None)
