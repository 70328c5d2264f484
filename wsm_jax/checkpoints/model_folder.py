"""What lies beside the tensors in a model folder of Hugging Face: what a merge takes over, and what it cannot."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wsm_jax.errors import UsageError, warn

CONFIG, TOKENIZER = "config.json", "tokenizer.json"

# Weights in other formats, and what goes with one stage of training: nothing of it fits the merged tensors.
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".gguf", ".ggml", ".onnx", ".onnx_data",
    ".tflite", ".mlmodel", ".mlpackage", ".distcp", ".engine", ".xml", ".index.json",
)  # fmt: skip
_STEP = re.compile(r"\d+|(checkpoint|ckpt|steps?|iter|epoch|ep|global_step)[-_=]?\d+.*", re.IGNORECASE)
# What a library writes about where a model came from, and the dtype, which follows the tensors that are written.
_NO_DIFFERENCE = re.compile(r"(.*\.)?(_name_or_path|transformers_version|(torch_)?dtype)", re.DOTALL)


def check_inputs(folders: Sequence[Path]) -> None:
    """Checks, before anything is read, that merging the tensors of these folders makes a model.

    Warns where their configurations differ: that of the last is taken over.

    Raises:
      UsageError: quantized weights; weights in a sub-folder, which the merge would lack; tokenizers that differ.
    """
    for folder in dict.fromkeys(folders):
        if _settings(folder).get("quantization_config"):
            raise UsageError(
                f"{folder / CONFIG} has a quantization_config: quantized weights have no average; dequantize the "
                "checkpoints first (model.dequantize() and save_pretrained in transformers), or take the field out if "
                "they are"
            )
        if nested := next((file for file in _nested(folder)), None):
            raise UsageError(
                f"{nested} lies in a sub-folder of {folder} and would be missing in the merge; merge its folder by "
                "itself, and this one without it"
            )
    _compare(list(dict.fromkeys(folders)))
    _check_vocabularies(list(dict.fromkeys(folders)))


def hint(folder: Path) -> str:
    """What to do with a folder that has weights, but not as a model in safetensors; empty where it has none."""
    names = sorted(file.name for file in folder.iterdir())
    if any(name.startswith("adapter_") for name in names):
        return "; it has an adapter: merge that into its model first (merge_and_unload() and save_pretrained in peft)"
    if found := next((name for name in names if name.endswith(".safetensors")), None):
        return f"; it has {found}: a single file is to be called model.safetensors, several need their index"
    return ""


def copy(folder: Path, out: Path, *, besides: Sequence[str]) -> None:
    """Copies what a model has beside its tensors (configuration, tokenizer, sub-folders), and warns of what it leaves.

    Left out are weights in other formats, adapters, sub-folders with the steps of a training, hidden folders, and
    links that lead out of the folder, but for those into the store of the Hugging Face cache that the folder is of.

    Args:
      folder: to copy from.
      out: exists.
      besides: names of files that are not copied and need no mention.
    """
    left = []
    for file in _files(folder):
        place = file.relative_to(folder)
        if place.parent == Path() and place.name in besides:
            continue
        if is_foreign(place) or not _stays(file, folder):
            left.append(str(place) + (f" (a link to {os.readlink(file)})" if file.is_symlink() else ""))
            continue
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, out / place)
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."]
    # Of steps beside the model the command says what takes them.
    left = [f"{path.name}/" for path in folders if not (_is_kept(path) or _STEP.fullmatch(path.name))] + left
    if left:
        warn(f"left out of the merge, as it does not go with the merged weights: {_few(left)}")


def is_foreign(file: Path) -> bool:
    """Whether a file's name says that it holds weights, or an adapter of them."""
    return file.name.endswith(_WEIGHTS) or file.name.startswith("adapter_")


def _is_kept(path: Path) -> bool:
    """Whether a sub-folder may belong to the model: it is no step, no link, and not hidden."""
    return not (_STEP.fullmatch(path.name) or path.is_symlink() or path.name.startswith("."))


def _files(folder: Path) -> Iterator[Path]:
    """All files, sorted, of the folder and of the sub-folders that are kept."""
    for root, folders, names in os.walk(folder):
        path = Path(root)
        folders[:] = sorted(name for name in folders if _is_kept(path / name))
        yield from (path / name for name in sorted(names) if (path / name).is_file() or (path / name).is_symlink())


def _nested(folder: Path) -> Iterator[Path]:
    """Weights in sub-folders that belong to the model."""
    for file in _files(folder):
        weights = file.suffix == ".safetensors" or re.fullmatch(r"pytorch_model.*\.bin", file.name)
        if weights and file.parent != folder:
            yield file


def _stays(file: Path, folder: Path) -> bool:
    """Whether what is read through ``file`` lies in the folder, or in the store of the cache that the folder is of."""
    root, target = folder.resolve(), file.resolve()
    roots = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    return target.is_file() and any(target.is_relative_to(one) for one in roots)


def _settings(folder: Path) -> dict[str, Any]:
    """The configuration; empty where there is none that can be read."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def _compare(folders: Sequence[Path]) -> None:
    last = folders[-1]
    wanted = _flat(_settings(last))
    for folder in folders[:-1]:
        found = _flat(_settings(folder))
        differ = [
            name
            for name in sorted(wanted.keys() | found.keys())
            if wanted.get(name) != found.get(name) and not _NO_DIFFERENCE.fullmatch(name)
        ]
        if differ:
            warn(f"{folder / CONFIG} and {last / CONFIG} differ in {_few(differ)}; the merge takes the latter")
            return


def _check_vocabularies(folders: Sequence[Path]) -> None:
    """Raises UsageError where a token is another row of the embedding in one folder than in another."""
    files = [folder / TOKENIZER for folder in folders if (folder / TOKENIZER).is_file()]
    contents = dict.fromkeys(file.read_bytes() for file in files)
    if len(contents) < 2:
        return
    known = {content: _vocabulary(content) for content in contents}
    for file in files[:-1]:
        ours, last = known[file.read_bytes()], known[files[-1].read_bytes()]
        if ours is not None and last is not None and ours != last:
            token = min({name for name, _ in set(ours.items()) ^ set(last.items())})
            raise UsageError(
                f"{file} and {files[-1]} number their tokens differently ({token!r} is {ours.get(token, 'none')} and "
                f"{last.get(token, 'none')}), so the rows of their embeddings have no average"
            )


def _vocabulary(content: bytes) -> dict[str, int] | None:
    """Token -> number, of a tokenizer.json; None where that is no dictionary, as of some kinds of models."""
    try:
        found = json.loads(content)
        added = {entry["content"]: entry["id"] for entry in found.get("added_tokens") or []}
        return {**found["model"]["vocab"], **added}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"text_config.hidden_size": 8}``"""
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
