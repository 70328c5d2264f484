"""Losses on held-out text of each domain, in bits per byte, and their plain mean, as the paper's over its benchmarks.

Validation: held-out documents of every domain that is trained on. Test: other documents of the same domains, and
question with solution of the benchmarks. The mean over domains counts each alike, however long its documents are.
"""

import dataclasses
import statistics
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TypeVar

from experiments.protocol import Record, evaluated, trained_by
from experiments.training import Matrix
from wsm_jax.checkpoints.run import Run
from wsm_jax.data import tokens
from wsm_jax.data.store import TokenStore
from wsm_jax.evaluation import evaluate
from wsm_jax.evaluation.evaluate import Evaluator
from wsm_jax.merging.spec import MergeSpec
from wsm_jax.parallel import sharding

Key = TypeVar("Key", bound=Hashable)
# Tokens of validation and of test in all, an equal part from each domain.
TOKENS = {"small": (16384, 32768), "medium": (32768, 65536), "gpu": (131072, 262144), "tiny": (16384, 32768)}


def evaluators(runs: Matrix, run: Run) -> dict[str, Evaluator]:
    """``validation/DOMAIN`` and ``test/DOMAIN`` -> params -> Evaluation, for the domains that ``run`` is trained on.

    For a run with the switch, the benchmarks' domains are there too, under ``test/``.
    """
    model, data = evaluate.model_and_data(run)
    mesh = sharding.make_mesh()

    def make(store: TokenStore, split: str, limit: int) -> Evaluator:
        size = run.config.evaluation.batch_size
        return evaluate.make_evaluator(model, mesh, [store], split, batch_size=size, limit_tokens=limit)

    trained = evaluate.held_out_stores(data, "validation")
    benchmarks = []
    if data.switch:
        # Never trained on, so all of it is measured: it is all in what the store calls its training split.
        config = dataclasses.replace(
            run.config.data,
            source=runs.sources().evaluation,
            switch_source="",
            switch_at="",
            tokenizer=str(data.stable[0][0].path / "tokenizer.json"),
            validation_fraction=0.0,
            test_fraction=0.0,
        )
        benchmarks = [store for store, _ in tokens.prepare(config).stable]
    validation_tokens, test_tokens = TOKENS[runs.scale]
    each = test_tokens // (len(trained) + len(benchmarks))
    return {
        **{f"validation/{domain(s)}": make(s, "validation", validation_tokens // len(trained)) for s in trained},
        **{f"test/{domain(s)}": make(s, "test", each) for s in trained},
        **{f"test/{domain(s)}": make(s, "train", each) for s in benchmarks},
    }


def domain(store: TokenStore) -> str:
    """The name of what a store holds: that of its file."""
    return Path(store.manifest["source"].partition(":")[2] or store.manifest["source"]).name.split(".")[0]


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
