"""A public model, or a series of its checkpoints, as a run: its merge stream, its configuration, its tokenizer."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsm_jax import config as config_lib
from wsm_jax.checkpoints import integrity, storage
from wsm_jax.checkpoints import output as output_lib
from wsm_jax.checkpoints import run as run_lib
from wsm_jax.checkpoints.plan import plan
from wsm_jax.config import CheckpointConfig, Config, DataConfig, EvaluationConfig, ModelFields, ScheduleConfig
from wsm_jax.core.leaves import Leaf
from wsm_jax.data.tokenizer import Tokenizer, load_tokenizer
from wsm_jax.errors import UsageError, warn
from wsm_jax.interchange import architecture, beside, series, transfer
from wsm_jax.interchange.architecture import Layout
from wsm_jax.interchange.series import Member
from wsm_jax.io import disk, hashes, machine, places
from wsm_jax.io.files import write_json
from wsm_jax.models import family, model
from wsm_jax.models.public import CONFIG

Say = Callable[[str], None]
BATCH_TOKENS = 16384  # of an evaluation


class _Opened(NamedTuple):
    """A member whose every tensor is known to be one of the model's."""

    member: Member
    source: storage.Source
    named: dict[str, str]
    left_out: list[str]


def bring_in(
    source: str, output: str | Path, *, context: int = 0, tokenizer: str = "", say: Say = lambda _: None
) -> dict[str, Any]:
    """Writes the run at ``output``, whole or not at all: parameters in float32, which holds smaller floats exactly.

    Args:
      source: as :func:`wsm_jax.interchange.series.find`.
      output: a folder that does not exist.
      context: tokens that evaluations and training of the run see at once; 0 = what config.json says.
      tokenizer: a tokenizer that takes the place of the model's own.
      say: told what is being done.

    Returns:
      what run.json says of it under ``imported``.

    Raises:
      UsageError: before any weight is read: no model, an unknown architecture, tensors that do not fit, members of a
        series that differ, a tokenizer that does not match, too little disk, an ``output`` that exists.
    """
    output = places.local(output)
    output_lib.check_free(output)
    members = series.find(source)
    values = architecture.read_config(members[-1].folder)
    public, fields = architecture.recognise(values, str(architecture.described_in(members[-1].folder)))
    layout = Layout(public, _with_context(fields, context, public.bounded))
    vocabulary = _vocabulary(members, layout, tokenizer)
    opened = [_open(member, layout, fields) for member in members]
    disk.check_disk(output.absolute().parent, 4 * layout.parameters * len(members), "choose another --output")
    imported = {
        "from": source,
        "architecture": public.architecture,
        "dtypes": _dtypes(opened[-1]),
        "left_out": opened[-1].left_out,
        "steps": {str(one.member.step): str(one.member.folder.absolute()) for one in opened},
    }
    with output_lib.unfinished(output, seal=False) as folder:
        for one in opened:
            say(f"step {one.member.step}: {one.member.folder}")
            _write_step(one, layout, run_lib.merge_stream(folder) / str(one.member.step))
        beside.copy(members[-1].folder, folder / run_lib.PUBLIC)
        if tokenizer and vocabulary:
            vocabulary.save(folder / run_lib.PUBLIC / "tokenizer.json")
        config = _config(layout.fields, [member.step for member in members], output / run_lib.PUBLIC)
        write_json(folder / "run.json", _facts(layout, config, vocabulary, imported))
        write_json(folder / "config.json", config_lib.to_dict(config))
    return imported


def _with_context(fields: ModelFields, context: int, bounded: bool) -> ModelFields:
    if not context:
        return fields
    if bounded or not 0 < context <= fields.context:
        reason = "its positions are parameters" if bounded else "it must be positive and no longer"
        raise UsageError(f"--context={context}: the model's context is {fields.context}; {reason}")
    return dataclasses.replace(fields, context=context)


def _open(member: Member, layout: Layout, fields: ModelFields) -> _Opened:
    """The tensors of a member, after a look at all their names and shapes."""
    place = str(architecture.described_in(member.folder))
    _, own = architecture.recognise(architecture.read_config(member.folder), place)
    for field in dataclasses.fields(fields):
        if getattr(own, field.name, None) != (wanted := getattr(fields, field.name)):
            raise UsageError(f"{place}: {field.name} is {getattr(own, field.name, None)}, in the newest it is {wanted}")
    source = weights(member.folder)
    named, left_out = layout.matched({name: leaf.shape for name, leaf in source.leaves.items()}, member.folder)
    transfer.check_floats(source, named)
    _check_copies(source, layout, named)
    return _Opened(member, source, named, left_out)


def weights(folder: Path) -> storage.Source:
    """The tensors of a model folder, in whatever format they lie there.

    Raises:
      UsageError: none there, or a format that is not read.
    """
    source = storage.open_source(folder)
    if source.record()["format"] == storage.ORBAX:
        source.close()
        raise UsageError(f"{folder} holds an Orbax checkpoint, whose leaves have no public names")
    return source


