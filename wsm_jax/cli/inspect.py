"""``wsm inspect``: what a run, a checkpoint or a merge is."""

import argparse
import json
from typing import Any

from wsm_jax.reporting.tables import listed, print_table


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    sub.add_argument(
        "path", metavar="PATH", help="a run directory, a stream, a checkpoint: Orbax, safetensors, PyTorch's"
    )
    sub.add_argument("--item", help="item of an Orbax checkpoint (default: params, else the only one)")
    sub.add_argument("--hashes", action="store_true", help="read everything and compare it with what was saved")
    sub.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """``wsm inspect``: facts, leaves and the record of where it comes from; with ``--hashes`` what is damaged."""
    from wsm_jax.checkpoints import inspection

    if options.hashes:
        return _hashes(inspection.verify(options.path), options.json)
    facts = inspection.inspect(options.path, options.item)
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    leaves, record = facts.pop("leaves", {}), facts.pop("record", {})
    if leaves:
        print_table(["leaf", "shape", "dtype"], [[name, str(x["shape"]), x["dtype"]] for name, x in leaves.items()])
    print_table(["fact", "value"], [[name, listed(value)] for name, value in facts.items()])
    inputs = record.pop("inputs", [])
    if inputs:
        columns = list(dict.fromkeys(name for entry in inputs for name in entry))
        print_table(columns, [[str(entry.get(name, "")) for name in columns] for entry in inputs], title="merged from")
    known = {name: value for name, value in record.items() if value not in (None, [], {})}
    if known:
        print_table(["recorded with it", "value"], [[name, listed(value)] for name, value in known.items()])
    return 0


def _hashes(found: dict[str, Any], as_json: bool) -> int:
    """Prints what :func:`wsm_jax.checkpoints.inspection.verify` found; the exit status, 2 for damage."""
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for damage in found["damaged"]:
            print(f"{damage['file']} {damage['what']}; {damage['advice']}")
        rest = f", {len(found['unhashed'])} have no hashes" if found["unhashed"] else ""
        print(f"{found['checked']} checkpoints read, {len(found['damaged'])} files damaged{rest}")
    return 2 if found["damaged"] else 0
