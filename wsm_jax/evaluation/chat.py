"""Conversations as the text that a model was tuned on, by the template beside its tokenizer; as transformers does."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from wsm_jax.errors import UsageError
from wsm_jax.io.files import read_json

Message = Mapping[str, Any]  # role and content
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


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
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._special, self._place = dict(special), place
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation()]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UsageError(f"the chat template of {place} cannot be read: {_line(error)}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation up to where the model answers.

        Raises:
          UsageError: the template refuses the messages, or fails.
        """
        try:
            return self._template.render(
                messages=list(messages), tools=None, documents=None, add_generation_prompt=True, **self._special
            )
        except Exception as error:  # a template is a program of somebody else: anything may be raised in it
            raise UsageError(f"the chat template of {self._place} refuses the messages: {_line(error)}") from error


def load_template(folders: Sequence[Path]) -> ChatTemplate:
    """The template in the first of ``folders`` with one: ``chat_template.jinja``, or of ``tokenizer_config.json``.

    Raises:
      UsageError: none has one; a file that cannot be read.
    """
    for folder in folders:
        config = tokenizer_config(folder)
        special = {name: text for name in _SPECIAL if (text := _text(config.get(name))) is not None}
        file = folder / "chat_template.jinja"
        if file.is_file():
            return ChatTemplate(file.read_text(encoding="utf-8"), special, file)
        source = config.get("chat_template")
        if isinstance(source, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        if isinstance(source, str):
            return ChatTemplate(source, special, folder / "tokenizer_config.json")
    raise UsageError(
        f"there is no chat template beside the tokenizer, in {' or '.join(map(str, folders))}; it is in "
        "chat_template.jinja, or chat_template in tokenizer_config.json. Leave out --chat where a model has none"
    )


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """The content of ``tokenizer_config.json`` in a folder; empty where there is none.

    Raises:
      UsageError: it is no JSON object.
    """
    return _object(folder / "tokenizer_config.json")


def end_tokens(folder: Path) -> tuple[list[int], list[str]]:
    """What ends an answer of a public model, besides the end of a text: numbers of tokens, and texts of others.

    Raises:
      UsageError: ``generation_config.json`` or ``tokenizer_config.json`` is no JSON object.
    """
    numbers = _object(folder / "generation_config.json").get("eos_token_id")
    numbers = numbers if isinstance(numbers, list) else [numbers]
    text = _text(tokenizer_config(folder).get("eos_token"))
    return [number for number in numbers if isinstance(number, int)], [text] if text else []


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


def _generation() -> type:
    """The tag ``generation``, which marks what the model says: its content is text like any other."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    return Generation
