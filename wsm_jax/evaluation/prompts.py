"""Prompts: from a file, as text or conversations, and as the tokens that a model answers to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsm_jax.data.chat import ChatTemplate, Message
from wsm_jax.data.tokenizer import Tokenizer
from wsm_jax.errors import UsageError
from wsm_jax.io.files import json_lines


def read(path: str | Path) -> list[str | list[Message]]:
    """The prompts of a file of JSON lines, which may be compressed: ``prompt``, or ``messages`` with role and content.

    Raises:
      UsageError: naming the file and the line: not there, not JSON, neither of them; or no prompt at all.
    """
    path = Path(path).expanduser()
    lines = json_lines(path, "prompts are JSON lines with prompt, or with messages")
    found = [_prompt(record, f"{path} line {number}") for number, record in lines]
    if not found:
        raise UsageError(f"{path} holds no prompts; it needs JSON lines with prompt, or with messages")
    return found


def _prompt(record: Any, where: str) -> str | list[Message]:
    record = record if isinstance(record, dict) else {}
    if isinstance(text := record.get("prompt"), str):
        return text
    messages: Any = record.get("messages")
    if isinstance(messages, list) and messages and all(map(_is_message, messages)):
        return messages
    raise UsageError(f"{where} has neither a string 'prompt' nor 'messages', a list of objects with role and content")


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value


def encode(
    prompts: Sequence[str | Sequence[Message]], tokenizer: Tokenizer, template: ChatTemplate | None = None
) -> list[list[int]]:
    """The tokens of each prompt.

    Args:
      prompts: a text, which begins as documents do in training, or a conversation.
      tokenizer: of the model.
      template: makes a conversation of tokens; a text is then what the user says. None: prompts are texts.

    Raises:
      UsageError: a conversation without a template, a template that refuses it, text that is not Unicode.
    """
    found = []
    for number, prompt in enumerate(prompts, 1):
        if template is None and not isinstance(prompt, str):
            raise UsageError(f"prompt {number} is a conversation, which needs --chat")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        text = str(prompt) if template is None else template.render(messages)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair
            raise UsageError(f"prompt {number} is not Unicode text: {error.reason}") from error
        found.append(tokenizer.opening + tokenizer.encode(text) if template is None else tokenizer.encode_marked(text))
    return found


def check_fit(prompts: Sequence[Sequence[int]], context: int) -> None:
    """Raises UsageError where a prompt and one token more do not fit the context, or a prompt has no token."""
    for number, prompt in enumerate(prompts, 1):
        name = f"prompt {number}" if len(prompts) > 1 else "the prompt"
        if not prompt:
            raise UsageError(f"{name} has no token; a model needs one at least")
        if len(prompt) >= context:
            over = len(prompt) - context + 1
            raise UsageError(
                f"{name} has {len(prompt)} tokens, {over} more than leave room for one more in the context of {context}"
            )
