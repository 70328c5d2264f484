"""Losses on held-out text of each domain that a run is trained on: a domain is a source of its data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from wsm_jax.checkpoints.run import Run
from wsm_jax.data.store import TokenStore
from wsm_jax.errors import UsageError
from wsm_jax.evaluation import evaluate
from wsm_jax.evaluation.evaluate import Evaluator
from wsm_jax.parallel import mesh as mesh_lib

SPLITS = ("validation", "test")


class Tokens(Protocol):
    """How much of each domain is measured; 0: all."""

    @property
    def validation_tokens(self) -> int:
        """Tokens of each domain's validation split."""
        ...

    @property
    def test_tokens(self) -> int:
        """Tokens of each domain's test split."""
        ...


def evaluators(run: Run, measure: Tokens) -> dict[str, Evaluator]:
    """``validation/DOMAIN`` and ``test/DOMAIN`` -> params -> Evaluation, of all that ``run`` is trained on.

    Args:
      run: says which model and which data, those from a switch on with them.
      measure: how much of them.

    Raises:
      UsageError: the data are not those the run was trained on; two domains of one name.
    """
    model, data = evaluate.model_and_data(run)
    mesh, size = mesh_lib.like(run.config.mesh), run.config.evaluation.batch_size
    limits = {"validation": measure.validation_tokens, "test": measure.test_tokens}
    found = {}
    for split in SPLITS:
        stores = evaluate.held_out_stores(data, split)
        for name, store in zip(_names(stores), stores, strict=True):
            found[f"{split}/{name}"] = evaluate.make_evaluator(
                model, mesh, [store], split, batch_size=size, limit_tokens=limits[split]
            )
    return found


def _names(stores: Sequence[TokenStore]) -> list[str]:
    names = [domain(store) for store in stores]
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise UsageError(f"two sources are domains called {twice!r}; give one of them another name")
    return names


def domain(store: TokenStore) -> str:
    """The name of what a store holds: that of its file or folder, up to the first dot."""
    source = store.manifest["source"]
    return Path(source.partition(":")[2] or source).name.split(".")[0]