def _check_copies(source: storage.Source, layout: Layout, named: dict[str, str]) -> None:
    """Raises UsageError where a second copy of an embedding that is tied by the configuration differs from it."""
    stored = {name.removeprefix(architecture.COMPILED): name for name in source.leaves}
    for name, original in layout.public.copies.items():
        if name in layout.entries or name not in stored:
            continue
        copy = stored[name]
        one, other = source.leaves[copy], source.leaves[named[original]]
        for start in range(0, one.size, transfer.BLOCK):
            parts = [np.empty(min(transfer.BLOCK, one.size - start), leaf.dtype) for leaf in (one, other)]
            if one.shape == other.shape:
                source.read(copy, start, parts[0])
                source.read(named[original], start, parts[1])
            if one.shape != other.shape or parts[0].tobytes() != parts[1].tobytes():
                raise UsageError(f"{source.path}: {copy} is not {named[original]}, though {CONFIG} ties them")


def _vocabulary(members: list[Member], layout: Layout, tokenizer: str) -> Tokenizer | None:
    found = load_tokenizer(tokenizer) if tokenizer else beside.tokenizer_in(members[-1].folder)
    if found is None:
        warn(f"{members[-1].folder} has no tokenizer, so that no text can be scored; give one with --tokenizer=PATH")
        return None
    beside.check_tokenizer(found, layout, Path(tokenizer) if tokenizer else members[-1].folder)
    for member in members[:-1] if not tokenizer else ():
        own = beside.tokenizer_in(member.folder)
        if own is not None and own.hash != found.hash:
            raise UsageError(f"the tokenizer of {member.folder} differs from that of {members[-1].folder}")
    return found


def _dtypes(opened: _Opened) -> dict[str, Any]:
    """The dtype of most tensors, by size, and those that have another: name in the table -> dtype."""
    leaves = {name: opened.source.leaves[stored] for name, stored in opened.named.items()}
    counts: Counter[str] = Counter()
    for leaf in leaves.values():
        counts[leaf.dtype.name] += leaf.size
    most = counts.most_common(1)[0][0]
    others = {name: leaf.dtype.name for name, leaf in leaves.items() if leaf.dtype.name != most}
    return {"most": most, "others": others}


def _write_step(opened: _Opened, layout: Layout, place: Path) -> None:
    leaves = {path: Leaf(shape, np.dtype(np.float32)) for path, shape in layout.ours.items()}
    sink = storage.create_sink(place, leaves, opened.source, storage.ORBAX)
    transfer.bring_in(layout, opened.source, opened.named, sink.write)
    sink.finish(
        {
            "imported_from": str(opened.member.folder.absolute()),
            "architecture": layout.public.architecture,
            "left_out": opened.left_out,
        }
    )
    integrity.seal(place)


def _config(fields: ModelFields, steps: list[int], tokenizer: Path) -> Config:
    """A run as long as its newest step; what trained it is not known here, so no other field says anything of it."""
    last = max(steps[-1], 1)
    apart = steps[-1] - steps[-2] if len(steps) > 1 else last
    return Config(
        duration=f"{last}steps",
        model=fields,
        data=DataConfig(source="", tokenizer=str(tokenizer.absolute())),
        schedule=ScheduleConfig(warmup="0steps"),
        checkpoint=CheckpointConfig(merge_interval=f"{apart}steps", resume_interval=f"{last}steps"),
        evaluation=EvaluationConfig(interval="", batch_size=min(max(BATCH_TOKENS // fields.context, 1), 16)),
    )


def _facts(layout: Layout, config: Config, tokenizer: Tokenizer | None, imported: dict[str, Any]) -> dict[str, Any]:
    """What run.json of a run that was trained here says too, as far as it can be known."""
    made, leaves = plan(config), family.of(layout.fields).leaves(layout.fields)
    picked = model.build(layout.fields, config.evaluation.batch_size).config
    vocabulary = (tokenizer.hash, tokenizer.vocab_size) if tokenizer else ("", layout.fields.vocab_size)
    data = dict(zip(("tokenizer_hash", "vocab_size"), vocabulary, strict=True))
    return {
        "format": run_lib.FORMAT,
        "parameters": layout.parameters,
        "steps": made.steps,
        "tokens_per_step": made.tokens_per_step,
        "merge_interval": made.merge_interval,
        "branch_from": None,
        "branch_step": None,
        "tokens_at_branch": 0,
        "branch_points": [],
        "longest_resume_interval": made.resume_interval,
        "params_from": None,
        "data_hash": "",
        "data": {"hash": "", **data, "stable": [], "switch": []},
        "config_hash": config_lib.config_hash(config),
        "config_id": config_lib.config_id(config),
        "decay_mask": {path: leaf.decayed for path, leaf in leaves.items()},
        "picked": {name: getattr(picked, name) for name in config_lib.left_open(layout.fields)},
        "hashes": hashes.KIND,
        "imported": imported,
        **machine.environment(),
    }
