"""Checkpoints of another codebase, written with Orbax's classic API and its defaults, are merged as they are."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import wsm_jax

STEPS, WEIGHTS = (100, 200, 300), (0.2, 0.3, 0.5)


def with_checkpointer(checkpointer: Any, folder: Path, trees: list[Any]) -> None:
    """One folder a step, the pytree at its top."""
    with checkpointer:
        for step, tree in zip(STEPS, trees, strict=True):
            checkpointer.save(folder / str(step), tree)


def with_manager(folder: Path, trees: list[Any]) -> None:
    """One folder a step, the pytree as its item ``default``."""
    with ocp.CheckpointManager(folder) as manager:
        for step, tree in zip(STEPS, trees, strict=True):
            manager.save(step, args=ocp.args.StandardSave(tree))


WRITERS = {
    "StandardCheckpointer": lambda *run: with_checkpointer(ocp.StandardCheckpointer(), *run),
    "PyTreeCheckpointer": lambda *run: with_checkpointer(ocp.PyTreeCheckpointer(use_ocdbt=True), *run),
    "PyTreeCheckpointer without OCDBT": lambda *run: with_checkpointer(ocp.PyTreeCheckpointer(use_ocdbt=False), *run),
    "CheckpointManager": with_manager,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_another_codebases_run_is_merged(writer, tmp_path):
    random = np.random.default_rng(0)
    shapes = {"embed": (64, 8), "blocks": {"norm": (3, 8), "kernel": (3, 8, 32)}}
    trees = [
        jax.tree.map(
            lambda shape: jnp.asarray(random.standard_normal(shape, np.float32)),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        for _ in STEPS
    ]
    WRITERS[writer](tmp_path / "run", trees)

    merged = wsm_jax.merge_checkpoints([tmp_path / "run" / str(step) for step in STEPS], list(WEIGHTS))

    expected = jax.tree.map(
        lambda *leaves: sum(w * np.asarray(x, np.float64) for w, x in zip(WEIGHTS, leaves, strict=True)), *trees
    )
    assert jax.tree.structure(merged) == jax.tree.structure(expected)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=0, atol=1e-6), merged, expected)
