"""What all tests share: CPU, strict shapes, repeatable hypothesis examples, a throw-away token store."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported

import pathlib
from collections.abc import Iterator

import hypothesis
import jax
import pytest

# [n] + [m, n] is how a missing axis goes unnoticed: broadcasting must be written out.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples every time, no example database on disk, and no limit on one example: the first call compiles.
hypothesis.settings.register_profile("deterministic", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A temporary folder for token stores; while it lives, ``WSM_DATA`` names it, whatever the shell had set."""
    folder = tmp_path_factory.mktemp("wsm_data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSM_DATA", str(folder))
        yield folder
