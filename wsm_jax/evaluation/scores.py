"""What a model scored on a task, question by question: values with standard errors, and differences between models."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from wsm_jax.errors import UsageError
from wsm_jax.evaluation.losses import Z95, clustered_stderr
from wsm_jax.io.files import read_jsonl

FILE = "records.jsonl"  # in the folder of a model's results
OTHER = "other"  # the group of a task that says none
_QUESTIONS = ("correct", "gold_nats", "gold_bytes", "margin")  # one value for each


class Value(NamedTuple):
    """A figure and its standard error over questions, NaN of a single one."""

    value: float
    stderr: float

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval under a normal approximation."""
        return self.value - Z95 * self.stderr, self.value + Z95 * self.stderr

    @property
    def signal_over_noise(self) -> float:
        """How many standard errors it is from zero; NaN where there is none."""
        return self.value / self.stderr if self.stderr > 0 else math.nan


def ratio(values: ArrayLike, sizes: ArrayLike | None = None) -> Value:
    """sum(values) / sum(sizes) over questions; without sizes the mean."""
    values = np.asarray(values, np.float64)
    sizes = np.ones_like(values) if sizes is None else np.asarray(sizes, np.float64)
    return Value(float(values.sum() / sizes.sum()), clustered_stderr(values, sizes))


def mean(values: Sequence[Value]) -> Value:
    """The plain mean of independent figures, as the paper's groups have it."""
    total = math.sqrt(sum(one.stderr**2 for one in values))
    return Value(sum(one.value for one in values) / len(values), total / len(values))


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """What a model scored on the questions of a task.

    Attributes:
      task: its name.
      group: the group of the paper's tables that it belongs to.
      model: a name for the checkpoint or merge.
      metric: of lm-eval, which ``correct`` holds; "" of a task without one, such as text.
      chance: what guessing gives of it.
      correct: for each question 1 or 0, or a part; empty of a task without a metric.
      gold_nats: of each question, minus the log-probability of its gold answer given the prompt; of a text, of it all.
      gold_bytes: UTF-8 bytes of those answers.
      margin: of each question with options, bits per byte of the other options, in the mean, less the gold one's.
      facts: what decides the score: ``version``, ``shots``, ``prompt_hash``, ``bos``, ``tokenizer_hash``, ``dtype``,
        ``truncated`` and others.
    """

    task: str
    group: str
    model: str
    metric: str
    chance: float
    correct: Sequence[float]
    gold_nats: Sequence[float]
    gold_bytes: Sequence[int]
    margin: Sequence[float] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def questions(self) -> int:
        """How many."""
        return len(self.gold_nats)

    @property
    def accuracy(self) -> Value | None:
        """The mean over questions of the metric; None of a task without one."""
        return ratio(self.correct) if len(self.correct) else None

    @property
    def bits_per_byte(self) -> Value:
        """Of the gold answers given their prompts."""
        return ratio(np.asarray(self.gold_nats) / math.log(2), self.gold_bytes)

    @property
    def gold_margin(self) -> Value | None:
        """By how many bits a byte the gold option is likelier than the others; None where there are none as texts."""
        return ratio(self.margin) if len(self.margin) else None

    @property
    def above_chance(self) -> Value | None:
        """Accuracy less chance."""
        found = self.accuracy
        return None if found is None else Value(found.value - self.chance, found.stderr)

    @property
    def is_chance(self) -> bool:
        """Whether the accuracy's 95% interval holds what guessing gives."""
        found = self.above_chance
        return found is not None and not found.interval[0] > 0 and not found.interval[1] < 0

    def record(self) -> dict[str, Any]:
        """JSON-ready, with the figures and at the end the values of the questions."""
        values = dataclasses.asdict(self)
        figures: dict[str, Any] = {"questions": self.questions}
        named = {
            "accuracy": self.accuracy,
            "bits_per_byte": self.bits_per_byte,
            "gold_margin": self.gold_margin,
            "above_chance": self.above_chance,
        }
        for name, one in named.items():
            figures |= flat(name, one)
        for name in ("above_chance", "gold_margin"):
            found = named[name]
            figures[f"{name}_signal_over_noise"] = None if found is None else known(found.signal_over_noise)
        facts = values.pop("facts")
        by_question = {name: list(values.pop(name)) for name in _QUESTIONS}
        return {**values, **figures, **facts, "by_question": by_question}


def flat(name: str, found: Value | None) -> dict[str, float | None]:
    """``{name: value, name_stderr: its standard error}``; nothing where there is no figure."""
    return {} if found is None else {name: known(found.value), f"{name}_stderr": known(found.stderr)}


def known(value: float) -> float | None:
    """The number; None in the place of a NaN or an infinity, which JSON does not know."""
    return value if math.isfinite(value) else None


def from_record(record: Mapping[str, Any], place: str) -> TaskScore:
    """What :meth:`TaskScore.record` was made of.

    Raises:
      UsageError: it is no such record, naming ``place``.
    """
    names = [field.name for field in dataclasses.fields(TaskScore) if field.name not in (*_QUESTIONS, "facts")]
    try:
        questions = {name: record["by_question"][name] for name in _QUESTIONS}
        own = {name: record[name] for name in names}
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{place} is no record of a task, as wsm eval --tasks writes them: {error} is missing"
        ) from error
    return TaskScore(**own, **questions, facts={k: v for k, v in record.items() if k not in own and k != "by_question"})


def read(folder: Path) -> list[TaskScore]:
    """The scores in a folder of results of one model.

    Raises:
      UsageError: none there, or records of something else.
    """
    records = read_jsonl(folder / FILE)
    if not records:
        raise UsageError(
            f"{folder} holds no scores of tasks: it has no {FILE}; wsm eval --run=RUN --tasks=... makes it"
        )
    return [from_record(record, f"{folder / FILE}:{number}") for number, record in enumerate(records, 1)]


def differences(first: TaskScore, second: TaskScore) -> dict[str, Value]:
    """``first`` minus ``second`` in ``accuracy`` and ``bits_per_byte``, paired by question.

    Raises:
      UsageError: other questions or other prompts.
    """
    same = [first.facts.get("prompt_hash") == second.facts.get("prompt_hash"), first.questions == second.questions]
    if not all(same) or list(first.gold_bytes) != list(second.gold_bytes):
        raise UsageError(
            f"{first.task}: {first.model} and {second.model} were asked other questions, or in another way "
            f"({_asked(first)} and {_asked(second)}); evaluate both with the same --tasks, --limit and --shots"
        )
    bits = (np.asarray(first.gold_nats) - np.asarray(second.gold_nats)) / math.log(2)
    found = {"bits_per_byte": ratio(bits, first.gold_bytes)}
    if len(first.correct):
        found = {"accuracy": ratio(np.asarray(first.correct) - np.asarray(second.correct)), **found}
    return found


def _asked(score: TaskScore) -> str:
    return f"{score.questions} questions, {score.facts.get('shots')} shots, prompts {score.facts.get('prompt_hash')}"


def groups(scores: Iterable[TaskScore]) -> dict[str, list[TaskScore]]:
    """Group -> its scores, in the order of the paper's tables; others at the end."""
    found: dict[str, list[TaskScore]] = {name: [] for name in GROUPS}
    for score in scores:
        found.setdefault(score.group, []).append(score)
    return {name: members for name, members in found.items() if members}


GROUPS = ("general knowledge", "language", "mathematics", "code", "professional knowledge")
