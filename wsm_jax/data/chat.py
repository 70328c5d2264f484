"""Conversations as the text that a model was tuned on, by the template beside its tokenizer; as transformers does.

Templates are rendered in a sandbox, with ``raise_exception``, ``strftime_now`` and ``tojson``, blocks trimmed, and
``{% generation %}`` around what the model says where the template has it.
"""

import datetime
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from wsm_jax.errors import UsageError
from wsm_jax.io.files import read_json

Message = Mapping[str, Any]  # role and content
ROLES = ("system", "user", "assistant", "tool")
RESPONSE = "assistant"
TEMPLATE, CONFIG = FILES = ("chat_template.jinja", "tokenizer_config.json")  # where a folder keeps it, best first
GENERATION = "generation_config.json"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Part(NamedTuple):
    """A stretch of a rendered conversation, and whether it is a response."""

    text: str
    response: bool


class ChatTemplate:
    """A template, compiled in a sandbox: templates come with models, and are programs.

    Args:
      source: in Jinja.
      special: names of tokens that it may use, ``eos_token`` and the like -> their text.
      place: the file that it is from, for errors.

    Raises:
      UsageError: it cannot be parsed.
    """

    def __init__(self, source: str, special: Mapping[str, str], place: Path):
        self._source, self._special, self._place = source, dict(special), place
        self._mark = f"\0{uuid.uuid4().hex}\0"  # around responses; no conversation holds it
        self._template = _compiled(source, self._mark, place)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the template and the tokens that it may use."""
        return hashlib.sha256(json.dumps([self._source, self._special], sort_keys=True).encode()).hexdigest()

    def render(self, messages: Sequence[Message], *, prompt: bool = True) -> str:
        """The text of a conversation, with ``prompt`` up to where the model answers.

        Raises:
          UsageError: the template refuses the messages, or fails.
        """
        return self._marked(messages, prompt).replace(self._mark, "")

    def parts(self, messages: Sequence[Message]) -> list[Part]:
        """The whole conversation in stretches, in order, that make up its text.

        Responses are what the template has in ``{% generation %}``; else what each message of the assistant adds to the
        prompt before it, the end of its turn included.

        Raises:
          UsageError: as :meth:`render`; or an earlier message looks different once others follow it.
        """
        marked = self._marked(messages, False).split(self._mark)
        if len(marked) > 1:
            return [Part(text, bool(number % 2)) for number, text in enumerate(marked) if text]
        found, text = [], ""
        for number, message in enumerate(messages):
            if message["role"] == RESPONSE:
                before = self._added(text, messages[:number], True)
                after = self._added(text + before, messages[: number + 1], False)
                found += [Part(before, False), Part(after, True)]
                text += before + after
        rest = self._added(text, messages, False)
        return [part for part in [*found, Part(rest, False)] if part.text]

    def _added(self, before: str, messages: Sequence[Message], prompt: bool) -> str:
        text = self.render(messages, prompt=prompt)
        if not text.startswith(before):
            raise UsageError(
                f"the chat template of {self._place} renders a message differently once others follow it, so its "
                "responses cannot be told apart; put {% generation %} ... {% endgeneration %} around them in the "
                "template, or train on conversations of one response"
            )
        return text[len(before) :]

    def _marked(self, messages: Sequence[Message], prompt: bool) -> str:
        try:
            return self._template.render(
                messages=list(messages), tools=None, documents=None, add_generation_prompt=prompt, **self._special
            )
        except Exception as error:  # a template is a program of somebody else: anything may be raised in it
            raise UsageError(f"the chat template of {self._place} refuses the messages: {_line(error)}") from error


def find_template(folders: Sequence[Path]) -> ChatTemplate | None:
    """The template in the first of ``folders`` with one: ``chat_template.jinja``, or of ``tokenizer_config.json``.

    Raises:
      UsageError: a file that cannot be read.
    """
    for folder in folders:
        if (found := _source(folder)) is not None:
            config = tokenizer_config(folder)
            special = {name: text for name in _SPECIAL if (text := _text(config.get(name))) is not None}
            return ChatTemplate(found[0], special, found[1])
    return None


def has_template(folder: Path) -> bool:
    """Whether a folder has a chat template, of whatever use."""
    return _source(folder) is not None


def _source(folder: Path) -> tuple[str, Path] | None:
    """The template in a folder, and the file that it is in."""
    if (file := folder / TEMPLATE).is_file():
        return file.read_text(encoding="utf-8"), file
    source = tokenizer_config(folder).get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    return (source, folder / CONFIG) if isinstance(source, str) else None


def load_template(folders: Sequence[Path]) -> ChatTemplate:
    """As :func:`find_template`, where there has to be one.

    Raises:
      UsageError: none has one; a file that cannot be read.
    """
    if (found := find_template(folders)) is not None:
        return found
    raise UsageError(
        f"there is no chat template beside the tokenizer, in {' or '.join(map(str, folders))}; it is in "
        f"{TEMPLATE}, or chat_template in {CONFIG}. Leave out --chat where a model has none"
    )


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """The content of ``tokenizer_config.json`` in a folder; empty where there is none.

    Raises:
      UsageError: it is no JSON object.
    """
    return _object(folder / CONFIG)


def end_tokens(folder: Path) -> tuple[list[int], list[str]]:
    """What ends an answer of a public model, besides the end of a text: numbers of tokens, and texts of others.

    Raises:
      UsageError: ``generation_config.json`` or ``tokenizer_config.json`` is no JSON object.
    """
    numbers = _object(folder / GENERATION).get("eos_token_id")
    numbers = numbers if isinstance(numbers, list) else [numbers]
    text = _text(tokenizer_config(folder).get("eos_token"))
    return [number for number in numbers if isinstance(number, int)], [text] if text else []


def first_token(folder: Path) -> str | None:
    """The text of the token that a public model's texts begin with, ``bos_token``; None where nothing says so.

    Raises:
      UsageError: ``tokenizer_config.json`` is no JSON object.
    """
    return _text(tokenizer_config(folder).get("bos_token"))


def _object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    found = read_json(file)
    if not isinstance(found, dict):
        raise UsageError(f"{file} is no JSON object")
    return found


def _text(token: Any) -> str | None:
    """A token as text, which files have as a string or as an object with its content."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


# --- Jinja -----------------------------------------------------------------------------------------------------------


def _compiled(source: str, mark: str, place: Path) -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag ``generation`` around what the model says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller: Any) -> str:
            return f"{mark}{caller()}{mark}"

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = _to_json
    names: dict[str, Any] = environment.globals
    names["raise_exception"] = _raise
    names["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise UsageError(f"the chat template of {place} cannot be read: {_line(error)}") from error


def _raise(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own would write < and > as HTML does."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
