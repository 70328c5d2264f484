"""Losses of each domain by itself: held-out text of all that a run is trained on, and answers given their prompts."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from jax.sharding import Mesh

from wsm_jax.checkpoints.run import Run
from wsm_jax.data import tokens
from wsm_jax.data.store import TokenStore
from wsm_jax.data.tokens import Corpus
from wsm_jax.errors import UsageError
from wsm_jax.evaluation import answers
from wsm_jax.evaluation.evaluate import held_out_stores, make_evaluator, model_and_data
from wsm_jax.evaluation.evaluator import Evaluator
from wsm_jax.parallel import mesh as mesh_lib
from wsm_jax.parallel.sharding import RULES, Rules


class Measured(Protocol):
    """What is measured, as ``wsm_jax.sweeps.Measure`` says it."""

    @property
    def validation_tokens(self) -> int:
        """Of each domain; 0: all."""
        ...

    @property
    def test_tokens(self) -> int:
        """Of each domain, prompts counted; 0: all."""
        ...

    @property
    def document_tokens(self) -> int:
        """Of each document the first so many count; 0: all."""
        ...

    @property
    def sources(self) -> str:
        """More text, in the form of ``data.source``: its held-out documents are measured too; "": none."""
        ...

    @property
    def answers(self) -> Mapping[str, str]:
        """Domain -> file of answers, measured on test alone."""
        ...


def evaluators(run: Run, measure: Measured, *, mesh: Mesh | None = None, rules: Rules = RULES) -> dict[str, Evaluator]:
    """``validation/DOMAIN`` and ``test/DOMAIN`` -> params -> Evaluation, for all that ``run`` is trained on, and more.

    A domain is named after its source, see :func:`name`; sources of one name are one domain. The step is compiled once
    for all domains, and once more for each further length of answers.

    Args:
      run: says which data and which model.
      measure: how much of what.
      mesh: the devices; default: all, as near to the run's mesh as they allow.
      rules: logical axis -> axes of the mesh.

    Raises:
      UsageError: the data are not those the run was trained on, a split without documents, answers that cannot be
        read, none of which fits, or that have the name of a domain that is trained on.
    """
    model, data = model_and_data(run)
    mesh = mesh or mesh_lib.like(run.config.mesh)
    size = run.config.evaluation.batch_size
    limits = {"validation": measure.validation_tokens, "test": measure.test_tokens}
    found = {
        f"{split}/{domain}": make_evaluator(
            model,
            mesh,
            stores,
            split,
            batch_size=size,
            limit_tokens=limit // len(stores),
            document_tokens=measure.document_tokens,
            rules=rules,
        )
        for split, limit in limits.items()
        for domain, stores in _by_name([*held_out_stores(data, split), *_more(run, measure.sources, data)]).items()
    }
    for domain, file in measure.answers.items():
        if f"test/{domain}" in found:
            raise UsageError(f"answers {domain!r}: the run is trained on a domain of this name; choose another one")
        found[f"test/{domain}"] = answers.make_evaluator(
            file, data.tokenizer, model, mesh, batch_size=size, limit_tokens=measure.test_tokens, rules=rules
        )
    return found


def name(store: TokenStore) -> str:
    """The domain of a store: its file's name up to the first dot; of another source, such as a glob, the source."""
    source = store.manifest["source"]
    short = Path(source.partition(":")[2] or source).name.split(".")[0]
    return short if re.fullmatch(r"\w[\w-]*", short) else source


def _more(run: Run, sources: str, data: Corpus) -> list[TokenStore]:
    """The stores of ``sources`` with the run's tokenizer and splits, but for those that it is trained on."""
    if not sources:
        return []
    tokenizer = str(data.stable[0][0].path / "tokenizer.json")
    other = {"source": sources, "switch_source": "", "switch_at": "", "tokenizer": tokenizer}
    known = {store.hash for store, _ in [*data.stable, *data.switch]}
    found = tokens.prepare(dataclasses.replace(run.config.data, **other)).stable
    return [store for store, _ in found if store.hash not in known]


def _by_name(stores: list[TokenStore]) -> dict[str, list[TokenStore]]:
    found: dict[str, list[TokenStore]] = {}
    for store in stores:
        found.setdefault(name(store), []).append(store)
    return found
