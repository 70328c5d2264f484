"""Answers given their prompts: the loss of an answer's tokens alone, in bits per byte of the answer.

A file of JSON lines ``{"prompt": text, "answer": text}``, gzipped where its name ends in ``.gz``. Each item is a row of
its own that starts from an end-of-text as a document does, and no item sees another one.

Prompt and answer are tokenised as one text, as they would be in a document of it. Where a token of that reaches over
the end of the prompt, or the vocabulary is not one of bytes, they are tokenised apart. So the tokens that count stand
for the bytes of the answer and for no others.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from wsm_jax.checkpoints.run import Run
from wsm_jax.data.pipeline import Batch
from wsm_jax.data.tokenizer import Tokenizer, load_tokenizer
from wsm_jax.errors import UsageError
from wsm_jax.evaluation.evaluate import model_and_data, model_of, tokenizer_place
from wsm_jax.evaluation.evaluator import Evaluator, over
from wsm_jax.evaluation.losses import Evaluation
from wsm_jax.io.files import json_lines
from wsm_jax.models.attention import TILE
from wsm_jax.models.model import Model
from wsm_jax.parallel import mesh as mesh_lib
from wsm_jax.parallel.sharding import RULES, Rules


class Item(NamedTuple):
    """An answer and what it is given, which may be empty."""

    prompt: str
    answer: str


class Tokens(NamedTuple):
    """Tokens of prompt and answer, and how many of them are the prompt's."""

    ids: list[int]
    prompt: int


def read(path: str | Path) -> list[Item]:
    """The items of a file, in order.

    Raises:
      UsageError: naming the file and the line: not there, not JSON, no text under ``prompt`` or ``answer``, an empty
        answer; or no item at all.
    """
    path = Path(path).expanduser()
    lines = json_lines(path, "answers are JSON lines with prompt and answer")
    items = [_item(record, f"{path} line {number}") for number, record in lines]
    if not items:
        raise UsageError(f"{path} holds no answers; it needs JSON lines with prompt and answer")
    return items


def _item(record: Any, where: str) -> Item:
    for name in Item._fields:
        text = record.get(name) if isinstance(record, dict) else None
        if not isinstance(text, str):
            have = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise UsageError(f"{where} has no string field {name!r} (it has: {have or 'none'})")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
            raise UsageError(f"{where}: {name} is not Unicode text: {error.reason}") from error
    if not record["answer"]:
        raise UsageError(f"{where}: the answer is empty; leave the line out")
    return Item(record["prompt"], record["answer"])


def encode(tokenizer: Tokenizer, items: Sequence[Item]) -> list[Tokens]:
    """The tokens of each item, see the head of this file."""
    sizes = tokenizer.token_bytes
    whole = tokenizer.encode_batch([item.prompt + item.answer for item in items])
    found = []
    for item, ids in zip(items, whole, strict=True):
        prompt, answer = (len(text.encode()) for text in item)
        ends = [0] if sizes is None else [0, *np.cumsum(sizes[ids]).tolist()]
        if ends[-1] == prompt + answer and prompt in ends:
            found.append(Tokens(ids, ends.index(prompt)))
        else:
            before = tokenizer.encode(item.prompt)
            found.append(Tokens(before + tokenizer.encode(item.answer), len(before)))
    return found


