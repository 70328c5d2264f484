"""Which folders ``wsm import SOURCE`` means: one model, revisions of it, or a folder of steps; local or on the hub."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from wsm_jax.checkpoints import torch_file
from wsm_jax.errors import UsageError
from wsm_jax.interchange import beside
from wsm_jax.io import places
from wsm_jax.merging.steps import step_in
from wsm_jax.models.public import CONFIG

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_OLDER = ("pytorch_model*.bin", "pytorch_model.bin.index.json")  # of revisions from before safetensors
_STATE = "trainer_state.json"  # of transformers' Trainer


class Member(NamedTuple):
    """One model of a series.

    Attributes:
      step: of the run.
      folder: with its files; or the one file of nanoGPT.
      name: what the user would call it.
    """

    step: int
    folder: Path
    name: str


def find(source: str) -> list[Member]:
    """The models of ``FOLDER_OR_HUB_ID[@REVISION[,REVISION...]]``, oldest first; those of the hub are fetched.

    A file that ``torch.save`` wrote is a model, too, if it says which, as those of nanoGPT do.

    Steps are taken from revisions and from names of folders: ``step1000``, ``checkpoint-1000``, ``1000``. One model
    whose name has none is of the step that transformers' Trainer wrote beside it, or nanoGPT in it, else of step 1.

    Raises:
      UsageError: nothing there, several models one of which has no step, or two of one step.
    """
    return _ordered(_named(source), source)


def _named(source: str) -> list[tuple[str, Path]]:
    """(Name that has the step, folder) of each."""
    if (folder := places.local(source).expanduser()).is_dir():
        return [(folder.name, folder)] if (folder / CONFIG).is_file() else _inside(folder)
    if folder.is_file():
        return [(folder.stem, folder)]
    base, at, text = source.rpartition("@")
    base = base if at else source
    revisions = [revision.strip() for revision in text.split(",") if revision.strip()] if at else []
    if at and not revisions:
        raise UsageError(f"{source} names no revision after @; write e.g. {base}@step1000,step2000")
    if (folder := Path(base).expanduser()).is_dir():
        missing = [revision for revision in revisions if not (folder / revision).is_dir()]
        if missing:
            raise UsageError(f"{folder} has no folder {missing[0]}; it has {_listed(folder)}")
        return [(revision, folder / revision) for revision in revisions]
    if not _ID.fullmatch(base) or base.endswith((".", "-")):
        raise UsageError(f"{base} is no folder, and no name on the hub (OWNER/NAME)")
    return [(revision or base.rpartition("/")[2], _fetch(base, revision)) for revision in revisions or [""]]


def _inside(folder: Path) -> list[tuple[str, Path]]:
    found = [child for child in sorted(folder.iterdir()) if (child / CONFIG).is_file()]
    steps = [child for child in found if step_in(child.name) is not None]
    if not steps:
        holds = f"; it holds {_listed(folder)}" if found else ""
        raise UsageError(f"{folder} is no folder of a model: it has no {CONFIG}, nor folders of steps with one{holds}")
    return [(child.name, child) for child in steps]


def _listed(folder: Path) -> str:
    names = sorted(child.name for child in folder.iterdir() if child.is_dir())
    return (", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")) or "none"


def _ordered(named: list[tuple[str, Path]], source: str) -> list[Member]:
    found: dict[int, Member] = {}
    for name, folder in named:
        step = step_in(name)
        if step is None:
            step = _trainer_step(folder) if len(named) > 1 else _trainer_step(folder) or 1
        if step is None:
            raise UsageError(f"{source}: {name} tells no step; name revisions such as step1000 or checkpoint-1000")
        if step in found:
            raise UsageError(f"{source}: {found[step].name} and {name} are both of step {step}")
        found[step] = Member(step, folder, name)
    return [found[step] for step in sorted(found)]


def _trainer_step(folder: Path) -> int | None:
    try:
        if folder.is_file():
            step = torch_file.read(folder).value["iter_num"]
        else:
            step = json.loads((folder / _STATE).read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) and step >= 0 else None


def _fetch(name: str, revision: str) -> Path:
    """The folder, in the cache of Hugging Face, of a model on the hub."""
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise UsageError(
            f'{name} is no folder here; to fetch it from the hub: pip install "wsm-jax[hf]" (else give a folder)'
        ) from None
    try:
        there = huggingface_hub.list_repo_files(name, revision=revision or None)
        weights = _WEIGHTS if any(file.endswith(".safetensors") for file in there) else _OLDER
        place = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=[*weights, *beside.KEPT]
        )
    except Exception as error:  # of the network, of the hub and of the name, each in its own kind
        reason = " ".join(str(error).split())[:200]
        what = f"{name}@{revision}" if revision else name
        raise UsageError(
            f"{what} is no folder here and cannot be fetched ({type(error).__name__}: {reason})"
        ) from error
    return Path(place)
