"""Each family answers as its model in transformers does; ``tests/golden/make_logits.py`` made the files."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import safe_open

from wsm_jax.core.trees import named_leaves
from wsm_jax.interchange import architecture
from wsm_jax.interchange.architecture import Layout
from wsm_jax.models import model

FOLDER = Path(__file__).parent.parent / "golden" / "logits"
Arrays = dict[str, np.ndarray]


def read(name: str) -> tuple[dict[str, Any], Arrays]:
    """The configuration of transformers, and all arrays."""
    with safe_open(FOLDER / f"{name}.safetensors", "np") as file:
        metadata, names = file.metadata(), list(file.keys())
        assert metadata is not None
        return json.loads(metadata["config"]), {key: file.get_tensor(key) for key in names}


CASES = ("gpt2", "neox_parallel", "neox_sequential", "llama", "llama_stretched", "qwen2", "qwen3")


def leaves_of(layout: Layout, arrays: Arrays) -> Any:
    """Our tree of the tensors of a file, by the table."""
    named, left_out = layout.matched({name: array.shape for name, array in arrays.items()}, FOLDER)
    assert left_out == []
    leaves: dict[str, Any] = {}
    for name, (_, tensor, layer) in layout.entries.items():
        for path, part in zip(tensor.leaves, tensor.here(arrays[named[name]]), strict=True):
            leaves.setdefault(path, []).append(part)
            assert tensor.stacked == (layer is not None)
    tree: dict[str, Any] = {}
    for path, parts in leaves.items():
        *groups, last = path.split("/")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = np.stack(parts) if path.startswith("blocks/") else parts[0]
    return tree


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers_and_every_tensor_comes_back(name):
    config, arrays = read(name)
    ids, expected = arrays.pop("ids"), arrays.pop("logits")
    public, fields = architecture.recognise(config)
    layout = Layout(public, fields)
    params = leaves_of(layout, arrays)
    built = model.build(fields)
    assert {path: leaf.shape for path, leaf in named_leaves(params).items()} == layout.ours
    assert model.parameter_count(params) == sum(a.size for a in arrays.values())  # every element is one of ours
    logits = jax.jit(built.apply)(params, ids.astype(np.int32))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=3e-5)  # the largest are about 6

    back, leaves = layout.named(arrays), named_leaves(params)
    for written, (_, tensor, layer) in layout.entries.items():
        parts = [leaves[path] if layer is None else leaves[path][layer] for path in tensor.leaves]
        np.testing.assert_array_equal(tensor.there(parts), arrays[back[written]])
    assert architecture.publishable(fields, name)[0] is public
    again = architecture.recognise(architecture.publishable(fields, name)[1])
    assert again == (public, fields)  # config.json too, both ways
