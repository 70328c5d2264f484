"""What an experiment declares, as plain data: runs, arms, choices among them, claims."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from wsm_jax.errors import UsageError

Loss = Callable[[str, str], np.ndarray]
"""(arm, domain) -> bits per byte, an array: one value for the documents as they are, or one for each resample."""
Statistic = Callable[[Loss, Sequence[str]], np.ndarray]
"""(loss, domains) -> what is estimated, of the loss's shape."""

SMALLEST_EFFECT = 0.002  # bits per byte


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """A training run, once for each seed.

    Attributes:
      settings: fields of the configuration, ``{"optimizer.peak_lr": 1e-3}``, over the experiment's own.
      branch_from: ``RUN@WHEN``: the run of the same seed from whose full state it starts, and the duration at which,
        e.g. ``constant@0.75run``; "": from scratch.
      params_from: an arm of the same seed with whose parameters it starts; "": none.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    branch_from: str = ""
    params_from: str = ""


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is measured: a checkpoint of a run, or a merge of some of them.

    Attributes:
      run: name of the run.
      merge: as the flags of ``wsm merge``: curve, count, interval, window, snapshot, weight_decay_aware, extrapolate,
        order; empty: the checkpoint itself.
      at: duration at which the checkpoint lies or the window ends; "": the end of the run.
      item: what is read of a checkpoint that is not merged: ``params``, or an average such as ``ema``.
      axes: the values of a sweep's axes that it stands for.
    """

    run: str
    merge: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    at: str = ""
    item: str = "params"
    axes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The arm with the lowest validation loss, chosen for each seed by itself.

    Attributes:
      of: names of the candidates.
      domains: those whose validation losses count; empty: all.
    """

    of: Sequence[str]
    domains: Sequence[str] = ()

    def loss(self, record: Mapping[str, Any]) -> float:
        """What a candidate's record says of its validation, in bits per byte: the mean over domains.

        Raises:
          UsageError: one of the domains was not measured.
        """
        if not self.domains:
            return record["validation"]
        known = record["validation_domains"]
        if missing := next((domain for domain in self.domains if domain not in known), None):
            raise UsageError(
                f"no validation loss of {missing!r}, by which an arm is chosen; there are {', '.join(known)}"
            )
        return sum(known[domain] for domain in self.domains) / len(self.domains)


@dataclasses.dataclass(frozen=True)
class Claim:
    """What is claimed of the arms before they are measured: that a statistic of their test losses is below zero.

    Attributes:
      statement: a sentence.
      statistic: what is estimated; see :func:`difference`.
      primary: whether it is one of the few whose p values are corrected for their number (Holm).
      paper: the paper's own figures, for the reader.
      unit: of the statistic.
    """

    statement: str
    statistic: Statistic
    primary: bool = False
    paper: str = ""
    unit: str = "bits per byte"


@dataclasses.dataclass(frozen=True)
class Measure:
    """What arms are measured on: held-out documents of all that is trained on, and answers given their questions.

    Attributes:
      validation_tokens: of each domain; 0: all.
      test_tokens: of each domain; 0: all.
      document_tokens: the first so many of each document count; 0: all.
      sources: more text, ``data.source``'s form: its held-out documents are measured whatever a run was trained on.
      answers: domain -> file of JSON lines ``{"prompt", "answer"}``, measured on test alone.
    """

    validation_tokens: int = 0
    test_tokens: int = 0
    document_tokens: int = 0
    sources: str = ""
    answers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment. The first arm is the reference: the table has every other arm minus it.

    Attributes:
      name: of its folders.
      title: of its page.
      config: the configuration of all runs, ``configs/FILE.py[:ARGUMENT]``.
      runs: name -> run.
      arms: name -> what is measured.
      seeds: ``seed`` of the configuration; each run and arm is made once for each.
      settings: fields of the configuration for all runs.
      choices: name -> choice; the name serves in claims as an arm's does.
      claims: name -> claim.
      measure: what arms are measured on.
      smallest_effect: differences of losses within it are called equal.
      about: a paragraph for the page, in Markdown.

    Raises:
      UsageError: a name that is not there or is taken twice, naming it.
    """

    name: str
    title: str
    config: str
    runs: Mapping[str, RunSpec]
    arms: Mapping[str, Arm]
    seeds: Sequence[int] = (0, 1, 2)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    choices: Mapping[str, Choice] = dataclasses.field(default_factory=dict)
    claims: Mapping[str, Claim] = dataclasses.field(default_factory=dict)
    measure: Measure = dataclasses.field(default_factory=Measure)
    smallest_effect: float = SMALLEST_EFFECT
    about: str = ""

    def __post_init__(self) -> None:
        """Looks for names that are not there, and has every claim ask for the losses that it needs."""
        for what, values in (("runs", self.runs), ("arms", self.arms), ("seeds", self.seeds)):
            if not values:
                raise UsageError(f"{self.name}: {what} is empty")
        if twice := next((name for name in self.choices if name in self.arms), None):
            raise UsageError(f"{self.name}: {twice!r} names an arm and a choice")
        for name, run in self.runs.items():
            parent = run.branch_from.rpartition("@")[0]
            if run.branch_from and parent not in self.runs:
                raise self._unknown(f"run {name!r}, branch_from={run.branch_from!r}", "RUN@WHEN with a run", self.runs)
            if run.params_from and run.params_from not in self.arms:
                raise self._unknown(f"run {name!r}, params_from={run.params_from!r}", "an arm", self.arms)
        for name, arm in self.arms.items():
            if arm.run not in self.runs:
                raise self._unknown(f"arm {name!r}, run={arm.run!r}", "a run", self.runs)
        for name, choice in self.choices.items():
            if wrong := [each for each in choice.of if each not in self.arms]:
                raise self._unknown(f"choice {name!r}, {wrong[0]!r}", "an arm", self.arms)
            if not choice.of:
                raise UsageError(f"{self.name}: choice {name!r} has no candidates")
        for name, claim in self.claims.items():
            with np.errstate(all="ignore"):  # these losses are none
                claim.statistic(lambda arm, domain, name=name: self._known(name, arm), ["domain"])

    def _known(self, claim: str, arm: str) -> np.ndarray:
        if arm not in self.arms and arm not in self.choices:
            raise self._unknown(f"claim {claim!r}, {arm!r}", "an arm or a choice", [*self.arms, *self.choices])
        return np.arange(1.0, 3.0)

    def _unknown(self, where: str, what: str, known: Sequence[str] | Mapping[str, Any]) -> UsageError:
        return UsageError(f"{self.name}: {where} is not {what}; there are {', '.join(known)}")


def difference(arm: str, minus: str, domains: Sequence[str] = ()) -> Statistic:
    """The mean over domains of ``arm``'s loss minus that of ``minus``; below zero, ``arm`` is better.

    Args:
      arm: name of an arm or a choice.
      minus: name of another.
      domains: those that count; those that were not measured are left out. Default: all.
    """

    def statistic(loss: Loss, measured: Sequence[str]) -> np.ndarray:
        counted = [domain for domain in measured if domain in domains] or list(measured)
        return np.mean([loss(arm, domain) - loss(minus, domain) for domain in counted], axis=0)

    return statistic
