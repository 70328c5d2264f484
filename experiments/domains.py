"""Losses on held-out text of each domain, in bits per byte, and their plain mean, as the paper's over its benchmarks.

Validation: held-out documents of every domain that is trained on. Test: other documents of the same domains, and
the benchmarks' answers given their questions. The mean over domains counts each alike, however long its documents are.
"""

import statistics
from collections.abc import Hashable, Mapping
from typing import TypeVar

from experiments.protocol import Record, evaluated, trained_by
from experiments.training import Matrix
from wsm_jax.checkpoints.run import Run
from wsm_jax.data.sources import parse_mixture
from wsm_jax.evaluation import domains
from wsm_jax.evaluation.evaluate import Evaluator
from wsm_jax.merging.spec import MergeSpec
from wsm_jax.sweeps import Measure

Key = TypeVar("Key", bound=Hashable)
# Tokens of validation and of test in all, an equal part from each domain.
TOKENS = {"small": (16384, 32768), "medium": (32768, 65536), "gpu": (131072, 262144), "tiny": (16384, 32768)}


def evaluators(runs: Matrix, run: Run) -> dict[str, Evaluator]:
    """``validation/DOMAIN`` and ``test/DOMAIN`` -> params -> Evaluation, for the domains that ``run`` is trained on.

    For a run with the switch, the benchmarks' answers are there too, under ``test/``.
    """
    data = run.config.data
    trained = len(parse_mixture(data.source))
    answers = {}
    if data.switch_source:
        trained += len(parse_mixture(data.switch_source))
        answers = runs.sources().answers
    validation_tokens, test_tokens = TOKENS[runs.scale]
    return domains.evaluators(
        run, Measure(validation_tokens // trained, test_tokens // (trained + len(answers)), answers=answers)
    )


def losses(recipes: Mapping[Key, MergeSpec], measures: Mapping[str, Evaluator]) -> dict[Key, Record]:
    """What each recipe's merge gives, from one pass over all that they read.

    Returns:
      key -> bits per byte: ``validation`` and ``test``, the means over domains, ``validation_domains`` and ``domains``,
      each one's on validation and on test, ``test_documents``, how many documents each of those is of, and the hashes
      of the run that it is of.
    """
    found = {}
    for key, evaluations in evaluated(recipes, measures).items():
        test = {name.removeprefix("test/"): e for name, e in evaluations.items() if name.startswith("test/")}
        held_out = {
            name.removeprefix("validation/"): e.bits_per_byte
            for name, e in evaluations.items()
            if name.startswith("validation/")
        }
        bits = {name: evaluation.bits_per_byte for name, evaluation in test.items()}
        found[key] = {
            "validation": statistics.fmean(held_out.values()),
            "validation_domains": held_out,
            "test": statistics.fmean(bits.values()),
            "test_documents": {name: len(evaluation.tokens) for name, evaluation in test.items()},
            "domains": bits,
            **trained_by(recipes[key]),
        }
    return found
