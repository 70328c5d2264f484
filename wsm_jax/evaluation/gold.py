"""Gold answers of a task given their prompts, in the tokens of :mod:`wsm_jax.evaluation.answers`, and their scores."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from lm_eval.utils import apply_template

from wsm_jax.evaluation import answers
from wsm_jax.evaluation.answers import Item
from wsm_jax.evaluation.language import Language

if TYPE_CHECKING:
    from wsm_jax.evaluation.harness import LanguageModel

Sample = dict[str, Any]  # of lm-eval: ``doc``, ``arguments``, ``resps`` of a question, and its metrics


class Gold(NamedTuple):
    """Of each question: minus the log-probability of the gold answer, in nats, and its UTF-8 bytes."""

    nats: list[float]
    bytes: list[int]


def measure(task: Any, samples: Sequence[Sample], language: Language, model: "LanguageModel") -> Gold:
    """The gold answers of questions; those that the task asked for itself are not computed again.

    Args:
      task: of lm-eval.
      samples: its questions, once each.
      language: of the model.
      model: what scores.

    Raises:
      NonFiniteError: logits that are not finite.
    """
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        texts = [sample["arguments"][0][0] for sample in samples]
        return Gold([-sample["resps"][0][0] for sample in samples], [len(text.encode()) for text in texts])
    items = [_item(task, sample) for sample in samples]
    tokenizer = language.tokenizer
    asked = []
    for tokens in answers.encode(tokenizer, items):
        before = tokenizer.bos or ([] if tokens.prompt else [language.first])
        asked.append((before + tokens.ids[: tokens.prompt], tokens.ids[tokens.prompt :]))
    found = model.scores(asked)
    return Gold([-one.logprob for one in found], [len(item.answer.encode()) for item in items])


def margins(task: Any, samples: Sequence[Sample]) -> list[float]:
    """Mean bits per byte of the other options, less the gold one's; empty where options are not scored as texts."""
    if task.OUTPUT_TYPE != "multiple_choice" or _template(task):
        return []
    found = []
    for sample in samples:
        number, count = _number(task, sample), len(task.doc_to_choice(sample["doc"]))
        sizes = [len(arguments[1].encode()) for arguments in sample["arguments"][:count]]
        bits = [-r[0][0] / math.log(2) / size for r, size in zip(sample["resps"], sizes, strict=False)]
        found.append(float(np.mean([*bits[:number], *bits[number + 1 :]])) - bits[number])
    return found


def chance(task: Any, samples: Sequence[Sample]) -> float:
    """What guessing gives: of options one over their number, in the mean; of all else nothing."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0.0
    return float(np.mean([1 / len(task.doc_to_choice(sample["doc"])) for sample in samples]))


def _item(task: Any, sample: Sample) -> Item:
    """The prompt and the gold answer; in the words of the task's ``metadata``, where options have only letters."""
    if template := _template(task):
        return Item(*(apply_template(template[name], sample["doc"]) for name in ("prompt", "answer")))
    if task.OUTPUT_TYPE == "generate_until":
        target = task.doc_to_target(sample["doc"])
        target = target[0] if isinstance(target, list) else target
        return Item(sample["arguments"][0][0], f"{task.config.target_delimiter}{target}")
    number = _number(task, sample) if task.OUTPUT_TYPE == "multiple_choice" else 0
    return Item(*sample["arguments"][number][:2])


def _template(task: Any) -> dict[str, str] | None:
    return (task.config.metadata or {}).get("gold")


def _number(task: Any, sample: Sample) -> int:
    """Which option is gold; of several the first."""
    doc = sample["doc"]
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    gold = gold[0] if isinstance(gold, list) else gold
    return task.doc_to_choice(doc).index(gold) if isinstance(gold, str) else gold
