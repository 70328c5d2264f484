"""Texts after prompts: as they come, or all at once.

maker = decode.decoder(model, params)
for piece in generate.stream(maker, tokenizer, prompts, Settings(max_tokens=64)):
    print(piece.text, end="")
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from wsm_jax.data.tokenizer import Tokenizer
from wsm_jax.errors import UsageError
from wsm_jax.evaluation.decode import NONE, Decoder, tokens_after
from wsm_jax.evaluation.prompts import check_fit
from wsm_jax.evaluation.sampling import Sampling
from wsm_jax.evaluation.text_stream import TextStream, check_stops

BATCH = 8  # prompts that go on together


@dataclasses.dataclass(frozen=True)
class Settings:
    """How texts are made.

    Attributes:
      max_tokens: of each text; fewer where the context ends before.
      sampling: how tokens are chosen.
      stop: strings before which a text is cut.
      ends: tokens that end a text and are no part of it, besides the tokenizer's end-of-text.

    Raises:
      UsageError: fewer than one token, a stop string that is empty.
    """

    max_tokens: int = 128
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        check_stops(self.stop)


class Piece(NamedTuple):
    """A part of a text.

    Attributes:
      number: of the prompt, from 0.
      text: what was added; whole characters.
      tokens: that were made since the piece before.
      finish: what ended the text, with its last piece: ``end`` (a token), ``stop`` (a string), ``length`` (max_tokens)
        or ``context``; else empty.
    """

    number: int
    text: str
    tokens: list[int]
    finish: str = ""


class Completion(NamedTuple):
    """A whole text; as :class:`Piece`."""

    text: str
    tokens: list[int]
    finish: str


def stream(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    settings: Settings = Settings(),  # it is frozen
    batch_size: int = BATCH,
) -> Iterator[Piece]:
    """Texts after prompts, piece by piece; the texts of a batch come side by side.

    Args:
      decoder: the model, see :func:`wsm_jax.evaluation.decode.decoder`.
      tokenizer: the one that it was trained with.
      prompts: tokens of each, see :func:`wsm_jax.evaluation.prompts.encode`.
      settings: how texts are made. What a prompt gives depends on its number, not on the others.
      batch_size: prompts at a time.

    Yields:
      Pieces; of every prompt one with ``finish``.

    Raises:
      UsageError: a prompt that does not fit the context.
      NonFiniteError: logits that are not finite.
    """
    check_fit(prompts, decoder.model.config.context)
    for start in range(0, len(prompts), batch_size):
        yield from _batch(decoder, tokenizer, prompts[start : start + batch_size], settings, start)


def generate(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    settings: Settings = Settings(),  # it is frozen
    batch_size: int = BATCH,
) -> list[Completion]:
    """Texts after prompts, whole and in order; see :func:`stream`."""
    texts, tokens, finish = [""] * len(prompts), [[] for _ in prompts], [""] * len(prompts)
    for piece in stream(decoder, tokenizer, prompts, settings, batch_size):
        texts[piece.number] += piece.text
        tokens[piece.number] += piece.tokens
        finish[piece.number] = piece.finish
    return list(map(Completion, texts, tokens, finish))


def _batch(
    decoder: Decoder, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], settings: Settings, start: int
) -> Iterator[Piece]:
    context, ends = decoder.model.config.context, {tokenizer.eot, *settings.ends}
    limits = [min(settings.max_tokens, context - len(prompt)) for prompt in prompts]
    texts = [TextStream(tokenizer, settings.stop, tuple(ends)) for _ in prompts]
    numbers, ended = range(start, start + len(prompts)), np.zeros(len(prompts), bool)
    for new in tokens_after(decoder, prompts, numbers, settings.sampling, ends=ends, limits=limits, ended=ended):
        for row, tokens in enumerate(new):
            made = [int(token) for token in tokens if token != NONE]
            if not made:
                continue
            text, finish = "", ""
            for place, token in enumerate(made, 1):
                text += texts[row].add(token)
                if texts[row].stopped:  # of the same chunk there may be more
                    made, finish, ended[row] = made[:place], "stop", True
                    break
            if ended[row] and not finish:
                text += texts[row].finish()
                last = "length" if limits[row] == settings.max_tokens else "context"
                finish = "end" if made[-1] in ends else last
            yield Piece(start + row, text, made, finish)
