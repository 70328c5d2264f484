"""What identifies a run: hashes of its configuration."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

from wsm_jax.config.durations import split_commas


def config_hash(config: Any) -> str:
    """Twelve hexadecimal digits that identify the configuration as it was given, for result files.

    They change with every field, also with those that touch no result, e.g. where the data are kept on this machine;
    what identifies a run is :func:`config_id`.
    """
    return _digits(_hashed(config, lambda field, value: value))


def config_id(config: Any) -> str:
    """Twelve hexadecimal digits that identify what a run computes, the same on every machine and after every resume.

    They leave out the fields that touch neither the parameters nor what a merge reads (``free`` of :func:`setting`:
    logs, evaluations, previews, resume saves, the data folder) and local paths: of ``text:PATH`` and of a tokenizer's
    file it counts that there is one. The documents and tokens themselves are identified by ``data_hash``, which is
    recorded beside it: two runs with the same ``config_id`` and ``data_hash`` compute the same, up to the rounding of
    fields that were left open (``picked`` in run.json): a machine's choice among equal sums identifies nothing.
    """
    return _digits(_hashed(config, _identifying))


def _digits(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


_LEFT_OUT = object()


def _identifying(field: Any, value: Any) -> Any:
    """What of a field's value identifies what is computed."""
    match field.metadata:
        case {"free": True}:
            return _LEFT_OUT
        case {"kind": "sources"}:
            return [_without_path(item) for item in split_commas(value)]
        case {"kind": "tokenizer"}:
            return value if value.startswith("bpe:") else "file"
    return value


def _without_path(source: str) -> str:
    """One SOURCE[=WEIGHT] without the local path in it."""
    found = re.fullmatch(r"(?P<kind>\w+):(?P<place>.*?)(?P<weight>=[-+.0-9eE]+)?", source, re.DOTALL)
    if not found:
        return source
    place = found["place"].partition("@")[0] if found["kind"] == "tfds" else found["place"]
    local = found["kind"] == "text" or place.startswith(("/", "~", "."))
    return f"{found['kind']}:{'' if local else place}{found['weight'] or ''}"


def _hashed(node: Any, of: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """``of(field, value)`` of every field, by group, without what is marked as later and is at its default."""
    found = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            if group := _hashed(value, of):
                found[field.name] = group
            continue
        before = field.metadata["before"]
        value, default = (before.get(one, one) for one in (value, field.default))
        if not (field.metadata["later"] and value == default) and (kept := of(field, value)) is not _LEFT_OUT:
            found[field.name] = kept
    return found