def make_evaluator(
    path: str | Path,
    tokenizer: Tokenizer,
    model: Model,
    mesh: Mesh,
    *,
    batch_size: int,
    limit_tokens: int = 0,
    rules: Rules = RULES,
) -> Evaluator:
    """params -> Evaluation of the answers in a file, one entry for each that fits the context with its prompt.

    Args:
      path: of the file.
      tokenizer: the one that the model was trained with.
      model: what computes the loss; ``context`` tokens of prompt and answer fit.
      mesh: the devices.
      batch_size: rows of ``context`` tokens in one batch; there are more rows in a batch of shorter items.
      limit_tokens: stop after the last item that ends within so many tokens, prompts counted, at least the first;
        0 = all.
      rules: logical axis -> axes of the mesh.

    Returns:
      An evaluator; of its Evaluation ``tokens`` and ``bytes`` are those of the answers, and ``left_out`` says how many
      items of the file do not fit.

    Raises:
      UsageError: as :func:`read`; no item fits.
    """
    items, context = read(path), model.config.context
    encoded = encode(tokenizer, items)
    fitting = [number for number, tokens in enumerate(encoded) if len(tokens.ids) <= context]
    left_out = len(items) - len(fitting)
    if not fitting:
        shortest = min(len(tokens.ids) for tokens in encoded)
        raise UsageError(
            f"{path}: none of its {len(items)} answers fits the context of {context} tokens with its prompt; the "
            f"shortest takes {shortest}"
        )
    if limit_tokens > 0:
        ends = np.cumsum([len(encoded[number].ids) for number in fitting])
        fitting = fitting[: max(1, np.searchsorted(ends, limit_tokens, side="right"))]
    chosen = [encoded[number] for number in fitting]
    digest = hashlib.sha256(json.dumps([tokenizer.hash, chosen]).encode()).hexdigest()
    return over(
        batches(chosen, tokenizer.eot, lengths(context, model.config.loss_blocks), batch_size),
        model,
        mesh,
        tokens=[len(tokens.ids) - tokens.prompt for tokens in chosen],
        sizes=[len(items[number].answer.encode()) for number in fitting],
        data_hash=f"answers-{digest[:16]}",
        left_out=left_out,
        rules=rules,
    )


def run_evaluator(run: Run, path: str | Path) -> Evaluator:
    """params -> Evaluation of the answers in a file, for the model, tokenizer and devices of a run.

    Raises:
      UsageError: as :func:`make_evaluator`; the data are not those the run was trained on.
    """
    read(path)  # complains before the data are looked at
    if "imported" in run.facts:
        model, tokenizer = model_of(run), load_tokenizer(tokenizer_place(run))
    else:
        model, data = model_and_data(run)
        tokenizer = data.tokenizer
    size = run.config.evaluation.batch_size
    return make_evaluator(path, tokenizer, model, mesh_lib.like(run.config.mesh), batch_size=size)


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """The figures that ``wsm eval --answers`` prints: those of the answers that fit, and how many do not."""
    return {
        "bits_per_byte": evaluation.bits_per_byte,
        "bits_per_byte_stderr": evaluation.bits_per_byte_stderr,
        "loss": evaluation.loss,
        "loss_stderr": evaluation.loss_stderr,
        "tokens": int(evaluation.tokens.sum()),
        "bytes": int(evaluation.bytes.sum()),
        "documents": len(evaluation.tokens),
        "left_out": evaluation.left_out,
        "data_hash": evaluation.data_hash,
    }


def lengths(context: int, loss_blocks: int) -> list[int]:
    """How long rows may be, so that short items do not cost a whole context: few, as each is compiled for itself."""
    parts = [context // part for part in (4, 2) if context % (part * TILE * loss_blocks) == 0]
    return [*parts, context]


def batches(items: Sequence[Tokens], eot: int, lengths: Sequence[int], batch_size: int) -> Iterator[Batch]:
    """One row for each item, in batches of about equally many tokens.

    Args:
      items: what fits the longest row.
      eot: what stands before each item.
      lengths: of rows, increasing.
      batch_size: rows of the greatest length in a batch.

    Yields:
      {"inputs", "targets", "document"}: int32 [B, T]; ``document`` numbers the item of a target that is the answer's,
      and is -1 at prompts and padding.
    """
    rows = np.searchsorted(lengths, [len(tokens.ids) for tokens in items])
    for which, length in enumerate(lengths):
        numbers = np.flatnonzero(rows == which)
        size = batch_size * lengths[-1] // length
        for start in range(0, len(numbers), size):
            batch = {name: np.zeros((size, length), np.int32) for name in ("inputs", "targets", "document")}
            batch["document"] -= 1
            for row, number in enumerate(numbers[start : start + size]):
                ids, prompt = items[number]
                batch["inputs"][row, : len(ids)] = [eot, *ids[:-1]]
                batch["targets"][row, : len(ids)] = ids
                batch["document"][row, prompt : len(ids)] = number
            yield batch
