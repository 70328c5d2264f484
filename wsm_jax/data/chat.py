"""Chat templates: the text that a model's own Jinja template makes of a conversation, and which parts are responses.

They are rendered as transformers does: sandboxed, with ``raise_exception``, ``strftime_now`` and ``tojson``, blocks
trimmed, and ``{% generation %}`` around what the model says where the template has it.
"""

import datetime
import hashlib
import json
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wsm_jax.errors import UsageError
from wsm_jax.io.files import read_json

Message = Mapping[str, str]  # {"role": ..., "content": ...}
ROLES = ("system", "user", "assistant", "tool")
RESPONSE = "assistant"
FILES = ("chat_template.jinja", "tokenizer_config.json")  # where a folder keeps it, the first that has one counts


class Part(NamedTuple):
    """A stretch of a rendered conversation, and whether it is a response."""

    text: str
    response: bool


class Template:
    """A chat template.

    Args:
      source: Jinja.
      tokens: names that the template may use, such as ``bos_token``, with their text.
      name: where it came from, for errors.

    Raises:
      UsageError: it is no Jinja, or Jinja is not installed.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], name: str = "the chat template"):
        self.source, self.tokens, self.name = source, dict(tokens), name
        self._mark = f"\0{uuid.uuid4().hex}\0"  # no conversation holds it
        self._template = self._compiled()

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the template and its tokens."""
        return hashlib.sha256(json.dumps([self.source, self.tokens], sort_keys=True).encode()).hexdigest()

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The conversation as text; with ``prompt`` the beginning of a response follows.

        Raises:
          UsageError: the template refuses it or fails.
        """
        return self._render(messages, prompt).replace(self._mark, "")

    def parts(self, messages: Sequence[Message]) -> list[Part]:
        """The conversation in stretches, in order; joined they are :meth:`render`'s text.

        Responses are what the template has in ``{% generation %}``; else what each message of the assistant adds to the
        prompt before it, the end of its turn included.

        Raises:
          UsageError: as :meth:`render`; or an earlier message looks different once others follow it.
        """
        marked = self._render(messages, False).split(self._mark)
        if len(marked) > 1:
            return [Part(text, bool(number % 2)) for number, text in enumerate(marked) if text]
        found, text = [], ""
        for number, message in enumerate(messages):
            if message["role"] != RESPONSE:
                continue
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
                f"{self.name} renders a message differently once others follow it, so its responses cannot be told "
                "apart; put {% generation %} ... {% endgeneration %} around them in the template, or train on "
                "conversations of one response"
            )
        return text[len(before) :]

    def _render(self, messages: Sequence[Message], prompt: bool) -> str:
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=prompt, **self.tokens)
        except UsageError:
            raise
        except Exception as error:  # a template is anybody's program
            raise UsageError(f"{self.name} fails: {' '.join(str(error).split()) or type(error).__name__}") from error

    def _compiled(self) -> Any:
        try:
            import jinja2.ext
            import jinja2.nodes
            import jinja2.sandbox
        except ImportError as missing:
            raise UsageError("chat templates need jinja2: pip install 'wsm-jax[train]'") from missing
        mark = self._mark

        class Generation(jinja2.ext.Extension):
            """``{% generation %}``: marks what is within."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Any) -> Any:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

            def _marked(self, caller: Any) -> str:
                return f"{mark}{caller()}{mark}"

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise UsageError(f"{self.name} is not a Jinja template (line {error.lineno}: {error.message})") from error


def load(folder: str | pathlib.Path) -> Template | None:
    """The chat template in a tokenizer's folder, or beside a tokenizer's file; None where there is none.

    Raises:
      UsageError: a file that cannot be read, or as :class:`Template`.
    """
    found = {file.name: file for file in template_files(folder)}
    config = read_json(found[FILES[1]]) if FILES[1] in found else {}
    config = config if isinstance(config, dict) else {}
    source = config.get("chat_template")
    if FILES[0] in found:
        source = found[FILES[0]].read_text(encoding="utf-8")
    if isinstance(source, list):  # several, by name
        source = next((one.get("template") for one in source if one.get("name") == "default"), None)
    if not isinstance(source, str):
        return None
    tokens = {name: value for name, value in config.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in tokens.items()}
    name = str(found.get(FILES[0]) or found[FILES[1]])
    return Template(source, {name: text for name, text in texts.items() if isinstance(text, str)}, name)


def template_files(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """The files that :func:`load` reads, of those that are there."""
    place = pathlib.Path(folder).expanduser()
    place = place.parent if place.is_file() else place
    return [place / name for name in FILES if (place / name).is_file()]


def _refuse(message: str) -> None:
    raise UsageError(f"the chat template refuses the conversation: {message}")


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
