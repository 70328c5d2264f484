"""Conversations to train on: JSON lines of prompt and response or of messages, and their tokens.

A line is ``{"prompt": text, "response": text}`` (or ``completion``), or ``{"messages": [{"role": "user", "content":
text}, ...]}``, gzipped where the file's name ends in ``.gz``. With a chat template both become what it makes of them.
Without one a prompt and its response are one text, opened and ended as a document is, and messages are refused.
Responses alone are learnt, with the end of their turn; a prompt is tokenized apart from its response, as it is when a
model generates one.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from wsm_jax.data import chat, files
from wsm_jax.data.chat import RESPONSE, ROLES, ChatTemplate
from wsm_jax.data.tokenizer import Tokenizer
from wsm_jax.errors import UsageError
from wsm_jax.io.files import json_lines

SUFFIXES = (".jsonl", ".jsonl.gz")
RESPONSES = ("response", "completion")  # names of the field, the first that is there counts


def read(chosen: Iterable[files.NamedFile]) -> Iterator[tuple[str, str]]:
    """(id, messages as canonical JSON) of every conversation, in order; a prompt and a response are two messages.

    Raises:
      UsageError: naming file and line: unreadable, not JSON, another form, an unknown role, no response.
    """
    for name, path in chosen:
        if not name.endswith(SUFFIXES):
            raise UsageError(f"{path}: conversations are JSON lines, in files called {' or '.join(SUFFIXES)}")
        for number, record in json_lines(path):
            yield f"{name}:{number}", json.dumps(_messages(record, f"{path} line {number}"), ensure_ascii=False)


def _messages(record: Any, where: str) -> list[dict[str, str]]:
    record = record if isinstance(record, dict) else {}
    if "messages" in record:
        messages = record["messages"]
    elif "prompt" in record and (name := next((name for name in RESPONSES if name in record), None)):
        messages = [{"role": "user", "content": record["prompt"]}, {"role": RESPONSE, "content": record[name]}]
    else:
        have = ", ".join(record) or "none"
        raise UsageError(f"{where} has neither messages nor prompt and response (it has: {have})")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UsageError(f"{where}: messages is no list of objects with role and content")
    for message in messages:
        if not isinstance(message.get("content"), str) or not isinstance(message.get("role"), str):
            raise UsageError(f"{where}: a message needs the strings role and content")
        if message["role"] not in ROLES:
            raise UsageError(f"{where}: unknown role {message['role']!r}; known: {', '.join(ROLES)}")
        try:
            message["content"].encode()
        except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
            raise UsageError(f"{where}: a message is not Unicode text: {error.reason}") from error
    if not any(message["role"] == RESPONSE and message["content"] for message in messages):
        raise UsageError(f"{where}: the conversation has no response, a message of the role {RESPONSE}")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


class Encoder:
    """Messages to tokens, and which of them are learnt.

    Args:
      tokenizer: of the model.
      template: its chat template; None: prompts and responses as plain text.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None):
        self._tokenizer, self._template = tokenizer, template
        self.hash = template.hash if template else ""

    def __call__(self, texts: Sequence[str]) -> list[tuple[list[int], list[int], int]]:
        """Of each conversation, as :func:`read` has it: token ids; 1 for each that is learnt, else 0; UTF-8 bytes of
        the responses.

        Raises:
          UsageError: messages without a template, or a template that fails.
        """
        return [self._one(json.loads(text)) for text in texts]

    def _one(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int], int]:
        ids: list[int] = []
        learnt: list[int] = []
        size = 0
        for text, response in self._parts(messages):
            found = self._tokenizer.encode_marked(text) if self._template else self._tokenizer.encode(text)
            ids += found
            learnt += [int(response)] * len(found)
            size += len(text.encode()) * response
        if self._template is None:
            opening = self._tokenizer.opening
            return [*opening, *ids, self._tokenizer.eot], [*[0] * len(opening), *learnt, 1], size
        return ids, learnt, size

    def _parts(self, messages: list[dict[str, str]]) -> list[chat.Part]:
        if self._template:
            return self._template.parts(messages)
        if [message["role"] for message in messages] != ["user", RESPONSE]:
            raise UsageError(
                "these conversations need a chat template: a chat_template.jinja or tokenizer_config.json beside the "
                "tokenizer; without one, give prompt and response"
            )
        return [chat.Part(message["content"], message["role"] == RESPONSE) for message in messages]
