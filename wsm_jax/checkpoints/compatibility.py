"""Whether the parameters of a checkpoint are those that a model takes."""

from pathlib import Path
from typing import Any

from wsm_jax.checkpoints import orbax
from wsm_jax.checkpoints.run import Run
from wsm_jax.config import Config
from wsm_jax.core.trees import named_leaves
from wsm_jax.errors import UsageError
from wsm_jax.io import places


def origin_of(path: str | Path) -> Run | None:
    """The run in whose folder the checkpoint at ``path`` lies."""
    folders = (folder for folder in places.at(path).resolve().parents if (folder / "run.json").is_file())
    return next((Run(folder) for folder in folders), None)


def check_unseen(path: str | Path, origin: Run, config: Config) -> None:
    """Raises UsageError for another model in what the shapes of the leaves do not tell, e.g. its attention heads."""
    for field in sorted(config.model.UNSEEN):
        there, here = (getattr(model, field, None) for model in (origin.config.model, config.model))
        if there != here:
            raise UsageError(f"{path} is of a model with model.{field}={there}, not {here} as here")


def check_params(path: str | Path, params: Any) -> None:
    """Raises UsageError where the checkpoint at ``path`` has not the leaves of ``params``, by its metadata."""
    shapes = [
        {name: leaf.shape for name, leaf in named_leaves(tree).items()} for tree in (orbax.abstract_tree(path), params)
    ]
    for name in sorted({*shapes[0], *shapes[1]}):
        there, wanted = (found.get(name, "missing") for found in shapes)
        if there != wanted:
            raise UsageError(f"{path}: leaf {name} is {there}, in the model {wanted}")
