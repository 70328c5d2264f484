"""The tokens that a run's model reads and writes: its tokenizer, what its texts begin with, and what ends them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from wsm_jax.checkpoints.run import Run
from wsm_jax.data import chat
from wsm_jax.data.tokenizer import Tokenizer, load_tokenizer
from wsm_jax.errors import UsageError
from wsm_jax.evaluation.evaluate import tokenizer_place


@dataclasses.dataclass(frozen=True)
class Language:
    """What a model's texts are made of.

    Attributes:
      tokenizer: the one that it was trained with.
      first: the token that stands before a text where one is needed and the tokenizer puts none: the ``bos_token`` of
        a public model, else the end of the text before.
      ends: tokens that end a text, besides the end-of-text.
      folders: where more about the tokenizer may lie, best first.
    """

    tokenizer: Tokenizer
    first: int
    ends: tuple[int, ...] = ()
    folders: Sequence[Path] = ()


def of(run: Run) -> Language:
    """The language of a run.

    Raises:
      UsageError: a run without a tokenizer, or whose tokenizer is not the one that it was trained with.
    """
    place = tokenizer_place(run)
    tokenizer = load_tokenizer(place)
    if tokenizer.hash != run.facts["data"]["tokenizer_hash"]:
        raise UsageError(f"the tokenizer in {place} is not the one that {run.path} was trained with")
    folders = list(dict.fromkeys([place, *run.tokenizer_folders]))
    ends: list[int] = []
    for folder in folders:
        numbers, texts = chat.end_tokens(folder)
        ends += [*numbers, *(number for text in texts if (number := tokenizer.number(text)) is not None)]
    named = (chat.first_token(folder) for folder in folders)
    first = next((number for text in named if text and (number := tokenizer.number(text)) is not None), tokenizer.eot)
    return Language(tokenizer, first, tuple(sorted({*ends})), tuple(folders))
