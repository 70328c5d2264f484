"""Where documents come from (the standard library, local text, TFDS, the Hugging Face hub) and how they are mixed."""

import dataclasses
import hashlib
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator

from wsm_jax.config import split_commas
from wsm_jax.data import files
from wsm_jax.errors import UsageError
from wsm_jax.io.publish import data_folder, workroom

KINDS = "stdlib | text:PATH_OR_GLOB | tfds:NAME | hf:NAME | chat:PATH_OR_GLOB"
CHAT = "chat"  # conversations, of which responses alone are learnt
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:nan|inf)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Document:
    """One text, never empty, with an identity inside its source."""

    id: str
    text: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A source whose files were found.

    Attributes:
      spec: as the user wrote it.
      signature: hex, made from what is cheap to see (names, sizes, times); equal as long as nothing changed.
      open: fetches and checks what is needed, and returns a function that yields the documents from the start each
        time it is called.
    """

    spec: str
    signature: str
    open: Callable[[], Callable[[], Iterator[Document]]]


def parse_mixture(text: str, field: str = "data.source") -> list[tuple[str, float]]:
    """Sources and weights in a comma-separated list of ``SOURCE[=WEIGHT]``.

    A comma inside braces or brackets belongs to a glob. ``=`` starts a weight only where a number follows the last one.

    Args:
      text: e.g. ``text:/a/*.md=0.7,stdlib=0.3``; a weight left out is 1.
      field: config field named in errors.

    Returns:
      (source, weight) in order; the weights sum to 1.

    Raises:
      UsageError: nothing given, an unknown kind of source, a source named twice, or a weight that is not positive.
    """
    if sum(map(text.count, "{[")) != sum(map(text.count, "}]")):
        raise UsageError(f"{field}={text!r}: a brace or bracket is not closed")
    items = split_commas(text)
    if not items:
        raise UsageError(f"{field}={text!r} names no source; write {KINDS}")
    mixture: dict[str, float] = {}
    for item in items:
        spec, equals, number = item.rpartition("=")
        if equals and _NUMBER.fullmatch(number.strip()):
            spec, weight = spec.strip(), float(number)
        else:
            spec, weight = item, 1.0
        if not (weight > 0 and math.isfinite(weight)):
            raise UsageError(f"{field}: the weight in {item!r} must be a positive number")
        kind, colon, rest = spec.partition(":")
        if spec != "stdlib" and not (kind in ("text", "tfds", "hf", CHAT) and colon and rest):
            hint = f"; did you mean text:{spec}?" if os.path.exists(spec) else ""
            raise UsageError(f"{field}: source {spec!r} is unknown; write {KINDS}{hint}")
        if spec in mixture:
            raise UsageError(f"{field}: source {spec!r} is named twice; name it once with the sum of the weights")
        mixture[spec] = weight
    largest = max(mixture.values())  # dividing by it first keeps the sum of huge weights finite
    total = math.fsum(weight / largest for weight in mixture.values())
    return [(spec, weight / largest / total) for spec, weight in mixture.items()]


def find(spec: str, folder: pathlib.Path) -> Source:
    """Find the files of one source, without reading them.

    Args:
      spec: one source, without a weight.
      folder: the data folder, where local text is kept as ArrayRecord.

    Raises:
      UsageError: nothing there, or what it needs is not installed.
    """
    kind, _, rest = spec.partition(":")
    if kind in ("stdlib", "text"):
        chosen = files.standard_library() if kind == "stdlib" else files.select(rest)
        return Source(spec, files.stat_signature(chosen), lambda: _open_files(chosen, folder))
    if kind == CHAT:
        from wsm_jax.data import conversations

        chosen = files.select(rest, CHAT)
        return Source(
            spec,
            files.stat_signature(chosen),
            lambda: lambda: (Document(*pair) for pair in conversations.read(chosen)),
        )
    from wsm_jax.data import hub

    if kind not in ("tfds", "hf"):
        raise UsageError(f"source {spec!r} is unknown; write {KINDS}")
    read, signature = hub.open_tfds(rest) if kind == "tfds" else hub.open_hf(rest)
    return Source(spec, signature, lambda: lambda: (Document(*pair) for pair in read()))


def documents(source: str, store: str = "") -> Iterator[Document]:
    """The documents of one source that hold any text, in an order that never changes.

    Args:
      source: ``stdlib``, ``text:PATH_OR_GLOB``, ``tfds:NAME[/config][:version][@DATA_DIR]`` or
        ``hf:NAME[/config][:split][#field]``.
      store: the data folder; empty = ``$WSM_DATA``, else ``~/.cache/wsm_jax``.

    Raises:
      UsageError: nothing matched, a file or record that cannot be read, or what the source needs is not installed.
    """
    return find(source, workroom(data_folder(store))).open()()


def fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 (hex) over the ids and texts in order."""
    digest = Fingerprint()
    for document in documents:
        digest.add(document)
    return digest.hexdigest()


class Fingerprint:
    """SHA-256 over the ids and texts of the documents added, in order."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, document: Document) -> None:
        """Take one more document into account."""
        for part in (document.id.encode(), document.text.encode()):
            self._digest.update(len(part).to_bytes(8, "little"))  # so that no two splits into parts look alike
            self._digest.update(part)

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return self._digest.hexdigest()


def _open_files(chosen: list[files.NamedFile], folder: pathlib.Path) -> Callable[[], Iterator[Document]]:
    from wsm_jax.data import tfds_builder

    # By content: a file that changes makes another data set, and the old one stays as it was.
    built = tfds_builder.build(chosen, folder / "arrayrecord" / files.content_hash(chosen)[:32])
    return lambda: (Document(*pair) for pair in tfds_builder.read(built))
