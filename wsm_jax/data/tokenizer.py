"""Text to tokens and back: a byte-level BPE trained here, any ``tokenizer.json``, or GPT-2's pair of files."""

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from wsm_jax.errors import UsageError
from wsm_jax.io import places

if TYPE_CHECKING:
    import tokenizers

EOT = "<|endoftext|>"
# Names of the end-of-text token in public vocabularies, the first that is there counts.
_EOT_NAMES = (EOT, "</s>", "<|end_of_text|>", "<eos>")
SMALLEST = 257  # the 256 bytes and the end-of-text token
LARGEST = 1_000_000  # room for it is set aside before anything is counted
# Bytes after which the vocabulary's training cuts a run of letters, digits, signs or spaces. It takes time that grows
# with the square of the longest, and text that has spaces has none of this length. Encoding cuts nothing.
LONGEST_WORD = 10_000


class Tokenizer:
    """A vocabulary with an end-of-text token.

    Documents are data: text that spells a special token is encoded as ordinary text, so no document can end itself.

    Args:
      model: the `tokenizers` object; it is changed so that it encodes special tokens as text.
      name: where it came from, for errors.

    Attributes:
      eot: id of the end-of-text token.
      vocab_size: largest id + 1.

    Raises:
      UsageError: the vocabulary has no end-of-text token.
    """

    def __init__(self, model: "tokenizers.Tokenizer", name: str = "the tokenizer"):
        import tokenizers

        vocabulary = model.get_vocab(with_added_tokens=True)
        eot = next((token for token in _EOT_NAMES if token in vocabulary), None)
        if eot is None:
            raise UsageError(f"{name} has no end-of-text token; its vocabulary needs one of {' '.join(_EOT_NAMES)}")
        # Some files list it as an ordinary added token, which would be found inside documents.
        model.add_special_tokens([tokenizers.AddedToken(eot, special=True, normalized=False)])
        # Limits and padding of a file made for another use would silently shorten documents.
        model.no_truncation()
        model.no_padding()
        model.encode_special_tokens = True
        self._model = model
        self.eot: int = vocabulary[eot]
        self.vocab_size: int = max(vocabulary.values()) + 1

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the canonical JSON (sorted keys)."""
        return hashlib.sha256(self._json().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, no end-of-text added."""
        return self._model.encode(text, add_special_tokens=False).ids

    def encode_marked(self, text: str) -> list[int]:
        """Token ids of text in which what spells a special token is that token, as in a conversation."""
        return self._marking.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def bos(self) -> list[int]:
        """The tokens that the vocabulary's file puts before a text; many put none."""
        return self._marking.encode("", add_special_tokens=True).ids

    @functools.cached_property
    def opening(self) -> list[int]:
        """What a text begins with: the tokens that the vocabulary's file says, else the end of the text before."""
        return self.bos or [self.eot]

    def number(self, token: str) -> int | None:
        """The id of a token, a special one as it is spelt; None where there is none."""
        return self._model.token_to_id(token)

    @functools.cached_property
    def _marking(self) -> "tokenizers.Tokenizer":
        import tokenizers

        model = tokenizers.Tokenizer.from_str(self._model.to_str())
        model.encode_special_tokens = False
        return model

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, on all cores."""
        return [encoding.ids for encoding in self._model.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; special tokens are written out."""
        return self._model.decode([int(i) for i in ids], skip_special_tokens=False)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray | None:
        """UTF-8 bytes that each token stands for, int64 [vocab_size]; None for a vocabulary that is not of bytes."""
        decoder = json.loads(self._model.to_str()).get("decoder") or {}
        if "ByteLevel" not in [part["type"] for part in decoder.get("decoders", [decoder]) if part]:
            return None
        sizes = np.zeros(self.vocab_size, np.int64)
        for token, i in self._model.get_vocab(with_added_tokens=True).items():
            sizes[i] = len(token)  # each character of a token of bytes is a byte
        for i, token in self._model.get_added_tokens_decoder().items():
            sizes[i] = len(token.content.encode())
        return sizes

    def byte_count(self, ids: np.ndarray) -> int:
        """UTF-8 bytes of the text that tokens stand for, of a character of which they are a part the part's."""
        if self.token_bytes is not None:
            return int(self.token_bytes[ids].sum())
        return len(self.decode(ids).encode())

    def save(self, path: str | pathlib.Path) -> None:
        """Write a ``tokenizer.json``."""
        pathlib.Path(path).write_text(self._json(), encoding="utf-8")

    def _json(self) -> str:
        return json.dumps(json.loads(self._model.to_str()), sort_keys=True, ensure_ascii=False)


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """A byte-level BPE: the 256 bytes, the end-of-text token, and merges learnt from ``texts``.

    The same texts in the same order give the same vocabulary. Of a word longer than LONGEST_WORD, such as a genome,
    pieces of that length are read as words.

    Args:
      texts: the training documents.
      size: tokens in the vocabulary; fewer where the texts hold too few repeated pairs.

    Raises:
      UsageError: ``size`` below 257 or above LARGEST.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if size < SMALLEST:
        raise UsageError(f"bpe:{size} is too small; a byte-level vocabulary needs at least {SMALLEST} tokens")
    if size > LARGEST:
        raise UsageError(f"bpe:{size} is too large; a vocabulary has at most {LARGEST} tokens")
    model = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cut = pre_tokenizers.FixedLength(length=LONGEST_WORD)
    model.pre_tokenizer = pre_tokenizers.Sequence([words, cut])
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[EOT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(iter(texts), trainer=trainer)
    model.pre_tokenizer = words
    return Tokenizer(model)


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
    """Read a vocabulary from disk.

    Args:
      path: a ``tokenizer.json`` file, a folder with one, or a folder with GPT-2's ``encoder.json`` and ``vocab.bpe``
        (in folders of transformers ``vocab.json`` and ``merges.txt``).

    Raises:
      UsageError: nothing of the kind there, a file that cannot be parsed, or no end-of-text token in it.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    found = tokenizer_files(path)
    name = str(found[0])
    try:
        if len(found) == 1:
            return Tokenizer(tokenizers.Tokenizer.from_file(name), name)
        model = tokenizers.Tokenizer(models.BPE.from_file(name, str(found[1])))
    except UsageError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise UsageError(f"{name} is not a tokenizer that can be read: {error}") from error
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return Tokenizer(model, name)


def tokenizer_files(path: str | pathlib.Path) -> list[pathlib.Path]:
    """The file or the two files that :func:`load_tokenizer` reads.

    Raises:
      UsageError: nothing of the kind there, or an address.
    """
    path = places.local(path).expanduser()
    if path.is_file():
        return [path]
    if (path / "tokenizer.json").is_file():
        return [path / "tokenizer.json"]
    for names in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):  # as OpenAI has them, as transformers
        if all((path / name).is_file() for name in names):
            return [path / name for name in names]
    raise UsageError(
        f"tokenizer {path} is neither a tokenizer.json, nor a folder with one, nor a folder with encoder.json and "
        "vocab.bpe; write bpe:SIZE to train one"
    )
