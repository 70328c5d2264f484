"""Text of tokens as they come: no character is cut, and nothing that a stop string may begin in is told too early."""

from collections.abc import Sequence

from wsm_jax.data.tokenizer import Tokenizer
from wsm_jax.errors import UsageError

_CUT = "\ufffd"  # what a decoder writes for bytes that are not a whole character
_LONGEST = 8  # tokens that one character may take; what is no character by then never will be


def check_stops(stops: Sequence[str]) -> None:
    """Raises UsageError for a stop string that is empty: it would end every text before it begins."""
    if not all(stops):
        raise UsageError("a stop string is empty; every text would end before it begins. Leave it out")


class TextStream:
    """The text of one row.

    Args:
      tokenizer: what decodes.
      stops: strings that end the text; it is cut before the first.
      ends: tokens that end the text and are no part of it.

    Attributes:
      text: all that was told.
      stopped: whether a stop string was met; then nothing more is told.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), ends: Sequence[int] = ()):
        self.text, self.stopped = "", False
        self._tokenizer, self._stops, self._ends = tokenizer, stops, frozenset(ends)
        # Tokens that were told and whose text the next may depend on (a space before a word), then those to be told.
        self._before: list[int] = []
        self._waiting: list[int] = []
        self._held = ""  # text that may be the beginning of a stop string

    def add(self, token: int) -> str:
        """What is certain to be text, now that ``token`` is there."""
        if self.stopped or token in self._ends:
            return ""
        self._waiting.append(token)
        text = self._decoded()
        if text.endswith(_CUT) and len(self._waiting) < _LONGEST:
            return ""
        self._before, self._waiting = self._waiting, []
        return self._told(self._held + text)

    def finish(self) -> str:
        """The rest, when no token follows."""
        if self.stopped:
            return ""
        text, self._waiting = self._held + self._decoded(), []
        return self._told(text, last=True)

    def _decoded(self) -> str:
        known = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._waiting)[len(known) :]

    def _told(self, text: str, last: bool = False) -> str:
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held, text = True, "", text[: min(found)]
        else:
            held = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
            self._held, text = text[len(text) - held :], text[: len(text) - held]
        self.text += text
        return text


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that ``stop`` begins with, the most."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
