"""A checkpoint or a merge of a run as a folder that ``transformers`` loads."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsm_jax.checkpoints import huggingface, integrity, orbax, storage
from wsm_jax.checkpoints import output as output_lib
from wsm_jax.checkpoints.run import PUBLIC, Run
from wsm_jax.config import ModelFields
from wsm_jax.core.leaves import Leaf
from wsm_jax.data import chat
from wsm_jax.data.tokenizer import load_tokenizer
from wsm_jax.errors import UsageError, warn
from wsm_jax.interchange import architecture, beside, card, transfer
from wsm_jax.interchange.architecture import Layout
from wsm_jax.io import disk, machine, places
from wsm_jax.models.public import CONFIG

SHARD = 5 * 10**9  # bytes of one file of weights, as the hub likes them
SAME = "same"


def take_out(
    run: Run, path: Path, fields: ModelFields, output: str | Path, *, dtype: str = SAME, shard: int = SHARD
) -> dict[str, Any]:
    """Writes the folder ``output``, whole or not at all: weights, configuration, tokenizer and a model card.

    Args:
      run: what the parameters are of.
      path: the checkpoint with them, of the run or of a merge.
      fields: of the model, its vocabulary included.
      output: a folder that does not exist.
      dtype: of all tensors; ``same``: of an imported model that of each tensor there, else as they are stored.
      shard: bytes of one file, at most, where a tensor is not larger.

    Returns:
      what merge.json in the folder says: of a merge how it was made, and where all of it comes from.

    Raises:
      UsageError: options that no public architecture has, a damaged checkpoint, too little disk, an ``output`` that
        exists, a value that the dtype cannot hold.
    """
    output = places.local(output)
    output_lib.check_free(output)
    if dtype not in (SAME, *transfer.FLOATS):
        raise UsageError(f"--dtype={dtype}: choose {', '.join((SAME, *transfer.FLOATS))}")
    public, values = architecture.publishable(fields, f"the model of {run.path}")
    layout, source = Layout(public, fields), storage.open_source(path)
    try:
        _check_leaves(layout, source)
        dtypes = _dtypes(run, layout, source, dtype)
        leaves = {
            **{name: Leaf(e.tensor.shape(layout.ours), dtypes[name]) for name, e in layout.entries.items()},
            **{name: Leaf(shape, dtypes[name]) for name, shape in layout.zeros.items()},
        }
        disk.check_disk(
            output.absolute().parent, sum(leaf.nbytes for leaf in leaves.values()), "choose another --output"
        )
        integrity.check(path, (orbax.PARAMS,))
        record = _record(run, path, layout, dtypes)
        with output_lib.unfinished(output) as folder:
            sink = storage.create_sink(folder, leaves, source, storage.SAFETENSORS, files=shards(leaves, shard))
            transfer.take_out(layout, source, dtypes, sink.write)
            most = record["exported"]["dtype"]
            write_beside(run, fields, values, most, folder)
            (folder / "README.md").write_text(card.text(run, path, record, output.name), encoding="utf-8")
            sink.finish(record)
    finally:
        source.close()
    return record


def _check_leaves(layout: Layout, source: storage.Source) -> None:
    found = {path: leaf.shape for path, leaf in source.leaves.items()}
    for path in sorted({*found, *layout.ours}):
        there, wanted = found.get(path, "missing"), layout.ours.get(path, "missing")
        if there != wanted:
            raise UsageError(f"{source.path}: leaf {path} is {there}, in the model {wanted}")


def _dtypes(run: Run, layout: Layout, source: storage.Source, asked: str) -> dict[str, np.dtype]:
    """Name there -> dtype of the tensor that is written."""
    names = [*layout.entries, *layout.zeros]
    imported = run.facts.get("imported")
    if asked != SAME:
        return dict.fromkeys(names, np.dtype(asked))
    if imported:
        most, others = imported["dtypes"]["most"], imported["dtypes"]["others"]
        return {name: np.dtype(others.get(name, most)) for name in names}
    stored = {name: source.leaves[entry.tensor.leaves[0]].dtype for name, entry in layout.entries.items()}
    return {**stored, **dict.fromkeys(layout.zeros, next(iter(stored.values())))}


def shards(leaves: Mapping[str, Leaf], most: int) -> dict[str, str]:
    """Name -> file, such that no file has more than ``most`` bytes of tensors, but one that has a single tensor."""
    groups: list[list[str]] = []
    room = 0
    for name, leaf in leaves.items():
        if leaf.nbytes > room:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= leaf.nbytes
    if len(groups) == 1:
        return dict.fromkeys(leaves, huggingface.SINGLE)
    stem = huggingface.SINGLE.removesuffix(".safetensors")
    return {
        name: f"{stem}-{number:05}-of-{len(groups):05}.safetensors"
        for number, names in enumerate(groups, 1)
        for name in names
    }


def _record(run: Run, path: Path, layout: Layout, dtypes: Mapping[str, np.dtype]) -> dict[str, Any]:
    sizes: dict[str, int] = {}
    for name, entry in layout.entries.items():
        sizes[dtypes[name].name] = sizes.get(dtypes[name].name, 0) + math.prod(entry.tensor.shape(layout.ours))
    exported = {
        "run": str(run.path.absolute()),
        "checkpoint": str(path.absolute()),
        "architecture": layout.public.architecture,
        "parameters": layout.parameters,
        "dtype": max(sizes, key=lambda name: sizes[name]),
        **machine.environment(),
    }
    return {**orbax.user_metadata(path), "exported": exported}


def write_beside(run: Run, fields: ModelFields, values: Mapping[str, Any], dtype: str, folder: Path) -> None:
    """config.json, the tokenizer's files and what else goes with the weights.

    An imported model keeps its own files; config.json only where it still tells this model.

    Args:
      run: of the parameters.
      fields: of the model.
      values: what config.json must say.
      dtype: of most tensors.
      folder: exists.
    """
    own = run.path / PUBLIC
    known = architecture.read_config(own) if (own / CONFIG).is_file() else {}
    if own.is_dir():
        beside.copy(own, folder)
    else:
        values = {**values, **_copy_tokenizer(run, folder)}
    if known:
        told, wanted = dict(architecture.publishable(architecture.recognise(known)[1], str(own))[1]), dict(values)
        for one in (told, wanted):
            one.pop("max_position_embeddings", None)  # --context only says what the run sees
        values = known if told == wanted else {**known, **values}
    named = {name: dtype for name in ("dtype", "torch_dtype") if name in values} or {"torch_dtype": dtype}
    (folder / CONFIG).write_text(json.dumps({**values, **named}, indent=2) + "\n", encoding="utf-8")


def _copy_tokenizer(run: Run, folder: Path) -> dict[str, Any]:
    """Copies the tokenizer of a run that was trained here; what config.json says of it."""
    place = run.tokenizer
    if place is None or not (place / "tokenizer.json").is_file():
        warn(f"{run.path} has no tokenizer any more ({place}); the folder gets none")
        return {}
    if chat.has_template(place := beside.tokenizer_place(run)):  # that of a public model, which it was tuned from
        beside.copy(place, folder, (*beside.TOKENIZER, beside.GENERATION))
        public, (_, ends) = load_tokenizer(place), chat.end_tokens(place)
        texts = {"bos_token_id": chat.first_token(place), "eos_token_id": next(iter(ends), None)}
        numbers = {name: public.number(text) for name, text in texts.items() if text}
        return {name: number for name, number in numbers.items() if number is not None}
    shutil.copyfile(place / "tokenizer.json", folder / "tokenizer.json")
    end = load_tokenizer(place)
    text = end.decode([end.eot])
    beside_it = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": text, "bos_token": text}
    (folder / "tokenizer_config.json").write_text(json.dumps(beside_it, indent=2) + "\n", encoding="utf-8")
    ids = {"bos_token_id": end.eot, "eos_token_id": end.eot}
    (folder / beside.GENERATION).write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
    return ids
