"""What one room alone knows: ``models`` the families, ``parallel`` the devices of a mesh, ``io`` the buckets."""

import ast
import functools
import re
from collections.abc import Callable
from pathlib import Path

from wsm_jax.config import ModelConfig
from wsm_jax.models import family

PACKAGE = Path(__file__).parent.parent / "wsm_jax"


@functools.cache
def code() -> list[tuple[str, ast.AST]]:
    """(file and line, node) of all code; docstrings are none."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE)
        for node in ast.walk(ast.parse(file.read_text())):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                body[0].value = ast.Constant("")
            found.append((f"{name}:{getattr(node, 'lineno', 0)}", node))
    return found


def test_families_are_known_by_name_in_models_alone():
    names = {*family.families(), "gpt2"}
    found = [
        place
        for place, node in code()
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith((*names, "blocks/"))
        )
        or (isinstance(node, ast.Constant) and node.value == "blocks")
        or (isinstance(node, ast.Attribute) and node.attr in ("heads", "layers", "d_model"))
    ]
    found = [place for place in found if not place.startswith("models/")]
    default = [place for place in found if place.startswith("config/model.py")]
    assert found == default and len(default) == 1  # a configuration that names no family is of this one
    assert ModelConfig().family == "gpt2"


def rooms(finds: Callable[[ast.AST], bool]) -> set[str]:
    """The rooms with code in which something is found."""
    return {place.split("/")[0] for place, node in code() if finds(node)}


def test_meshes_are_counted_in_parallel_alone():
    def counts(node: ast.AST) -> bool:
        if not isinstance(node, ast.Attribute) or node.attr not in ("size", "devices", "shape"):
            return False
        return ast.unparse(node).endswith(f"mesh.{node.attr}")

    assert rooms(counts) == {"parallel"}


def test_buckets_are_known_in_io_alone():
    assert rooms(lambda node: isinstance(node, ast.Constant) and bool(re.search(r"\bgs:", str(node.value)))) == {"io"}


def test_the_families_that_are_built_in_declare_their_leaves():
    import jax

    from wsm_jax.models import model

    for kind in family.families().values():
        shapes = jax.eval_shape(model.build(kind.fields(vocab_size=128)).init, jax.random.key(0))
        leaves = kind.leaves(kind.fields(vocab_size=128))
        family.check_leaves(leaves, shapes)
        assert {path for path, leaf in leaves.items() if leaf.stacked} == {
            path for path in leaves if path.startswith("blocks/")
        }
