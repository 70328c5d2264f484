"""Each family answers as its model in transformers does; ``tests/golden/make_logits.py`` made the files."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from wsm_jax import Run
from wsm_jax.checkpoints import orbax
from wsm_jax.core.trees import named_leaves
from wsm_jax.errors import UsageError
from wsm_jax.evaluation import evaluate
from wsm_jax.interchange import architecture, incoming
from wsm_jax.interchange.architecture import Layout
from wsm_jax.models import model
from wsm_jax.models.llama import LlamaFields, rotating

FOLDER = Path(__file__).parent.parent / "golden" / "logits"
Arrays = dict[str, np.ndarray]


def read(name: str) -> tuple[dict[str, Any], Arrays]:
    """The configuration of transformers, and all arrays."""
    with safe_open(FOLDER / f"{name}.safetensors", "np") as file:
        metadata, names = file.metadata(), list(file.keys())
        assert metadata is not None
        return json.loads(metadata["config"]), {key: file.get_tensor(key) for key in names}


CASES = ("gpt2", "neox_parallel", "neox_sequential", "llama", "llama_stretched", "qwen2", "qwen3", "smollm3")


def leaves_of(layout: Layout, arrays: Arrays) -> Any:
    """Our tree of the tensors of a file, by the table."""
    named, left_out = layout.matched({name: array.shape for name, array in arrays.items()}, FOLDER)
    assert left_out == []
    leaves: dict[str, Any] = {}
    for name, (_, tensor, row) in layout.entries.items():
        for path, part in zip(tensor.leaves, tensor.here(arrays[named[name]]), strict=True):
            leaves.setdefault(path, []).append(part)
            assert tensor.stacked == len(row)
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
    for written, (_, tensor, row) in layout.entries.items():
        parts = [leaves[path][row] for path in tensor.leaves]
        np.testing.assert_array_equal(tensor.there(parts), arrays[back[written]])
    assert architecture.publishable(fields, name)[0] is public
    again = architecture.recognise(architecture.publishable(fields, name)[1])
    assert again == (public, fields)  # config.json too, both ways


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore::wsm_jax.errors.UsageWarning")  # no tokenizer
def test_files_of_pytorch_are_imported_without_it(tmp_path):
    imported = incoming.bring_in(str(FOLDER / "nanogpt.pt"), tmp_path / "nanogpt")
    assert (imported["architecture"], list(imported["steps"])) == ("nanoGPT", ["700"])
    assert imported["left_out"] == ["_orig_mod.lm_head.weight"]
    older = incoming.bring_in(str(FOLDER / "pytorch_folder"), tmp_path / "older")
    assert (older["architecture"], older["left_out"]) == ("GPT2LMHeadModel", ["h.0.attn.bias", "h.1.attn.bias"])
    steps = {"nanogpt": "700", "older": "1"}
    params = [orbax.load_tree(Run(tmp_path / run).merge_stream / step) for run, step in steps.items()]
    jax.tree.map(np.testing.assert_array_equal, *params)
    golden = load_file(FOLDER / "nanogpt.safetensors")
    for run in steps:
        built = model.build(evaluate.fields_of(Run(tmp_path / run)))
        logits = jax.jit(built.apply)(params[0], golden["ids"].astype(np.int32))
        np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=3e-5)


def test_a_file_of_pytorch_that_tells_no_architecture_is_refused(tmp_path):
    file = FOLDER.parent / "pytorch" / "plain-100.pt"
    with pytest.raises(UsageError, match=r"plain-100.pt has no model_args, as files of nanoGPT have"):
        incoming.bring_in(str(file), tmp_path / "run")


def test_layers_without_positions_must_come_in_turn():
    config, _ = read("smollm3")
    fields = architecture.recognise(config)[1]
    assert isinstance(fields, LlamaFields) and (fields.rope_skip, rotating(fields)) == (2, [1, 0])
    with pytest.raises(UsageError, match=r"no_rope_layers is \[0, 1\], which is not computed here"):
        architecture.recognise({**config, "no_rope_layers": [0, 1]})
