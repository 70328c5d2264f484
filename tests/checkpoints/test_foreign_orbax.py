"""Checkpoints of another codebase, written with Orbax's classic API and its defaults, are merged as they are."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import wsm_jax
from wsm_jax import cli
from wsm_jax.checkpoints import orbax

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


def saved(writer: str, folder: Path) -> tuple[list[Any], list[Path]]:
    """Three trees, and the folders of their checkpoints."""
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
    WRITERS[writer](folder, trees)
    return trees, [folder / str(step) for step in STEPS]


def check(merged: Any, trees: list[Any]) -> None:
    expected = jax.tree.map(
        lambda *leaves: sum(w * np.asarray(x, np.float64) for w, x in zip(WEIGHTS, leaves, strict=True)), *trees
    )
    assert jax.tree.structure(merged) == jax.tree.structure(expected)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=0, atol=1e-6), merged, expected)


@pytest.mark.parametrize("writer", WRITERS)
def test_another_codebases_run_is_merged(writer, tmp_path):
    trees, paths = saved(writer, tmp_path / "run")
    check(wsm_jax.merge_checkpoints(paths, list(WEIGHTS)), trees)


@pytest.mark.parametrize("writer", ["StandardCheckpointer", "PyTreeCheckpointer without OCDBT"])
def test_a_path_may_hold_what_means_something_in_a_url(writer, tmp_path):
    trees, paths = saved(writer, tmp_path / "lr=1e-3#2 100%? a%20b|c")
    out = paths[0].parent / "out"
    wsm_jax.merge_checkpoints(paths, list(WEIGHTS), out, verify=True)
    check(orbax.load_tree(out), trees)
    assert cli.main(["inspect", str(out)]) == 0


@pytest.mark.parametrize("writer", ["PyTreeCheckpointer", "PyTreeCheckpointer without OCDBT"])
def test_a_checkpoint_of_an_orbax_that_did_not_say_how_it_stores(writer, tmp_path):
    trees, paths = saved(writer, tmp_path / "run")
    for file in (tmp_path / "run").rglob("_METADATA"):
        metadata = json.loads(file.read_text())
        del metadata["use_ocdbt"]
        file.write_text(json.dumps(metadata))
    check(wsm_jax.merge_checkpoints(paths, list(WEIGHTS)), trees)


def test_a_checkpoint_of_an_orbax_that_kept_no_metadata_beside_it(tmp_path):
    trees, paths = saved("PyTreeCheckpointer", tmp_path / "run")
    for path in paths:
        (path / orbax.COMPLETE).unlink()
    assert cli.main(["inspect", str(paths[0])]) == 0
    wsm_jax.merge_checkpoints(paths, list(WEIGHTS), tmp_path / "out")
    check(orbax.load_tree(tmp_path / "out"), trees)
