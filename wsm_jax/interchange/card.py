"""The model card of an exported folder: what it is, how the merge was made, by what."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsm_jax.checkpoints.run import Run

MANY = 40  # inputs, beyond which the table is in merge.json alone


def text(run: Run, path: Path, record: Mapping[str, Any], name: str) -> str:
    """README.md of a model folder, with the front matter of the hub.

    Args:
      run: of the parameters.
      path: the checkpoint or merge.
      record: of the export, see :mod:`wsm_jax.interchange.outgoing`.
      name: title.
    """
    inputs, exported = record.get("inputs") or [], record["exported"]
    imported = run.facts.get("imported") or {}
    tags = ["wsm-jax", *(["merge"] if inputs else [])]
    front = ["---", "library_name: transformers", "tags:", *(f"- {tag}" for tag in tags), "---"]
    what = f"A merge of {len(inputs)} checkpoints" if inputs else f"The checkpoint `{path.name}`"
    of = f" of `{imported['from']}`" if imported else f" of the run `{run.path.name}`"
    lines = [
        *front, "", f"# {name}", "",
        f"{what}{of}. {exported['architecture']}, {exported['parameters']:,} parameters, {exported['dtype']}.", "",
    ]  # fmt: skip
    lines += _merge(record, inputs) if inputs else []
    lines += ["## Made with", "", "| | |", "|---|---|"]
    versions = {"wsm_jax": exported["wsm_jax"], **exported["versions"], "python": exported["python"]}
    lines += [f"| {library} | {version} |" for library, version in versions.items()]
    lines += ["", "`merge.json` holds all of this, with the fingerprints of what was read.", ""]
    return "\n".join(lines)


def _merge(record: Mapping[str, Any], inputs: list[Mapping[str, Any]]) -> list[str]:
    """How the inputs were weighed."""
    told = {name: record.get(name) for name in ("curve", "schedule", "count", "interval", "snapshot", "fit")}
    lines = ["## How the merge was made", ""]
    lines += [f"- {name}: {_short(value)}" for name, value in told.items() if value not in (None, {}, [])]
    if record.get("command"):
        lines += [f"- command: `{record['command']}`"]
    lines += ["", "| checkpoint | step | weight |", "|---|---|---|"]
    for entry in inputs[:MANY]:
        weight = f"{entry['weight']:.6g}" if "weight" in entry else "by leaf"
        lines.append(f"| `{Path(str(entry.get('path', ''))).name}` | {entry.get('step', '')} | {weight} |")
    if len(inputs) > MANY:
        lines.append(f"| and {len(inputs) - MANY} more | | |")
    return [*lines, ""]


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return json.dumps({name: one for name, one in value.items() if not isinstance(one, (list, dict))})
    return str(value)
